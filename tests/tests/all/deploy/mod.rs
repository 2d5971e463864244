//! The files of `deploy/`: read strictly, held against the relay that they start, and against the real programs that
//! read them.

mod compose;
mod containerfile;
mod manifests;
mod monitoring;
mod settings;
mod tools;
mod unit;
mod walk;

use std::path::PathBuf;

use serde_json::Value;

/// The folder with the files.
fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy"))
}

fn read(name: &str) -> String {
    let path = folder().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All documents of a YAML file.
fn documents(name: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Seconds of a duration such as `35s`, `5m` or `35`.
fn seconds(text: &str) -> u64 {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().unwrap_or_else(|_| panic!("{text} is no duration"));
    number
        * match unit {
            "" | "s" => 1,
            "m" => 60,
            "h" => 3600,
            other => panic!("{other} is no unit of time"),
        }
}
