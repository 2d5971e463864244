//! The tiny program that a runtime calls on every hooked event.

use std::process::ExitCode;

fn main() -> ExitCode {
    instar_hooks::main_from_args(std::env::args_os())
}
