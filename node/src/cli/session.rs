//! `instar session`

use std::io::{BufRead, IsTerminal, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use http::Method;
use serde_json::{Map, Value, json};

use super::reply::{one_line, shown, table};
use super::{Agent, CommandResult, Ctx, Exit, Failure, Reply, ages, node, owner, programs};
use crate::client::{Call, encode};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Running sessions
    List {
        /// Also those that ended
        #[arg(long)]
        all: bool,
    },
    /// Start a session
    Spawn(SpawnArgs),
    /// Queue a text for a session
    Send {
        /// Name or id
        name: String,
        /// The text; - reads stdin
        text: String,
        /// Interrupt the running turn
        #[arg(long)]
        steer: bool,
    },
    /// Press a key in a session's terminal
    Key {
        /// Name or id
        name: String,
        /// Enter, Escape, Up, Down, Tab, C-c, a digit …
        key: String,
    },
    /// Show what a session printed
    Output {
        /// Name or id
        name: String,
        /// Number of last lines
        #[arg(short = 'n', long, default_value_t = 100, value_name = "N")]
        lines: u32,
        /// Go on with new output
        #[arg(short, long)]
        follow: bool,
    },
    /// Watch a session and type into it
    Attach {
        /// Name or id
        name: String,
        /// Continue a session without a terminal in one
        #[arg(long)]
        take_over: bool,
    },
    /// Continue a session without its terminal
    Release {
        /// Name or id
        name: String,
    },
    /// Sessions that wait for a slot
    Queue {
        /// Take this one out
        #[arg(long, value_name = "ID")]
        cancel: Option<String>,
    },
    /// What was queued for a session and where it stands
    Inbox {
        /// Name or id
        name: String,
        /// Only this state: queued, injected, acked, failed, expired
        #[arg(long)]
        state: Option<String>,
    },
    /// Messages that waited for six hours, and what becomes of them
    Overdue {
        /// Give this one to a session
        #[arg(long, value_name = "ULID", conflicts_with = "discard")]
        run: Option<String>,
        /// Drop this one
        #[arg(long = "drop", value_name = "ULID")]
        discard: Option<String>,
    },
    /// Interrupt the running turn
    Interrupt {
        /// Name or id
        name: String,
    },
    /// End a session
    Kill {
        /// Name or id
        name: String,
        /// Even if there is a reason to keep it
        #[arg(long)]
        force: bool,
    },
    /// Continue a session that ended
    Resume {
        /// Name or id
        name: String,
        /// First input
        #[arg(long)]
        prompt: Option<String>,
    },
    /// End a session and continue it in a fresh process
    Refresh {
        /// Name or id
        name: String,
        /// First input afterwards
        #[arg(long)]
        prompt: Option<String>,
        /// For the log
        #[arg(long)]
        reason: Option<String>,
    },
    /// Forget sessions that ended long ago
    Cleanup,
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("input").required(true).args(["prompt", "prompt_file", "stdin"]))]
pub(crate) struct SpawnArgs {
    /// Letters, digits, _ and -
    #[arg(long)]
    name: String,
    /// First input
    #[arg(long)]
    prompt: Option<String>,
    /// File with the first input
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// - reads the first input from stdin
    #[arg(value_name = "-", value_parser = ["-"])]
    stdin: Option<String>,
    /// fast, balanced, capable, or a model id
    #[arg(long)]
    model: Option<String>,
    /// Longest life in minutes
    #[arg(long, value_name = "N")]
    max_minutes: Option<u32>,
    /// Most turns
    #[arg(long, value_name = "N")]
    max_turns: Option<u32>,
    /// tmux or stdio
    #[arg(long, value_parser = ["tmux", "stdio"])]
    transport: Option<String>,
    /// Folder inside the project
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Tools that it may use without asking
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    allowed_tools: Vec<String>,
}

