//! The command line of the Claude Code CLI, as far as sessions use it.

use std::path::PathBuf;

/// Permission mode that asks nobody.
pub(super) const BYPASS: &str = "bypassPermissions";

/// The part of `--help` that callers look into.
pub(super) const HELP: &str = "\
Usage: claude [options] [command] [prompt]

Options:
  --allowedTools, --allowed-tools <tools...>
  --dangerously-skip-permissions
  --include-hook-events
  --input-format <format>               (choices: \"text\", \"stream-json\")
  --mcp-config <configs...>
  --model <model>
  --output-format <format>              (choices: \"text\", \"json\", \"stream-json\")
  --permission-mode <mode>              (choices: \"acceptEdits\", \"auto\", \"bypassPermissions\", \"manual\",
                                        \"dontAsk\", \"plan\")
  -p, --print
  --replay-user-messages
  -r, --resume [value]
  --session-id <uuid>
  --settings <file-or-json>
  --strict-mcp-config
  --verbose
  -v, --version";

/// What the arguments ask for.
#[derive(Debug)]
pub enum Command {
    /// `--version`.
    Version,
    /// `--help`.
    Help,
    /// A session.
    Run(Box<Args>),
}

/// Arguments of a session.
#[derive(Debug, Default)]
pub struct Args {
    /// Id of the session, given or made.
    pub session_id: String,
    /// Whether it continues an earlier one.
    pub resume: bool,
    /// Permission mode.
    pub permission_mode: String,
    /// `--allowedTools`.
    pub allowed: Vec<String>,
    /// `--disallowedTools`.
    pub disallowed: Vec<String>,
    /// `--mcp-config` files.
    pub mcp_configs: Vec<PathBuf>,
    /// `--strict-mcp-config`.
    pub strict_mcp: bool,
    /// `--settings` file.
    pub settings: Option<PathBuf>,
    /// `--model`.
    pub model: String,
    /// `--replay-user-messages`.
    pub replay: bool,
    /// `--include-hook-events`.
    pub hook_events: bool,
}

/// Reads the arguments; the error is the sentence for stderr.
pub(super) fn parse(arguments: Vec<String>) -> Result<Command, String> {
    let mut args =
        Args { permission_mode: "manual".into(), model: "claude-standin-1".into(), ..Args::default() };
    let (mut print, mut stream_in, mut stream_out, mut verbose) = (false, false, false, false);
    let mut rest = arguments.into_iter().peekable();
    while let Some(argument) = rest.next() {
        let (flag, inline) = match argument.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => (flag.to_owned(), Some(value.to_owned())),
            _ => (argument, None),
        };
        let mut value = || {
            inline
                .clone()
                .or_else(|| rest.next())
                .ok_or_else(|| format!("error: option '{flag}' argument missing"))
        };
        match flag.as_str() {
            "-v" | "--version" => return Ok(Command::Version),
            "-h" | "--help" => return Ok(Command::Help),
            "-p" | "--print" => print = true,
            "--verbose" => verbose = true,
            "--replay-user-messages" => args.replay = true,
            "--include-hook-events" => args.hook_events = true,
            "--strict-mcp-config" => args.strict_mcp = true,
            "--dangerously-skip-permissions" => BYPASS.clone_into(&mut args.permission_mode),
            "--include-partial-messages" => {}
            "--input-format" => stream_in = value()? == "stream-json",
            "--output-format" => stream_out = value()? == "stream-json",
            "--permission-mode" => args.permission_mode = permission_mode(value()?)?,
            "--model" => args.model = value()?,
            "--effort"
            | "--max-turns"
            | "--max-budget-usd"
            | "--fallback-model"
            | "--setting-sources"
            | "--append-system-prompt"
            | "--tools" => drop(value()?),
            "--settings" => args.settings = Some(value()?.into()),
            "--session-id" => args.session_id = uuid(&value()?)?,
            "-r" | "--resume" => {
                args.session_id = uuid(&value()?)?;
                args.resume = true;
            }
            "--mcp-config" | "--allowedTools" | "--allowed-tools" | "--disallowedTools"
            | "--disallowed-tools" => {
                let mut values = vec![value()?];
                while inline.is_none() {
                    let Some(next) = rest.next_if(|next| !next.starts_with('-')) else { break };
                    values.push(next);
                }
                match flag.as_str() {
                    "--mcp-config" => args.mcp_configs.extend(values.into_iter().map(PathBuf::from)),
                    "--allowedTools" | "--allowed-tools" => args.allowed.extend(tool_list(&values)),
                    _ => args.disallowed.extend(tool_list(&values)),
                }
            }
            unknown if unknown.starts_with('-') => return Err(format!("error: unknown option '{unknown}'")),
            _ => return Err("the stand-in takes its input as stream-json only".to_owned()),
        }
    }
    if !(print && stream_in && stream_out) {
        return Err(
            "the stand-in has no terminal: -p --input-format stream-json --output-format stream-json"
                .to_owned(),
        );
    }
    if !verbose {
        return Err("Error: When using --print, --output-format=stream-json requires --verbose".to_owned());
    }
    if args.session_id.is_empty() {
        args.session_id = uuid::Uuid::new_v4().to_string();
    }
    Ok(Command::Run(Box::new(args)))
}

fn permission_mode(mode: String) -> Result<String, String> {
    const MODES: [&str; 7] = ["acceptEdits", "auto", BYPASS, "manual", "default", "dontAsk", "plan"];
    if MODES.contains(&mode.as_str()) {
        return Ok(mode);
    }
    Err(format!("error: option '--permission-mode <mode>' argument '{mode}' is invalid."))
}

fn uuid(text: &str) -> Result<String, String> {
    uuid::Uuid::parse_str(text)
        .map(|id| id.to_string())
        .map_err(|_| "Error: Invalid session ID. Must be a valid UUID.".to_owned())
}

/// Tool rules, separated by commas or spaces outside parentheses.
fn tool_list(values: &[String]) -> Vec<String> {
    let mut tools = vec![String::new()];
    let mut depth = 0_usize;
    for character in values.join(",").chars() {
        match character {
            ',' | ' ' if depth == 0 => tools.push(String::new()),
            _ => {
                depth = match character {
                    '(' => depth + 1,
                    ')' => depth.saturating_sub(1),
                    _ => depth,
                };
                if let Some(tool) = tools.last_mut() {
                    tool.push(character);
                }
            }
        }
    }
    tools.retain(|tool| !tool.is_empty());
    tools
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<Args, String> {
        match parse(line.split(' ').map(str::to_owned).collect())? {
            Command::Run(args) => Ok(*args),
            other => Err(format!("{other:?}")),
        }
    }

    const STREAM: &str = "-p --input-format stream-json --output-format stream-json --verbose";

    #[test]
    fn reads_a_launch_line() {
        let args = run(&format!(
            "{STREAM} --replay-user-messages --permission-mode default --strict-mcp-config \
             --session-id=11111111-2222-4333-8444-555555555555 --allowedTools Read(src/**),mcp__a__b --mcp-config /m.json"
        ))
        .expect("valid");
        assert_eq!(args.allowed, ["Read(src/**)", "mcp__a__b"]);
        assert_eq!(args.session_id, "11111111-2222-4333-8444-555555555555");
        assert!(args.strict_mcp && args.replay && !args.resume);
        assert_eq!(args.mcp_configs, [PathBuf::from("/m.json")]);
    }

    #[test]
    fn refuses_what_the_cli_refuses() {
        for (line, expected) in [
            ("--nonsense", "unknown option '--nonsense'"),
            ("--permission-mode silly", "'silly' is invalid"),
            ("--session-id nope", "valid UUID"),
            ("-p", "no terminal"),
        ] {
            let error = run(line).expect_err(line);
            assert!(error.contains(expected), "{line}: {error}");
        }
        assert!(matches!(parse(vec!["--version".into()]), Ok(Command::Version)));
    }
}
