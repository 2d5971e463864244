//! Handlers parse, call one room and answer; no rule lives here.

pub(crate) mod core;
pub(crate) mod hooks;
pub(crate) mod invitations;
pub(crate) mod sessions;
pub(crate) mod threadline;
pub(crate) mod wire;
