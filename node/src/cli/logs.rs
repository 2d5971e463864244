//! `instar logs`

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use regex::Regex;
use serde_json::json;

use super::{CommandResult, Ctx, Exit, Failure, Reply};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Go on with new lines as they come
    #[arg(short, long)]
    follow: bool,
    /// Number of last lines
    #[arg(short = 'n', long, default_value_t = 100, value_name = "N")]
    lines: usize,
    /// Only lines that match this regular expression
    #[arg(long, value_name = "PATTERN")]
    grep: Option<String>,
}

pub(crate) fn run(ctx: &Ctx, args: &Args) -> CommandResult {
    if args.follow && ctx.flags.json {
        return Err(Failure::usage("--follow never ends and --json prints one document; use one of them"));
    }
    let pattern = args.grep.as_deref().map(Regex::new).transpose();
    let pattern = pattern.map_err(|e| Failure::usage(format!("--grep: {e}")))?;
    let path = ctx.agent()?.paths.node_log();
    let wanted = |line: &str| pattern.as_ref().is_none_or(|p| p.is_match(line));

    let mut reader = match File::open(&path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Failure::not_found(format!("{} does not exist; the node never ran", path.display())));
        }
        Err(error) => return Err(Failure::failed(format!("cannot read {}: {error}", path.display()))),
    };
    let mut last = VecDeque::new();
    while let Some(line) = next_line(&mut reader)? {
        if wanted(&line) {
            if last.len() == args.lines {
                last.pop_front();
            }
            if args.lines > 0 {
                last.push_back(line);
            }
        }
    }
    let last = Vec::from(last);
    if args.follow {
        return follow(&path, reader, &last, wanted);
    }
    let none = if last.is_empty() { "no lines".to_owned() } else { last.join("\n") };
    Ok(Reply::new(json!({"path": path, "lines": last}), none))
}

fn next_line(reader: &mut impl BufRead) -> Result<Option<String>, Failure> {
    let mut bytes = Vec::new();
    if reader.read_until(b'\n', &mut bytes)? == 0 {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Prints new lines until the reader of our output goes away.
fn follow(
    path: &Path,
    mut reader: BufReader<File>,
    first: &[String],
    wanted: impl Fn(&str) -> bool,
) -> CommandResult {
    let mut out = std::io::stdout();
    let done = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Ok(Reply::new(json!({}), "")),
        _ => Err(Failure::new(Exit::Failed, "failed", error.to_string())),
    };
    for line in first {
        if let Err(error) = writeln!(out, "{line}") {
            return done(error);
        }
    }
    loop {
        while let Some(line) = next_line(&mut reader)? {
            if wanted(&line)
                && let Err(error) = writeln!(out, "{line}")
            {
                return done(error);
            }
        }
        std::thread::sleep(Duration::from_millis(250));
        // The node renames a full log and begins a new one under the same name.
        let current = reader.get_ref().metadata()?;
        if std::fs::metadata(path).is_ok_and(|m| m.ino() != current.ino()) {
            while let Some(line) = next_line(&mut reader)? {
                if wanted(&line) {
                    let _ = writeln!(out, "{line}");
                }
            }
            reader = BufReader::new(File::open(path)?);
        }
    }
}
