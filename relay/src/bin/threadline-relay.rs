//! The stand-alone relay.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(threadline_relay::program::main_from_args(std::env::args_os()))
}
