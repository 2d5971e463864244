//! `instar`: the command line of an agent and the node behind it.

mod cli;
mod client;
mod daemon;
mod hook_status;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    instar_sessions::process::close_files_on_exec();
    // Hooks and supervisors come before anything else is set up: they start often, and some of them on behalf of a
    // runtime that waits.
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let called_as_hook =
        arguments.first().is_some_and(|name| Path::new(name).file_name().is_some_and(|n| n == "instar-hook"));
    if called_as_hook {
        return instar_hooks::main_from_args(arguments);
    }
    if arguments.get(1).is_some_and(|command| command == "hook") {
        arguments.remove(0);
        return instar_hooks::main_from_args(arguments);
    }
    if let Some(ended) = instar_sessions::supervisor::dispatch(arguments.get(1..).unwrap_or_default()) {
        return ended;
    }
    cli::main()
}
