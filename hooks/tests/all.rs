//! The real executable with canned events.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use instar_hooks::binding::SessionBinding;
use instar_hooks::settings::{self, REGISTRATIONS};
use instar_hooks::{Event, HookReport, spool};
use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_instar-hook");
const ULID: &str = "01HXAMZ9V4B7Q2K3M5N6P7R8ST";
const SESSION: &str = "0b9c1a2d-1111-4222-8333-944445555666";

mod answers {
    use super::*;

    #[test]
    fn a_destructive_command_is_denied_in_the_runtimes_words() {
        let agent = Agent::new();
        let done = agent.hook(&["on", "PreToolUse", "--runtime", "claude"], &bash("rm -rf /"));
        assert_eq!(done.code, Some(0));
        assert_eq!(
            done.stdout,
            r#"{"hookSpecificOutput":{"hookEventName":"PreToolUse","permissionDecision":"deny","permissionDecisionReason":"Not run: this command removes the root directory. That is never allowed from a session; if it is truly wanted, the owner does it by hand."}}"#
        );
    }

    #[test]
    fn an_everyday_command_gets_no_answer() {
        let done = Agent::new().hook(&["on", "PreToolUse"], &bash("cargo test"));
        assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (Some(0), "", ""));
    }

    #[test]
    fn codex_is_never_asked_to_ask() {
        let agent = Agent::new();
        let mut event = bash("echo \"unterminated");
        assert!(agent.hook(&["on", "PreToolUse"], &event).stdout.contains(r#""permissionDecision":"ask""#));
        event["turn_id"] = json!("t");
        event["tool_input"] = json!({ "cmd": ["bash", "-lc", "echo \"unterminated"] });
        event["tool_name"] = json!("exec_command");
        let answer: Value =
            serde_json::from_str(&agent.hook(&["on", "PreToolUse"], &event).stdout).expect("JSON");
        let fields: Vec<&String> =
            answer["hookSpecificOutput"].as_object().expect("an object").keys().collect();
        assert_eq!(fields, ["hookEventName", "permissionDecision", "permissionDecisionReason"]);
        assert_eq!(answer["hookSpecificOutput"]["permissionDecision"], "deny");
    }

    #[test]
    fn level_two_reminds_with_the_agents_own_words() {
        let agent = Agent::new();
        agent.write(".instar/config.json", r#"{"projectName":"ann","safety":{"level":2}}"#);
        let done = agent.hook(&["on", "PreToolUse"], &bash("git reset --hard"));
        assert!(
            done.stdout.contains("additionalContext") && done.stdout.contains("# ann"),
            "{}",
            done.stdout
        );
        assert!(!done.stdout.contains("permissionDecision"), "{}", done.stdout);
    }

    #[test]
    fn permission_prompts_follow_the_configuration_and_the_guard() {
        let agent = Agent::new();
        let mut event = bash("cargo test");
        event["hook_event_name"] = json!("PermissionRequest");
        let ask = |event: &Value| agent.hook(&["on", "PermissionRequest"], event).stdout;
        assert!(
            ask(&event).contains(r#""behavior":"allow""#),
            "bypass is the default of a readable configuration"
        );
        event["tool_input"]["command"] = json!("rm -rf ~");
        assert!(ask(&event).contains(r#""behavior":"deny""#));
        event["tool_input"]["command"] = json!("cargo test");
        agent.write(".instar/config.json", r#"{"sessions":{"permissionMode":"dontAsk"}}"#);
        assert_eq!(ask(&event), "");
        agent.bind(true);
        assert!(ask(&event).contains(r#""behavior":"deny""#), "never in a session that serves a peer");
    }

    #[test]
    fn the_corpus_is_judged_alike_through_the_program() {
        let agent = Agent::new();
        // Places of this test's agent differ from the corpus's; what names those is left to the unit test.
        let elsewhere = ["/home", "/tmp/*", "../app", "../sibling", "rm -rf app", "instar-ann"];
        for line in include_str!("../fixtures/commands.txt").lines().filter(|line| !line.starts_with('#')) {
            let (expected, command) = line.split_once('\t').expect("expected result, tab, command");
            let command = command.replace("\\n", "\n");
            if elsewhere.iter().any(|place| command.contains(place)) {
                continue;
            }
            let done = agent.hook(&["dangerous-command-guard"], &bash(&command));
            match expected {
                "pass" => assert_eq!(done.stdout, "", "{command:?}"),
                "ask" => assert!(
                    done.stdout.contains(r#""permissionDecision":"ask""#),
                    "{command:?}: {}",
                    done.stdout
                ),
                _ => assert!(denied(&done), "{command:?}: {}", done.stdout),
            }
        }
    }
}

mod input {
    use super::*;

    #[test]
    fn malformed_input_stops_a_tool_and_nothing_else() {
        let agent = Agent::new();
        for bytes in [&b""[..], b"{", b"[1]", b"\xff\xfe{}"] {
            let guard = agent.run(&["on", "PreToolUse"], bytes, |_| {});
            assert_eq!((guard.code, guard.stdout.as_str()), (Some(2), ""), "{bytes:?}");
            assert!(guard.stderr.contains("command not run"), "{}", guard.stderr);
            let observer = agent.run(&["on", "Stop"], bytes, |_| {});
            assert_eq!(
                (observer.code, observer.stdout.as_str(), observer.stderr.as_str()),
                (Some(0), "", "")
            );
        }
    }

    #[test]
    fn nine_megabytes_are_too_much() {
        let agent = Agent::new();
        let event = bash(&"a".repeat(9 << 20)).to_string();
        let done = agent.run(&["on", "PreToolUse"], event.as_bytes(), |_| {});
        assert_eq!(done.code, Some(2));
        assert!(done.stderr.contains("longer than 8 MiB"), "{}", done.stderr);
        assert_eq!(agent.run(&["on", "PostToolUse"], event.as_bytes(), |_| {}).code, Some(0));
    }

    #[test]
    fn input_that_does_not_end_is_not_waited_for() {
        let agent = Agent::new();
        let started = Instant::now();
        let mut child = agent.command(&["on", "PreToolUse"]).stdin(Stdio::piped()).spawn().expect("starts");
        let mut open = child.stdin.take().expect("piped");
        open.write_all(b"{\"tool_name\":").expect("writes");
        let done = finished(child);
        drop(open);
        assert_eq!(done.code, Some(2));
        assert!(
            done.stderr.contains("within a second") && started.elapsed() < Duration::from_secs(5),
            "{}",
            done.stderr
        );
    }

    #[test]
    fn a_foreign_project_is_left_alone() {
        let empty = tempfile::tempdir().expect("a directory");
        for bytes in [bash("rm -rf /").to_string(), "{".to_owned()] {
            let mut command = Command::new(PROGRAM);
            command.args(["on", "PreToolUse"]).env_clear().current_dir(empty.path());
            let done =
                feed(&mut command, bytes.replace("CWD", &empty.path().display().to_string()).as_bytes());
            assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (Some(0), "", ""));
        }
    }

    #[test]
    fn arguments_that_are_none_are_named_and_unknown_events_ignored() {
        let agent = Agent::new();
        let done = agent.run(&["frobnicate"], b"{}", |_| {});
        assert_eq!(done.code, Some(64));
        assert!(done.stderr.contains("\"frobnicate\" is no hook and no event"), "{}", done.stderr);
        assert_eq!(agent.run(&["on", "SomethingNew"], b"{}", |_| {}).code, Some(0));
        assert!(agent.run(&["--version"], b"", |_| {}).stdout.starts_with("instar-hook "));
    }

    #[test]
    fn a_canned_event_can_be_tried_without_a_report() {
        let agent = Agent::new();
        agent.write("event.json", &bash("rm -rf /").to_string());
        let file = agent.path("event.json").display().to_string();
        let done = agent.run(&["test", "dangerous-command-guard", "--event", &file], b"", |_| {});
        assert!(done.stdout.contains(r#""permissionDecision":"deny""#), "{}", done.stderr);
        assert!(agent.spooled().is_empty());
    }
}

mod firewall {
    use super::*;

    #[test]
    fn it_is_closed_when_the_node_is_down() {
        let agent = Agent::new();
        assert_eq!(agent.hook(&["on", "PreToolUse"], &read("x")).stdout, "", "nobody is served");
        let by_environment = agent.run(&["on", "PreToolUse"], read("x").to_string().as_bytes(), |command| {
            command.env("INSTAR_SERVES_PEER", "1");
        });
        assert!(denied(&by_environment), "{}", by_environment.stdout);
        agent.bind(true);
        assert!(denied(&agent.hook(&["on", "PreToolUse"], &read("x"))), "by the binding");
    }

    #[test]
    fn the_environment_cannot_open_it() {
        let agent = Agent::new();
        agent.bind(true);
        let other = Agent::new();
        let tampered = |session: &str, token: &str| {
            let mut event = read("x");
            event["session_id"] = json!("another");
            agent.run(&["on", "PreToolUse"], event.to_string().as_bytes(), |command| {
                command
                    .env("INSTAR_SERVES_PEER", "0")
                    .env("INSTAR_SESSION_ID", session)
                    .env("INSTAR_AUTH_TOKEN", token)
                    .env("INSTAR_STATE_DIR", other.path(".instar"));
            })
        };
        assert!(denied(&tampered(SESSION, "")));
        assert!(denied(&tampered("", &format!("ist_{SESSION}_abcdefgh"))));
        agent.write(&format!(".instar/run/bindings/{SESSION}.json"), "{");
        assert!(denied(&tampered(SESSION, "")), "an unreadable binding is a closed one");
    }

    #[test]
    fn the_node_decides() {
        let agent = Agent::new();
        agent.bind(true);
        let node = Node::start(&agent, |request| match request.path.as_str() {
            "/threadline/authorize" if request.body["tool"] == "Read" => {
                Some((200, json!({ "decision": "allow" })))
            }
            "/threadline/authorize" => Some((200, json!({ "decision": "deny", "reason": "no-grant" }))),
            _ => Some((200, json!({ "ok": true }))),
        });
        assert_eq!(
            agent.hook(&["on", "PreToolUse"], &read("x")).stdout,
            "",
            "silence leaves the runtime's own list in force"
        );
        let asked = node.request("/threadline/authorize");
        assert_eq!(asked.body["sessionId"], SESSION);
        assert_eq!(asked.body["input"]["file_path"], "x");
        assert!(asked.head.contains("Authorization: Bearer ist_x_y"), "{}", asked.head);
        let done = agent.hook(&["on", "PreToolUse"], &bash("ls"));
        assert!(denied(&done) && done.stdout.contains("no-grant"), "{}", done.stdout);
    }

    #[test]
    fn a_node_that_never_answers_is_a_no_in_time() {
        let agent = Agent::new();
        agent.bind(true);
        let _node = Node::start(&agent, |_| None);
        let started = Instant::now();
        let done = agent.hook(&["on", "PreToolUse"], &read("x"));
        let took = started.elapsed();
        assert!(denied(&done) && done.stdout.contains("did not answer in time"), "{}", done.stdout);
        // 200 ms for the decision and 50 ms for the report, on a busy machine.
        assert!(took >= Duration::from_millis(200) && took < Duration::from_secs(3), "{took:?}");
        assert_eq!(agent.spooled().len(), 1, "the report waits for the node");
    }
}

mod reports {
    use super::*;

    #[test]
    fn a_delivered_prompt_is_confirmed_by_its_ulid() {
        let agent = Agent::new();
        let node = Node::start(&agent, |_| Some((200, json!({ "ok": true }))));
        for prompt in [
            format!("[threadline:t-1 from 0a1b2c3d \"Bea\" #{ULID}] my plan"),
            format!(
                "<pasted_content id=\"1\">\n[threadline:t-1 from 0a1b2c3d \"Bea\" #{ULID}] my plan\n</pasted_content>"
            ),
        ] {
            agent.hook(
                &["on", "UserPromptSubmit"],
                &json!({ "session_id": SESSION, "prompt": prompt, "cwd": "CWD" }),
            );
            let sent = node.request("/hooks/events");
            let report: HookReport = serde_json::from_value(sent.body.clone()).expect("a report");
            assert_eq!((report.event, report.ulid.as_deref()), (Event::UserPromptSubmit, Some(ULID)));
            assert_eq!(report.instar_session_id.as_deref(), Some(SESSION));
            assert!(!sent.body.to_string().contains("my plan"));
        }
        assert!(agent.spooled().is_empty());
    }

    #[test]
    fn every_event_is_reported_and_waits_when_the_node_is_down() {
        let agent = Agent::new();
        for event in Event::ALL {
            let input = json!({ "session_id": SESSION, "hook_event_name": event.name(), "cwd": "CWD", "reason": "other" });
            let done = agent.hook(&["on", event.name()], &input);
            assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{event}");
        }
        let reports = agent.spooled();
        let mut events: Vec<Event> = reports.iter().map(|report| report.event).collect();
        events.sort();
        assert_eq!(events, Event::ALL);
        assert!(
            reports
                .iter()
                .all(|report| report.hook_ms > 0.0 && report.session_id.as_deref() == Some(SESSION))
        );
    }

    #[test]
    fn a_refusal_is_part_of_the_report_without_secrets() {
        let agent = Agent::new();
        agent.write(
            ".instar/config.json",
            &json!({ "safety": { "alwaysBlock": [format!("ghp_{}", "a1".repeat(20))] } }).to_string(),
        );
        agent.hook(&["on", "PreToolUse"], &bash(&format!("echo ghp_{}", "a1".repeat(20))));
        let decisions = agent.spooled().remove(0).decisions;
        assert_eq!(
            (decisions[0].hook.as_str(), decisions[0].verdict.as_str()),
            ("dangerous-command-guard", "deny")
        );
        assert!(
            decisions[0].reason.as_deref().is_some_and(|reason| reason.contains("[REDACTED:github-token:1]"))
        );
    }

    #[test]
    fn a_foreign_tag_is_blocked() {
        let agent = Agent::new();
        agent.bind(true);
        let prompt = |thread: &str| json!({ "session_id": SESSION, "prompt": format!("[threadline:{thread} from 0a1b2c3d #{ULID}] x") });
        let done = agent.hook(&["on", "UserPromptSubmit"], &prompt("t-2"));
        assert!(done.stdout.starts_with(r#"{"decision":"block","reason":"#), "{}", done.stdout);
        let done = agent.hook(&["on", "UserPromptSubmit"], &prompt("t-1"));
        assert!(
            done.stdout.contains("additionalContext") && done.stdout.contains("threadId t-1"),
            "{}",
            done.stdout
        );
    }
}

mod contexts {
    use super::*;

    fn start(agent: &Agent, part: &str) -> String {
        let input = json!({ "session_id": SESSION, "source": "startup", "cwd": "CWD" });
        let done = agent.hook(&["on", "SessionStart", "--part", part, "--runtime", "claude"], &input);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let answer: Value = serde_json::from_str(&done.stdout).unwrap_or_default();
        answer["hookSpecificOutput"]["additionalContext"].as_str().unwrap_or_default().to_owned()
    }

    #[test]
    fn local_files_ground_a_session_without_a_node() {
        let agent = Agent::new();
        let text = start(&agent, "identity");
        for part in ["You are ann.", "Verify.", "Likes tea.", "The node is not running", "--- PROJECT ---"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(start(&agent, "conversation"), "", "no conversation, nothing to say");
        agent.bind(true);
        assert!(start(&agent, "conversation").contains("threadline_send"));
        assert!(!start(&agent, "identity").contains("Likes tea."));
    }

    #[test]
    fn the_nodes_text_goes_first_and_is_cut_to_the_cap() {
        let agent = Agent::new();
        agent.bind(true);
        let node = Node::start(&agent, |request| match request.path.split('?').next() {
            Some("/context/boot") => Some((
                200,
                json!({ "sections": [{ "name": "A", "text": "first" }, { "name": "B", "text": "x".repeat(12_000) }] }),
            )),
            Some("/context/turn") => Some((503, json!({}))),
            _ => Some((200, json!({}))),
        });
        let text = start(&agent, "conversation");
        assert!(text.starts_with("--- A ---\nfirst") && text.contains("left out for length: B"), "{text}");
        let asked = node.request("/context/boot");
        assert!(
            asked.path.contains("part=conversation")
                && asked.path.contains("conversation=threadline:0a1b2c3d4e5f:t-1"),
            "{}",
            asked.path
        );
        let done =
            agent.hook(&["on", "UserPromptSubmit"], &json!({ "session_id": SESSION, "prompt": "hello" }));
        assert!(
            done.stdout.contains("--- TIME ---"),
            "an error of the node gives the local text: {}",
            done.stdout
        );
    }

    #[test]
    fn a_session_is_reported_once_though_its_start_has_two_parts() {
        let agent = Agent::new();
        let _ = (start(&agent, "identity"), start(&agent, "conversation"));
        assert_eq!(agent.spooled().len(), 1);
    }
}

mod registration {
    use super::*;

    #[test]
    fn every_registered_command_runs_in_the_runtimes_shell() {
        let agent = Agent::new();
        let file = agent.path(".claude/settings.json");
        settings::install(&file, &agent.link()).expect("installs");
        assert_eq!(settings::verify(&file, &agent.link()).expect("verifies"), []);
        let installed: Value = serde_json::from_slice(&fs::read(&file).expect("reads")).expect("JSON");
        let mut ran = 0;
        for (event, groups) in installed["hooks"].as_object().expect("an object") {
            for group in groups.as_array().expect("a list") {
                let command = group["hooks"][0]["command"].as_str().expect("a command");
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", command]).env_clear().env("HOME", agent.path("home"));
                let done = feed(
                    &mut shell,
                    json!({ "session_id": SESSION, "hook_event_name": event }).to_string().as_bytes(),
                );
                assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{command}");
                ran += 1;
            }
        }
        assert_eq!(ran, REGISTRATIONS.len());
    }
}

/// A project with an agent in a directory whose name has a space.
struct Agent {
    directory: TempDir,
}

/// What the program did.
struct Done {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Agent {
    fn new() -> Self {
        let agent =
            Self { directory: tempfile::Builder::new().prefix("an agent ").tempdir().expect("a directory") };
        agent.write(".instar/config.json", r#"{"projectName":"ann"}"#);
        agent.write(".instar/AGENT.md", "# ann\n\n## Who I am\nKeeper.\n\n## Principles\n1. Verify.\n");
        agent.write(".instar/USER.md", "# Bob\n\n## About\nLikes tea.\n");
        fs::create_dir_all(agent.path(".instar/current")).expect("makes");
        symlink(PROGRAM, agent.link()).expect("links");
        agent
    }

    fn path(&self, inner: &str) -> PathBuf {
        self.directory.path().join(inner)
    }

    fn link(&self) -> PathBuf {
        self.path(".instar/current/instar-hook")
    }

    fn write(&self, inner: &str, text: &str) {
        let path = self.path(inner);
        fs::create_dir_all(path.parent().expect("a parent")).expect("makes");
        fs::write(path, text).expect("writes");
    }

    fn bind(&self, serves_peer: bool) {
        let conversation = Some("threadline:0a1b2c3d4e5f:t-1".to_owned());
        let binding = SessionBinding { session: SESSION.to_owned(), conversation, serves_peer };
        binding.write(&self.path(".instar")).expect("writes");
    }

    fn spooled(&self) -> Vec<HookReport> {
        let taken = spool::waiting(&self.path(".instar")).expect("readable").into_iter().map(|kept| {
            let report = kept.report.clone();
            kept.forget().expect("removes");
            report
        });
        taken.collect()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.link());
        command
            .args(args)
            .env_clear()
            .env("HOME", self.path("home"))
            .env("INSTAR_SESSION_ID", SESSION)
            .env("INSTAR_AUTH_TOKEN", "ist_x_y")
            .current_dir(self.path(""))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str], input: &[u8], change: impl FnOnce(&mut Command)) -> Done {
        let mut command = self.command(args);
        change(&mut command);
        feed(&mut command, input)
    }

    fn hook(&self, args: &[&str], event: &Value) -> Done {
        let event = event.to_string().replace("CWD", &self.path("").display().to_string());
        self.run(args, event.as_bytes(), |_| {})
    }
}

fn feed(command: &mut Command, input: &[u8]) -> Done {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    // The program may stop reading before the end.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let done = finished(child);
    writer.join().expect("the writer ends");
    done
}

fn finished(child: Child) -> Done {
    let output = child.wait_with_output().expect("ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Done { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn denied(done: &Done) -> bool {
    done.code == Some(0) && done.stdout.contains(r#""permissionDecision":"deny""#)
}

fn bash(command: &str) -> Value {
    json!({ "session_id": SESSION, "hook_event_name": "PreToolUse", "cwd": "CWD", "tool_name": "Bash", "tool_input": { "command": command } })
}

fn read(path: &str) -> Value {
    json!({ "session_id": SESSION, "hook_event_name": "PreToolUse", "cwd": "CWD", "tool_name": "Read", "tool_input": { "file_path": path } })
}

/// One request that the node's double got.
#[derive(Debug)]
struct Request {
    head: String,
    path: String,
    body: Value,
}

/// A node that answers by rule, or keeps the connection open and says nothing.
struct Node {
    requests: Receiver<Request>,
}

impl Node {
    fn start(agent: &Agent, rule: impl Fn(&Request) -> Option<(u16, Value)> + Send + 'static) -> Self {
        let socket = agent.path(".instar/run/agent.sock");
        fs::create_dir_all(socket.parent().expect("a parent")).expect("makes");
        let listener = UnixListener::bind(&socket).expect("binds");
        let (sender, requests) = channel();
        thread::spawn(move || {
            let mut silent: Vec<UnixStream> = Vec::new();
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                let Some(request) = Self::read(&mut stream) else { continue };
                match rule(&request) {
                    Some((status, body)) => {
                        let body = body.to_string();
                        let _ = write!(
                            stream,
                            "HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{body}",
                            body.len()
                        );
                    }
                    None => silent.push(stream),
                }
                if sender.send(request).is_err() {
                    break;
                }
            }
        });
        Self { requests }
    }

    fn read(stream: &mut UnixStream) -> Option<Request> {
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(end) = end {
                let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
                let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
                let length: usize = length.map_or(Some(0), |length| length.parse().ok())?;
                if bytes.len() >= end + 4 + length {
                    let path = head.split(' ').nth(1)?.to_owned();
                    let body = serde_json::from_slice(&bytes[end + 4..]).unwrap_or(Value::Null);
                    return Some(Request { head, path, body });
                }
            }
            match stream.read(&mut chunk) {
                Ok(0) | Err(_) => return None,
                Ok(read) => bytes.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// The next request to this path.
    fn request(&self, path: &str) -> Request {
        loop {
            let request = self.requests.recv_timeout(Duration::from_secs(10)).expect("a request in time");
            if Path::new(&request.path).starts_with(path) || request.path.starts_with(path) {
                return request;
            }
        }
    }
}
