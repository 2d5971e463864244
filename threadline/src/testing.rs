//! Access to the recorded vectors for unit tests.

use std::sync::LazyLock;

use serde_json::Value;

static VECTORS: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../vectors/threadline-v1.json")).expect("the vectors are JSON")
});

pub(crate) fn vectors() -> &'static Value {
    &VECTORS
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

pub(crate) fn hex32(value: &Value) -> [u8; 32] {
    hex::decode(text(value)).expect("hex").as_slice().try_into().expect("32 bytes")
}
