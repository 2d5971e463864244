//! Fuzz bodies: one function per parser of foreign bytes, run by cargo-fuzz (`tests/fuzz`) and by plain `cargo test`.
//!
//! A body panics when an invariant breaks; refusing the input is fine. To add one: the function, its line in
//! [`BODIES`], a line in `tests/fuzz/Cargo.toml`, and at least one seed in `tests/fuzz/corpus/<name>/`.

use serde_json::Value;

use crate::script::{Conversation, Script};

/// A fuzz body.
pub type Body = fn(&[u8]);

/// Every body by its name, which is also the name of its fuzz target and of its corpus folder.
pub const BODIES: &[(&str, Body)] = &[("rules", rules)];

/// Runs the body of that name.
///
/// # Panics
/// If no body has that name, or the body found a defect.
pub fn run(name: &str, data: &[u8]) {
    let (_, body) = BODIES
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("no fuzz body is called {name}; see tests/src/fuzz.rs"));
    body(data);
}

/// Rule files of the doubles and the conversations they are matched against.
pub fn rules(data: &[u8]) {
    let Ok(case) = serde_json::from_slice::<Value>(data) else { return };
    let Ok(script) = Script::from_json(case["script"].to_string().as_bytes()) else { return };
    script.reply(&Conversation::from_messages(&case["system"], &case["messages"]));
}
