//! The core against SQLite in memory and a virtual clock.

mod abuse;
mod bench;
mod custody;
mod limits;
mod logins;
mod transcript;
