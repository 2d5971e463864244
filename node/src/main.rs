//! `instar`: the command line of an agent and the node behind it.

mod cli;
mod client;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
