//! The stand-alone relay.

use std::process::ExitCode;

/// Thousands of connections come and go: what they held goes back to the system within seconds. How is said in
/// `.cargo/config.toml`.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    ExitCode::from(threadline_relay::program::main_from_args(std::env::args_os()))
}
