//! The room with a scripted relay on one side and scripted sessions on the other.
#![allow(unreachable_pub)]

#[path = "all/bench.rs"]
mod bench;
#[path = "all/crashes.rs"]
mod crashes;
#[path = "all/direct.rs"]
mod direct;
#[path = "all/inbound.rs"]
mod inbound;
#[path = "all/invitations.rs"]
mod invitations;
#[path = "all/outbound.rs"]
mod outbound;
#[path = "all/refused.rs"]
mod refused;
#[path = "all/sealed.rs"]
mod sealed;
#[path = "../../../threadline/net/tests/all/sealed_relay.rs"]
mod sealed_relay;
#[path = "all/sessions.rs"]
mod sessions;
