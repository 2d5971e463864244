//! The few built-in tools, and who may use which tool.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;

use super::Args;
use super::args::BYPASS;

/// Names of the built-in tools.
pub(super) const BUILT_IN: [&str; 4] = ["Bash", "Read", "Write", "ToolSearch"];

/// Runs a built-in tool; its result content and whether it failed.
pub(super) async fn run(name: &str, input: &Value, cwd: &Path) -> (Value, bool) {
    let field = |name: &str| input[name].as_str().unwrap_or_default();
    let outcome = match name {
        "Bash" => bash(field("command"), cwd).await,
        "Read" => std::fs::read_to_string(cwd.join(field("file_path"))).map_err(|error| error.to_string()),
        "Write" => std::fs::write(cwd.join(field("file_path")), field("content"))
            .map(|()| format!("File created successfully at: {}", field("file_path")))
            .map_err(|error| error.to_string()),
        "ToolSearch" => {
            let names = field("query").trim_start_matches("select:").split(',');
            let found = names.map(|name| json!({"type": "tool_reference", "tool_name": name.trim()}));
            return (found.collect(), false);
        }
        _ => Err(format!("<tool_use_error>Error: No such tool available: {name}</tool_use_error>")),
    };
    match outcome {
        Ok(text) => (text.into(), false),
        Err(text) => (text.into(), true),
    }
}

async fn bash(command: &str, cwd: &Path) -> Result<String, String> {
    let output = Command::new("/bin/bash")
        .args(["-c", command])
        .current_dir(cwd)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| error.to_string())?;
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    match output.status.code() {
        Some(0) => Ok(text.trim_end().to_owned()),
        code => Err(format!("Exit code {}\n{}", code.unwrap_or(-1), text.trim_end())),
    }
}

/// Whether the launch line permits the call without asking anyone.
pub(super) fn permitted(args: &Args, tool: &str) -> bool {
    let named = |rules: &[String]| {
        rules.iter().any(|rule| rule == tool || rule.split_once('(').is_some_and(|(name, _)| name == tool))
    };
    if named(&args.disallowed) {
        return false;
    }
    args.permission_mode == BYPASS || named(&args.allowed) || matches!(tool, "Read" | "ToolSearch")
}
