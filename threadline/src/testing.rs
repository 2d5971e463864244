//! Access to the recorded vectors for unit tests.

use std::sync::LazyLock;

use serde_json::Value;

static VECTORS: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../vectors/threadline-v1.json")).expect("the vectors are JSON")
});

static VECTORS_V2: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../vectors/threadline-v2.json")).expect("the vectors are JSON")
});

pub(crate) fn vectors_v2() -> &'static Value {
    &VECTORS_V2
}

pub(crate) fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(text(value)).expect("hex")
}

/// A recorded identity: `alice`, `bob`, `carol` or `relay`.
pub(crate) fn identity(name: &str) -> crate::identity::Identity {
    crate::identity::Identity::from_seed(&hex32(&vectors()["identities"][name]["ed25519Seed"]))
}

pub(crate) fn vectors() -> &'static Value {
    &VECTORS
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

pub(crate) fn hex32(value: &Value) -> [u8; 32] {
    hex::decode(text(value)).expect("hex").as_slice().try_into().expect("32 bytes")
}
