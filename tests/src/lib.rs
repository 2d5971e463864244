//! Doubles of the outside world, the end-to-end harness and the fuzz bodies of Instar.

pub mod anthropic;
pub mod fuzz;
pub mod harness;
pub mod hello;
pub mod script;
pub mod sim;
pub mod standin;
