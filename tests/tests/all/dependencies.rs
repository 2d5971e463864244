//! Who may depend on whom.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The one allow list: a package of the workspace and the packages of ours that it may name in any kind of dependency.
const ALLOWED: &[(&str, &[&str])] = &[
    ("instar-durable", &[]),
    ("instar-redact", &[]),
    ("instar-outbound", &[]),
    ("threadline", &[]),
    ("instar-hooks", &["instar-redact"]),
    ("instar-mcp", &["threadline", "instar-durable"]),
    ("threadline-relay", &["threadline", "instar-durable"]),
    ("threadline-net", &["threadline", "instar-durable", "instar-outbound"]),
    ("instar-state", &["instar-durable", "instar-redact", "instar-outbound"]),
    (
        "instar-identity",
        &["instar-state", "instar-durable", "instar-redact", "instar-outbound", "threadline", "instar-hooks"],
    ),
    (
        "instar-sessions",
        &["instar-state", "instar-durable", "instar-redact", "instar-outbound", "threadline", "instar-hooks"],
    ),
    (
        "instar-mesh",
        &[
            "instar-state",
            "instar-durable",
            "instar-redact",
            "instar-outbound",
            "threadline",
            "threadline-net",
        ],
    ),
    (
        "instar-api",
        &[
            "instar-state",
            "instar-durable",
            "instar-redact",
            "instar-outbound",
            "threadline",
            "instar-hooks",
            "instar-mcp",
            "instar-identity",
            "instar-sessions",
            "instar-mesh",
        ],
    ),
];

/// Packages that may name all others, and that nobody may name.
const TOP: &[&str] = &["instar", "instar-tests"];

#[test]
fn arrows_point_down_only() {
    let workspace = workspace_dependencies();
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ALLOWED.iter().map(|(name, list)| (*name, list.iter().copied().collect())).collect();

    let mut wrong = Vec::new();
    for (name, dependencies) in &workspace {
        for dependency in dependencies {
            let permitted = if TOP.contains(&dependency.as_str()) {
                name == "instar-tests"
            } else {
                TOP.contains(&name.as_str())
                    || allowed.get(name.as_str()).is_some_and(|list| list.contains(dependency.as_str()))
            };
            if !permitted {
                wrong.push(format!("{name} -> {dependency}"));
            }
        }
        if !TOP.contains(&name.as_str()) && !allowed.contains_key(name.as_str()) {
            wrong.push(format!("{name} is in no row of the allow list"));
        }
    }
    assert!(wrong.is_empty(), "dependencies against the architecture:\n  {}", wrong.join("\n  "));
}

#[test]
fn rustls_has_one_provider() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "-p", "instar", "-e", "features,no-dev", "-i", "rustls"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && tree.contains("rustls feature \"aws"),
        "cargo tree does not show rustls with aws-lc-rs:\n{tree}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        !tree.contains("rustls feature \"ring\""),
        "a dependency turns on rustls/ring; two providers make ClientConfig::builder() panic:\n{tree}"
    );
}

fn workspace_dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let ours: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    packages
        .iter()
        .filter_map(|package| {
            let dependencies = package["dependencies"].as_array()?.iter();
            let named = dependencies
                .filter_map(|dependency| dependency["name"].as_str())
                .filter(|name| ours.contains(name))
                .map(str::to_owned)
                .collect();
            Some((package["name"].as_str()?.to_owned(), named))
        })
        .collect()
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
