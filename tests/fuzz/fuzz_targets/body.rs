//! Every fuzz target is this program: `FUZZ_BODY` names the body. One link instead of one for each.

#![no_main]

use std::sync::LazyLock;

use instar_tests::fuzz::{Body, body};

static BODY: LazyLock<Body> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_BODY").unwrap_or_default();
    body(&name).unwrap_or_else(|| panic!("FUZZ_BODY={name} is no body of tests/src/fuzz.rs"))
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| BODY(data));
