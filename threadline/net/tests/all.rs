//! The link against a scripted relay.

#![allow(unreachable_pub)]

#[path = "all/link.rs"]
mod link;
#[path = "all/relay_script.rs"]
mod relay_script;
