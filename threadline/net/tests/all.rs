//! The link against a scripted relay.

#![allow(unreachable_pub)]

#[path = "all/asking.rs"]
mod asking;
#[path = "all/coverage.rs"]
mod coverage;
#[path = "all/link.rs"]
mod link;
#[path = "all/node.rs"]
mod node;
#[path = "all/quic_script.rs"]
mod quic_script;
#[path = "all/relay_script.rs"]
mod relay_script;
#[path = "all/sealed.rs"]
mod sealed;
#[path = "all/sealed_relay.rs"]
mod sealed_relay;
#[path = "all/transcript.rs"]
mod transcript;
