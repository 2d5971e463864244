//! The hidden commands of the program, and two stand-in runtimes that tests drive through the text of the prompt.
//!
//! With `-p` it speaks the streaming mode, else it reads a terminal and reports to the node like a hook.
//! Words in a prompt tell the stand-in what to do: `sleep:<ms>`, `die:<code>`, `error`, `quota`, `fork`,
//! `orphan` (outlive the supervisor).

use std::ffi::OsString;
use std::io::{BufRead, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode};
use std::time::Duration;

use instar_sessions::process;
use serde_json::{Value, json};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(code) = instar_sessions::supervisor::dispatch(&arguments) {
        return code;
    }
    let words: Vec<String> = arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    match words.first().map(String::as_str) {
        Some("mcp") => ExitCode::SUCCESS,
        Some("guard") => guard(&words[1..]),
        _ if words.iter().any(|w| w == "-p") => stdio(&words),
        _ => tui(&words),
    }
}

/// Waits until the test that holds the other end of its input is gone, then ends all that the test started.
fn guard(words: &[String]) -> ExitCode {
    let [state_dir, tmux_server] = words else { return ExitCode::from(2) };
    let _ = std::io::stdin().read(&mut [0]);
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let _ = Command::new("tmux").args(["-L", tmux_server, "kill-server"]).output();
    // A supervisor may start its runtime while its files are looked at, so one empty look is not enough.
    let mut empty_looks = 0;
    while empty_looks < 3 {
        let left: Vec<i32> = process::snapshot()
            .into_values()
            .filter(|found| found.pid != own && found.state != 'Z')
            .map(|found| found.pid)
            .filter(|pid| {
                process::command_line(*pid).contains(state_dir.as_str())
                    || process::environment_value(*pid, "INSTAR_STATE_DIR").as_ref() == Some(state_dir)
            })
            .collect();
        empty_looks = if left.is_empty() { empty_looks + 1 } else { 0 };
        for pid in left {
            process::signal(pid, rustix::process::Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    ExitCode::SUCCESS
}

fn stdio(words: &[String]) -> ExitCode {
    let (session, resumed) = session(words);
    if resumed && !transcript(&session).exists() {
        eprintln!("No conversation found with session ID: {session}");
        return ExitCode::from(1);
    }
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
        match value["type"].as_str() {
            Some("control_request") => say(&json!({"type": "control_response", "response":
                {"subtype": "success", "request_id": value["request_id"]}})),
            Some("user") => {
                let text = value["message"]["content"][0]["text"].as_str().unwrap_or_default();
                let uuid = &value["uuid"];
                // Before anything is said, because tests look at the transcript once the input counts as given.
                record(&session, text);
                say(&json!({"type": "command_lifecycle", "command_uuid": uuid, "state": "started"}));
                say(&json!({"type": "system", "subtype": "init", "session_id": session, "model": "puppet"}));
                say(&json!({"type": "user", "uuid": uuid, "isReplay": true}));
                let status =
                    [("quota", 429), ("error", 529)].into_iter().find(|(word, _)| text.contains(word));
                if let Some(code) = act(text) {
                    return code;
                }
                say(
                    &json!({"type": "assistant", "message": {"content": [{"type": "text", "text": "done"}]}}),
                );
                say(
                    &json!({"type": "result", "subtype": "success", "is_error": status.is_some(), "session_id": session,
                    "total_cost_usd": 0.5, "api_error_status": status.map(|(_, status)| status)}),
                );
            }
            _ => {}
        }
    }
    ExitCode::SUCCESS
}

/// A terminal program: swallows as many Enter keys as the file `swallow` in its directory says, then submits.
fn tui(words: &[String]) -> ExitCode {
    let (session, _) = session(words);
    raw_terminal();
    print!("\x1b[?2004h");
    let _ = std::io::stdout().flush();
    if std::fs::read_to_string("dialog").is_ok() && !ask_for_trust() {
        return ExitCode::from(1);
    }
    report(&json!({"event": "SessionStart", "session_id": session, "transcript_path": transcript(&session)}));
    let mut swallow: usize =
        std::fs::read_to_string("swallow").ok().and_then(|n| n.trim().parse().ok()).unwrap_or(0);
    let mut composer = String::new();
    let mut input = std::io::stdin().lock();
    let mut byte = [0];
    let mut pasted = Vec::new();
    let mut in_paste = false;
    while input.read_exact(&mut byte).is_ok() {
        pasted.push(byte[0]);
        if pasted.ends_with(b"\x1b[200~") {
            in_paste = true;
            pasted.clear();
        } else if pasted.ends_with(b"\x1b[201~") {
            in_paste = false;
            let text = &pasted[..pasted.len() - 6];
            composer.push_str(&String::from_utf8_lossy(text).replace('\r', "\n"));
            pasted.clear();
        } else if in_paste {
        } else if byte[0] == b'\r' && swallow > 0 {
            swallow -= 1;
            pasted.clear();
        } else if byte[0] == b'\r' {
            let text = std::mem::take(&mut composer);
            pasted.clear();
            if text.trim() == "/exit" {
                return ExitCode::SUCCESS;
            }
            let ulid = instar_hooks::ulid_of_prompt(&text);
            record(&session, &text);
            report(&json!({"event": "UserPromptSubmit", "session_id": session, "ulid": ulid}));
            if let Some(code) = act(&text) {
                return code;
            }
            print!("answered\r\n");
            let _ = std::io::stdout().flush();
            report(&json!({"event": "Stop", "session_id": session}));
        } else if byte[0] == 0x15 {
            composer.clear();
            pasted.clear();
        }
    }
    ExitCode::SUCCESS
}

fn ask_for_trust() -> bool {
    let mut yes = false;
    let mut input = std::io::stdin().lock();
    loop {
        let mark = |chosen: bool| if chosen { "❯" } else { " " };
        print!(
            "\x1b[2J\x1b[HQuick safety check: do you trust it?\r\n {} No, exit\r\n {} Yes, I trust this folder\r\n",
            mark(!yes),
            mark(yes)
        );
        let _ = std::io::stdout().flush();
        let mut key = [0; 8];
        match input.read(&mut key) {
            Ok(n) if key[..n].ends_with(b"B") => yes = true,
            Ok(n) if key[..n].ends_with(b"A") => yes = false,
            Ok(n) if n > 0 && key[n - 1] == b'\r' => return yes,
            Ok(n) if n > 0 => {}
            _ => return false,
        }
    }
}

fn raw_terminal() {
    let stdin = rustix::stdio::stdin();
    if let Ok(mut terminal) = rustix::termios::tcgetattr(stdin) {
        terminal.make_raw();
        let _ = rustix::termios::tcsetattr(stdin, rustix::termios::OptionalActions::Now, &terminal);
    }
}

/// Does what the words of the prompt say; an exit code ends the program.
fn act(text: &str) -> Option<ExitCode> {
    for word in text.split_whitespace() {
        match word.split_once(':') {
            Some(("sleep", ms)) => std::thread::sleep(Duration::from_millis(ms.parse().unwrap_or(0))),
            Some(("die", code)) => return Some(ExitCode::from(code.parse::<u8>().unwrap_or(1))),
            _ => {}
        }
        if word == "fork" {
            let _ = Command::new("setsid").args(["sleep", "600"]).spawn();
            let _ = Command::new("sleep").arg("601").spawn();
        }
        if word == "orphan" {
            let _ = rustix::process::set_parent_process_death_signal(None);
        }
    }
    None
}

fn session(words: &[String]) -> (String, bool) {
    let value = |flag: &str| words.iter().find_map(|w| w.strip_prefix(flag)).map(str::to_owned);
    match value("--resume=") {
        Some(id) => (id, true),
        None => (value("--session-id=").unwrap_or_default(), false),
    }
}

fn transcript(session: &str) -> std::path::PathBuf {
    let cwd = std::env::current_dir().unwrap_or_default();
    let home = std::env::var("HOME").unwrap_or_default();
    let dir = instar_sessions::transcript::project_dir_name(&cwd);
    std::path::Path::new(&home).join(".claude/projects").join(dir).join(format!("{session}.jsonl"))
}

fn record(session: &str, text: &str) {
    let path = transcript(session);
    let _ = path.parent().map(std::fs::create_dir_all);
    let line = json!({"type": "user", "cwd": std::env::current_dir().unwrap_or_default(),
        "message": {"role": "user", "content": text}});
    if let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path) {
        let _ = writeln!(file, "{line}");
    }
}

fn say(value: &Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}

fn report(facts: &Value) {
    let socket = std::env::var("INSTAR_SOCKET").unwrap_or_default();
    let mut body = facts.clone();
    body["id"] = json!(format!("{:?}", std::time::SystemTime::now()));
    body["at_ms"] = json!(instar_state::time::now_ms());
    body["runtime"] = json!("claude");
    body["instar_session_id"] = json!(std::env::var("INSTAR_SESSION_ID").unwrap_or_default());
    body["hook_ms"] = json!(1.0);
    let text = body.to_string();
    if let Ok(mut stream) = UnixStream::connect(socket) {
        let _ = write!(
            stream,
            "POST /hooks/events HTTP/1.1\r\nhost: agent.sock\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
        let _ = stream.read(&mut [0; 64]);
    }
}