pub(crate) fn run(ctx: &Ctx, command: Command) -> CommandResult {
    let agent = ctx.agent()?;
    let at = |name: &str, what: &str| format!("/sessions/{}{what}", encode(name));
    match command {
        Command::List { all } => {
            let path = if all { "/sessions" } else { "/sessions?status=running" };
            let value = node::call(ctx, &agent, Call::get(path))?;
            let text = list(&value["sessions"]);
            Ok(Reply::new(value, text))
        }
        Command::Spawn(args) => spawn(ctx, &agent, args),
        Command::Send { name, text, steer } => {
            let text = if text == "-" { read_stdin()? } else { text };
            // The key makes a repeated request harmless.
            let key = uuid::Uuid::new_v4().to_string();
            let call = Call::post(at(&name, "/input"), json!({"text": text, "steer": steer}));
            let value = node::call(ctx, &agent, call.header("idempotency-key", key))?;
            let text = format!("{} as {}", word(&value["state"]), word(&value["ulid"]));
            Ok(Reply::new(value, text))
        }
        Command::Key { name, key } => {
            done(ctx, &agent, Call::post(at(&name, "/key"), json!({"key": key})), "pressed")
        }
        Command::Output { name, lines, follow } => {
            if follow {
                return watch(ctx, &agent, &name, None);
            }
            let value = node::call(ctx, &agent, Call::get(at(&name, &format!("/output?lines={lines}"))))?;
            let text = value["output"].as_str().filter(|t| !t.is_empty()).map_or("no output".into(), shown);
            Ok(Reply::new(value, text))
        }
        Command::Attach { name, take_over } => attach(ctx, &agent, &name, take_over),
        Command::Release { name } => {
            let value = switch_transport(ctx, &agent, &name, "stdio")?;
            Ok(Reply::new(value, "goes on without a terminal"))
        }
        Command::Queue { cancel: Some(id) } => {
            let call = Call::new(Method::DELETE, format!("/sessions/queue/{}", encode(&id)));
            done(ctx, &agent, call, "taken out of the queue")
        }
        Command::Queue { cancel: None } => {
            let value = node::call(ctx, &agent, Call::get("/sessions/queue"))?;
            let text = queue(&value["queue"]);
            Ok(Reply::new(value, text))
        }
        Command::Inbox { name, state } => {
            let query = state.map(|s| format!("?state={}", encode(&s))).unwrap_or_default();
            let value = node::call(ctx, &agent, Call::get(at(&name, &format!("/inbox{query}"))))?;
            let text = inbox(&value["messages"]);
            Ok(Reply::new(value, text))
        }
        Command::Overdue { run: None, discard: None } => {
            let value = node::call(ctx, &agent, Call::get("/sessions/overdue"))?;
            let text = overdue(&value["messages"]);
            Ok(Reply::new(value, text))
        }
        Command::Overdue { run, discard } => {
            let (decision, ulid, text) = match (run, discard) {
                (Some(ulid), _) => ("run", ulid, "goes to a session"),
                (None, discard) => ("drop", discard.unwrap_or_default(), "dropped"),
            };
            let path = format!("/sessions/overdue/{}", encode(&ulid));
            done(ctx, &agent, Call::post(path, json!({"decision": decision})).patience(STARTING), text)
        }
        Command::Interrupt { name } => {
            done(ctx, &agent, Call::post(at(&name, "/interrupt"), json!({})), "interrupted")
        }
        Command::Kill { name, force } => {
            let query = if force { "?force=true" } else { "" };
            let call = Call::new(Method::DELETE, at(&name, query)).patience(Duration::from_secs(65));
            done(ctx, &agent, call, "ended")
        }
        Command::Resume { name, prompt } => {
            let call = Call::post(at(&name, "/resume"), without_nulls(json!({"prompt": prompt})));
            started(ctx, &agent, call.patience(STARTING))
        }
        Command::Refresh { name, prompt, reason } => {
            let body = json!({"sessionName": name, "followUpPrompt": prompt, "reason": reason});
            let call = Call::post("/sessions/refresh", without_nulls(body)).patience(STARTING);
            done(ctx, &agent, call, "is continued in a fresh process")
        }
        Command::Cleanup => {
            let value = node::call(ctx, &agent, Call::post("/sessions/cleanup-stale", json!({})))?;
            let text = format!("forgot {} sessions", value["cleaned"]);
            Ok(Reply::new(value, text))
        }
    }
}

/// A resumed session may take two minutes until it is ready.
const STARTING: Duration = Duration::from_secs(155);

fn spawn(ctx: &Ctx, agent: &Agent, args: SpawnArgs) -> CommandResult {
    let prompt = match (args.prompt, args.prompt_file) {
        (Some(text), _) => text,
        (None, Some(file)) => {
            let path = ctx.cwd.join(file);
            std::fs::read_to_string(&path).map_err(|e| {
                Failure::new(Exit::NotFound, "not_found", format!("cannot read {}: {e}", path.display()))
            })?
        }
        (None, None) => read_stdin()?,
    };
    if prompt.trim().is_empty() {
        return Err(Failure::usage("the first input is empty"));
    }
    let body = json!({
        "name": args.name,
        "prompt": prompt,
        "model": args.model,
        "maxDurationMinutes": args.max_minutes,
        "maxTurns": args.max_turns,
        "transport": args.transport,
        "cwd": args.cwd.map(|dir| ctx.absolute(&dir)),
        "allowedTools": args.allowed_tools,
    });
    started(ctx, agent, Call::post("/sessions/spawn", without_nulls(body)).patience(STARTING))
}

