//! Tests of the engine from outside.

#[path = "all/clearance.rs"]
mod clearance;
#[path = "all/gateway.rs"]
mod gateway;
#[path = "all/policy.rs"]
mod policy;
#[path = "all/support.rs"]
mod support;
