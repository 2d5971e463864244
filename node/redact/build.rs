//! Turns `rules.toml` into static data, so that a process that redacts one line parses no table.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    rule: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    id: String,
    description: String,
    keywords: Vec<String>,
    regex: String,
    validate: Option<String>,
    entropy: Option<f64>,
    severity: String,
    action: String,
}

fn main() {
    println!("cargo::rerun-if-changed=rules.toml");
    let text = std::fs::read_to_string("rules.toml").expect("rules.toml lies beside build.rs");
    let table: Table = toml::from_str(&text).expect("rules.toml is valid");
    let mut out = String::from("&[\n");
    for rule in &table.rule {
        // An ASCII word boundary keeps the fast automaton usable on any text.
        let regex = rule.regex.replace(r"\b", r"(?-u:\b)");
        writeln!(
            out,
            "Rule {{ id: {:?}, description: {:?}, keywords: &{:?}, regex: {regex:?}, ignore_case: {}, \
             validate: Validate::{}, min_entropy: {:?}, severity: Severity::{}, action: Action::{} }},",
            rule.id,
            rule.description,
            rule.keywords,
            rule.regex.starts_with("(?i)"),
            camel(rule.validate.as_deref().unwrap_or("none")),
            rule.entropy,
            camel(&rule.severity),
            camel(&rule.action),
        )
        .expect("a String takes everything");
    }
    out.push(']');
    let path = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("rules.rs");
    std::fs::write(path, out).expect("OUT_DIR is writable");
}

fn camel(kebab: &str) -> String {
    kebab
        .split('-')
        .map(|word| {
            let mut letters = word.chars();
            letters
                .next()
                .map(|first| first.to_ascii_uppercase().to_string() + letters.as_str())
                .unwrap_or_default()
        })
        .collect()
}
