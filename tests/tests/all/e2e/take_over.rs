//! A session of the real CLI goes on in a terminal and back, and a node in the background keeps to itself.

use std::io::PipeReader;
use std::time::Duration;

use anyhow::{Context, ensure};
use instar_tests::anthropic::{MessagesApi, Seen};
use instar_tests::harness::{Agent, World, eventually, isolated};
use instar_tests::script::Script;
use rexpect::session::{PtySession, spawn_command};
use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_mins(1);
const SAID: [&str; 4] = ["First-marker", "Between-marker", "Second-marker", "Third-marker"];

#[test]
#[ignore = "drives the real CLI: tests/run e2e"]
fn a_session_is_taken_over_and_released_and_forgets_nothing() {
    isolated(a_session_is_taken_over_and_released_and_forgets_nothing, async {
        let world = World::new()?;
        let answer = |text: &str, ms: u64| json!({"text": text, "fault": {"kind": "sleep", "ms": ms}});
        let rule =
            |said: &str, answer: Value| json!({"name": said, "when": {"user": said}, "steps": [answer]});
        let rules = json!({"rules": [
            rule(SAID[0], answer("The-first-answer.", 3000)),
            rule(SAID[1], answer("The-answer-between.", 0)),
            rule(SAID[2], answer("The-second-answer.", 0)),
            rule(SAID[3], answer("The-third-answer.", 0)),
        ]});
        let script = Script::from_json(rules.to_string().as_bytes())?;
        let api = MessagesApi::start(([127, 0, 0, 1], 0).into(), script, None).await?;
        let mut account = world.account("ann")?;
        account.use_real_cli(&api)?;
        let mut alpha = account.agent("alpha").await?;
        alpha.up().await?;

        let spawn = ["session", "spawn", "--name", "talker", "--transport", "stdio", "--prompt", SAID[0]];
        let first = alpha.json(&spawn).await?;
        eventually(LIMIT, "the first turn runs", async || Ok(turn_of(&api, SAID[0]))).await?;
        // Sent in the middle of the turn whose end the move waits for.
        alpha.cli(&["session", "send", "talker", SAID[1]]).await?.ok()?;
        let terminal = at_terminal(&alpha, &["session", "attach", "talker", "--take-over"])?;

        eventually(LIMIT, "the terminal answers what was sent before", async || Ok(turn_of(&api, SAID[1])))
            .await?;
        let shown = idle(&alpha, "tmux", 1).await?;
        ensure!(shown["resumeOf"] == first["id"], "{shown:#} continues {first:#}");
        ensure!(shown["runtimeSessionId"] == first["id"], "one transcript: {shown:#}");
        alpha.cli(&["session", "send", "talker", SAID[2]]).await?.ok()?;
        eventually(LIMIT, "the terminal answers", async || Ok(turn_of(&api, SAID[2]))).await?;
        idle(&alpha, "tmux", 2).await?;

        alpha.cli(&["session", "release", "talker"]).await?.ok()?;
        let screen = tokio::task::spawn_blocking(move || end_of(terminal)).await??;
        ensure!(screen.contains("second-answer"), "the person saw it: {screen}");
        let piped = idle(&alpha, "stdio", 0).await?;
        ensure!(piped["resumeOf"] == shown["id"], "{piped:#} continues {shown:#}");

        let route = "/sessions/talker/transport";
        for transport in ["tmux", "stdio"] {
            let body = json!({"transport": transport}).to_string();
            let moved = alpha.json(&["api", "POST", route, "--data", &body]).await?;
            ensure!(moved["transport"] == transport, "{moved:#}");
            idle(&alpha, transport, 0).await?;
        }
        alpha.cli(&["session", "send", "talker", SAID[3]]).await?.ok()?;
        let last = eventually(LIMIT, "the last turn", async || Ok(turn_of(&api, SAID[3]))).await?;

        let messages = last.body["messages"].to_string();
        for said in SAID.iter().chain(&["The-first-answer", "The-answer-between", "The-second-answer"]) {
            let times = messages.matches(said).count();
            ensure!(times == 1, "{said} stands {times} times in {}", last.body["messages"]);
        }
        eventually(LIMIT, "every input is settled", async || {
            let inbox = alpha.json(&["session", "inbox", "talker"]).await?;
            let rows = inbox["messages"].as_array().with_context(|| inbox.to_string())?;
            ensure!(rows.len() == SAID.len(), "{inbox:#}");
            let settled = rows.iter().all(|row| row["state"] == "acked" && row["attempts"] == 1);
            if settled { Ok(Some(())) } else { anyhow::bail!("so far {inbox:#}") }
        })
        .await
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn a_node_in_the_background_holds_nothing_of_whoever_started_it() {
    isolated(a_node_in_the_background_holds_nothing_of_whoever_started_it, async {
        let world = World::new()?;
        let agent = world.account("ann")?.agent("alpha").await?;
        let (foreign, end) = std::io::pipe()?;
        fcntl_setfd(&foreign, FdFlags::empty())?;
        fcntl_setfd(&end, FdFlags::empty())?;
        let started = agent.json(&["server", "start"]).await?;
        let pid = started["pid"].as_i64().with_context(|| started.to_string())?;
        ensure!(!holds(pid, &foreign)?, "the node holds the pipe of whoever started it");
        agent.cli(&["server", "stop"]).await?.ok()
    });
}

/// Whether a process holds the pipe.
fn holds(pid: i64, pipe: &PipeReader) -> anyhow::Result<bool> {
    let wanted = format!("pipe:[{}]", rustix::fs::fstat(pipe)?.st_ino);
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
    Ok(open
        .flatten()
        .filter_map(|file| std::fs::read_link(file.path()).ok())
        .any(|link| link.to_string_lossy() == wanted))
}

/// The newest request of the turn that this input began.
fn turn_of(api: &MessagesApi, said: &str) -> Option<Seen> {
    let is_turn = |seen: &Seen| seen.body["tools"].as_array().is_some_and(|tools| !tools.is_empty());
    api.seen().into_iter().rfind(|seen| seen.rule.as_deref() == Some(said) && is_turn(seen))
}

/// The live session, once it runs over this transport and has ended this many turns.
async fn idle(agent: &Agent, transport: &str, turns: u64) -> anyhow::Result<Value> {
    eventually(LIMIT, &format!("the session is idle over {transport}"), async || {
        let session = agent.get("/sessions/talker").await?.body;
        let there = session["status"] == "running"
            && session["transport"] == transport
            && session["activity"] == "idle"
            && session["telemetry"]["turns"].as_u64() >= Some(turns);
        if there { Ok(Some(session)) } else { anyhow::bail!("so far {session:#}") }
    })
    .await
}

/// Runs a command with a terminal of its own.
fn at_terminal(agent: &Agent, arguments: &[&str]) -> anyhow::Result<PtySession> {
    let limit = u64::try_from(LIMIT.as_millis())?;
    Ok(spawn_command(agent.command(arguments).into_std(), Some(limit))?)
}

/// What a terminal showed until its program ended.
fn end_of(mut terminal: PtySession) -> anyhow::Result<String> {
    Ok(terminal.exp_eof()?)
}
