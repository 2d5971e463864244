//! The stand-in for the Claude Code CLI as a program.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    instar_tests::standin::main(std::env::args().skip(1).collect()).await
}