fn started(ctx: &Ctx, agent: &Agent, call: Call) -> CommandResult {
    let value = node::call(ctx, agent, call)?;
    let text = match value["position"].as_u64() {
        Some(position) => format!(
            "all slots are taken; it waits at place {position} ({}); `instar session queue` shows those that wait",
            word(&value["id"])
        ),
        None => format!("{} {} ({})", word(&value["name"]), word(&value["status"]), word(&value["id"])),
    };
    Ok(Reply::new(value, text))
}

fn done(ctx: &Ctx, agent: &Agent, call: Call, text: &str) -> CommandResult {
    Ok(Reply::new(node::call(ctx, agent, call)?, text))
}

/// The node waits up to two minutes for the end of the turn.
fn switch_transport(ctx: &Ctx, agent: &Agent, name: &str, transport: &str) -> Result<Value, Failure> {
    let path = format!("/sessions/{}/transport", encode(name));
    let call = Call::post(path, json!({"transport": transport}));
    node::call(ctx, agent, call.patience(Duration::from_secs(185)))
}

fn attach(ctx: &Ctx, agent: &Agent, name: &str, take_over: bool) -> CommandResult {
    if ctx.flags.json {
        return Err(Failure::usage("attach is for people; use `session output` and `session send`"));
    }
    owner::must_be_askable(ctx, "attaching to a session")?;
    let mut record = node::call(ctx, agent, Call::get(format!("/sessions/{}", encode(name))))?;
    if take_over && record["tmuxSession"].is_null() {
        ctx.note("The session is continued in a terminal when its turn has ended; `instar session release` undoes it.");
        let moved = switch_transport(ctx, agent, name, "tmux")?;
        let id = word(&moved["sessionId"]);
        record = node::call(ctx, agent, Call::get(format!("/sessions/{}", encode(&id))))?;
    }
    let Some(tmux_session) = record["tmuxSession"].as_str() else {
        ctx.note(
            "This session has no terminal: its output is shown, each line you type is sent. Ctrl-C leaves it; \
             --take-over continues it in a terminal.",
        );
        return watch(ctx, agent, name, Some(typed_lines()));
    };
    let configured = agent.config(ctx)?.get(instar_state::config::keys::SESSIONS_TMUX_PATH);
    let tmux = configured.or_else(|| programs::find(ctx, "tmux")).ok_or_else(|| {
        Failure::new(
            Exit::NoAgent,
            "tmux_missing",
            "tmux was not found; install it (for example `apt install tmux`)",
        )
    })?;
    let error = std::process::Command::new(tmux)
        .args(["-L", &agent.paths.tmux_server(), "attach-session", "-t", &format!("={tmux_session}")])
        .exec();
    Err(Failure::failed(format!("tmux could not be started: {error}")))
}

/// Lines from the terminal. The thread ends with the process.
fn typed_lines() -> tokio::sync::mpsc::Receiver<String> {
    let (tx, rx) = tokio::sync::mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if tx.blocking_send(line).is_err() {
                return;
            }
        }
    });
    rx
}

