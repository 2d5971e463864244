//! Sessions over both transports, with stand-in runtimes as real processes.

mod inheritance;
mod places;
mod stdio;
mod support;
mod terminal;
