//! The real binary on an empty home directory.

mod cli;