/// Prints output as it comes, and sends what is typed.
fn watch(
    ctx: &Ctx,
    agent: &Agent,
    name: &str,
    typed: Option<tokio::sync::mpsc::Receiver<String>>,
) -> CommandResult {
    if ctx.flags.json {
        return Err(Failure::usage(
            "--follow prints as it comes and --json prints one document; use one of them",
        ));
    }
    let client = agent.client(ctx);
    let input = format!("/sessions/{}/input", encode(name));
    let ended = node::block_on(async {
        let mut feed = Feed::default();
        let mut out = std::io::stdout();
        let stream = client.stream(Call::get(format!("/sessions/{}/stream", encode(name))), |bytes| {
            let new = feed.push(bytes);
            new.is_empty() || write!(out, "{new}").and_then(|()| out.flush()).is_ok()
        });
        let sender = async {
            let Some(mut lines) = typed else { return std::future::pending().await };
            while let Some(line) = lines.recv().await {
                let key = uuid::Uuid::new_v4().to_string();
                let call = Call::post(input.clone(), json!({"text": line})).header("idempotency-key", key);
                let sent = client.send(call).await;
                match sent {
                    Ok(answer) if answer.is_success() => {}
                    Ok(answer) => super::say(&node::refusal(&answer).message),
                    Err(error) => super::say(&error.to_string()),
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = stream => ended,
            () = sender => Ok(None),
        }
    })??;
    match ended {
        Some(refused) => Err(node::refusal(&refused)),
        None => Ok(Reply::new(json!({"ended": true}), "")),
    }
}

/// Server-sent events that each carry the whole visible output; yields what is new.
#[derive(Debug, Default)]
struct Feed {
    pending: Vec<u8>,
    last: Vec<String>,
}

impl Feed {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut new = String::new();
        while let Some(end) = self.pending.windows(2).position(|w| w == b"\n\n") {
            let event: Vec<u8> = self.pending.drain(..end + 2).collect();
            let event = String::from_utf8_lossy(&event);
            let data: String =
                event.lines().filter_map(|l| l.strip_prefix("data:")).map(str::trim_start).collect();
            let Ok(value) = serde_json::from_str::<Value>(&data) else { continue };
            let Some(output) = value["output"].as_str() else { continue };
            let lines: Vec<String> = output.lines().map(|l| shown(l).trim_end().to_owned()).collect();
            for line in &lines[overlap(&self.last, &lines)..] {
                new.push_str(line);
                new.push('\n');
            }
            self.last = lines;
        }
        new
    }
}

/// Number of first lines of `new` that were the last ones of `old`.
fn overlap(old: &[String], new: &[String]) -> usize {
    (0..=old.len().min(new.len())).rev().find(|n| old[old.len() - n..] == new[..*n]).unwrap_or(0)
}

fn list(sessions: &Value) -> String {
    let rows: Vec<[String; 6]> = sessions
        .as_array()
        .into_iter()
        .flatten()
        .map(|s| {
            [
                one_line(&word(&s["name"]), 40),
                word(&s["status"]),
                word(&s["activity"]),
                word(&s["transport"]),
                ages::since(&s["startedAt"]),
                one_line(&word(&s["conversation"]), 60),
            ]
        })
        .collect();
    table(["name", "status", "activity", "transport", "age", "conversation"], &rows, "no sessions")
}

fn queue(waiting: &Value) -> String {
    let rows: Vec<[String; 6]> = waiting
        .as_array()
        .into_iter()
        .flatten()
        .map(|w| {
            [
                word(&w["position"]),
                one_line(&word(&w["name"]), 40),
                word(&w["level"]),
                ages::since(&w["queuedAt"]),
                one_line(&word(&w["triggeredBy"]), 60),
                word(&w["id"]),
            ]
        })
        .collect();
    table(["place", "name", "priority", "age", "asked by", "id"], &rows, "no session waits for a slot")
}

fn inbox(messages: &Value) -> String {
    let rows: Vec<[String; 5]> = messages
        .as_array()
        .into_iter()
        .flatten()
        .map(|m| {
            [
                word(&m["ulid"]),
                word(&m["state"]),
                word(&m["attempts"]),
                ages::since(&m["queuedAt"]),
                one_line(&word(&m["error"]), 60),
            ]
        })
        .collect();
    table(["ulid", "state", "attempts", "age", "error"], &rows, "nothing was queued for this session")
}

fn overdue(messages: &Value) -> String {
    let rows: Vec<[String; 4]> = messages
        .as_array()
        .into_iter()
        .flatten()
        .map(|m| {
            [
                word(&m["ulid"]),
                ages::since(&m["queuedAt"]),
                one_line(&word(&m["conversation"]), 40),
                one_line(&word(&m["head"]), 60),
            ]
        })
        .collect();
    table(["ulid", "age", "conversation", "begins with"], &rows, "no message waits for a decision")
}

/// A value as one word; nothing for null.
pub(crate) fn word(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => shown(text),
        other => other.to_string(),
    }
}

/// An object without its null members.
pub(crate) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            Value::Object(object.into_iter().filter(|(_, v)| !v.is_null()).collect::<Map<_, _>>())
        }
        other => other,
    }
}

/// Everything on stdin, at most 1 MiB.
pub(crate) fn read_stdin() -> Result<String, Failure> {
    if std::io::stdin().is_terminal() {
        super::say("Reading from the terminal; end with Ctrl-D.");
    }
    let mut text = String::new();
    std::io::stdin().lock().take(1 << 20).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feed_prints_only_what_is_new_however_it_is_cut() {
        let event =
            |text: &str| format!("event: output\ndata: {}\n\n", json!({"session": "s", "output": text}));
        let all = event("a\nb") + ": keep-alive\n\n" + &event("b\nc") + &event("b\nc") + &event("x");
        for cut in 0..all.len() {
            let mut feed = Feed::default();
            let new = feed.push(&all.as_bytes()[..cut]) + &feed.push(&all.as_bytes()[cut..]);
            assert_eq!(new, "a\nb\nc\nx\n");
        }
    }

    #[test]
    fn lists_say_when_they_are_empty() {
        assert_eq!(list(&json!([])), "no sessions");
        assert_eq!(queue(&Value::Null), "no session waits for a slot");
        assert_eq!(inbox(&Value::Null), "nothing was queued for this session");
    }
}
