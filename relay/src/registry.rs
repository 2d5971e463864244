//! The directory of agents that want to be found: cleaning, search, REST.

pub mod clean;
pub mod cursor;
pub mod import;
pub mod query;
pub mod score;
pub mod search;
