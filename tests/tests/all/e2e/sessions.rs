//! Two agents whose sessions are real Claude Code processes talk to each other.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use instar_tests::anthropic::{MessagesApi, Seen};
use instar_tests::harness::{Agent, Relay, World, eventually, isolated, processes};
use instar_tests::script::{Conversation, Script};
use serde_json::{Value, json};

use super::direct::pair;

const LIMIT: Duration = Duration::from_secs(90);
const QUESTION: &str = "Which colour has the sky over your place?";
const ANSWER: &str = "It is blue over here.";
const HEARD: &str = "The last word is heron, as far as I read.";

#[test]
#[ignore = "drives the real CLI: tests/run e2e"]
fn real_sessions_talk_over_stdio() {
    isolated(real_sessions_talk_over_stdio, real_sessions_talk("stdio"));
}

#[test]
#[ignore = "drives the real CLI: tests/run e2e"]
fn real_sessions_talk_in_tmux() {
    isolated(real_sessions_talk_in_tmux, real_sessions_talk("tmux"));
}

async fn real_sessions_talk(transport: &str) -> anyhow::Result<()> {
    let world = World::new()?;
    let script = Script::from_json(rules().to_string().as_bytes())?;
    let api = MessagesApi::start(([127, 0, 0, 1], 0).into(), script, None).await?;
    let mut account = world.account("ann")?;
    account.use_real_cli(&api)?;
    account.configure(json!({"sessions": {"transport": {"conversation": transport}}}));
    let (mut alpha, mut beta) = pair(&account).await?;

    alpha
        .json(&[
            "session",
            "spawn",
            "--name",
            "asker",
            "--transport",
            transport,
            "--prompt",
            "Ask beta please.",
        ])
        .await?;
    let what = "alpha's session read the answer in the thread's history";
    let asked = eventually(LIMIT, what, async || {
        let asked = last_of(&api, "asker");
        let asked = asked.with_context(|| format!("requests so far: {:#?}", outline(&api)))?;
        Ok((asked.done.len() == 4).then_some(asked))
    })
    .await?;
    let [_, discovered, sent, history] = &asked.done[..] else { unreachable!("four calls") };
    ensure!(!discovered.failed && discovered.text.contains("beta"), "{discovered:#?}");
    ensure!(!sent.failed && sent.text.contains(ANSWER), "the reply comes with the call: {sent:#?}");
    ensure!(!history.failed && history.text.contains(QUESTION), "{history:#?}");
    ensure!(history.text.contains(ANSWER), "{history:#?}");

    let answered = eventually(LIMIT, "beta's session ended its turn", async || {
        Ok(last_of(&api, "answerer").filter(|answered| answered.done.len() == 5))
    })
    .await?;
    let [_, history, shell, elsewhere, sent] = &answered.done[..] else { unreachable!("five calls") };
    ensure!(!history.failed && history.text.contains("colour"), "{history:#?}");
    ensure!(shell.failed && !shell.text.contains("root:"), "Bash is denied: {shell:#?}");
    ensure!(elsewhere.failed, "another thread is denied: {elsewhere:#?}");
    ensure!(!sent.failed, "{sent:#?}");

    let made = calls_by_tool(&api);
    let mut checked = BTreeMap::new();
    for agent in [&alpha, &beta] {
        for call in checked_tools(agent)? {
            let tool = call["tool"].as_str().with_context(|| call.to_string())?;
            *checked.entry(tool.to_owned()).or_insert(0) += 1;
        }
    }
    ensure!(made == checked, "tool calls {made:#?} against those that instar-hook saw {checked:#?}");
    // The runtime refuses Bash by itself too; the firewall must not rely on that.
    let firewalled = checked_tools(&beta)?.into_iter().filter(|call| call["tool"] == "Bash").all(|call| {
        let decisions = call["decisions"].as_array().cloned().unwrap_or_default();
        decisions.iter().any(|said| said["hook"] == "peer-firewall" && said["verdict"] == "deny")
    });
    ensure!(firewalled, "the firewall let Bash pass: {:#?}", checked_tools(&beta)?);

    alpha.stop().await?;
    beta.stop().await?;
    Ok(())
}

#[test]
#[ignore = "drives the real CLI: tests/run e2e"]
fn a_send_from_the_command_line_is_answered_by_a_real_session() {
    isolated(a_send_from_the_command_line_is_answered_by_a_real_session, async {
        let world = World::new()?;
        let script = Script::from_json(rules().to_string().as_bytes())?;
        let api = MessagesApi::start(([127, 0, 0, 1], 0).into(), script, None).await?;
        let mut account = world.account("ann")?;
        account.use_real_cli(&api)?;
        let (alpha, _beta) = pair(&account).await?;
        let answered = alpha.cli(&["threadline", "send", "beta", QUESTION]).await?;
        ensure!(answered.code == Some(0) && answered.stdout.contains(ANSWER), "{answered:#?}");
        Ok(())
    });
}

/// The session gets the start of such a message and the name of a file with all of it, which the firewall must let it read.
#[test]
#[ignore = "drives the real CLI: tests/run e2e"]
fn a_long_message_is_read_to_its_end() {
    isolated(a_long_message_is_read_to_its_end, async {
        let world = World::new()?;
        let script = Script::from_json(rules().to_string().as_bytes())?;
        let api = MessagesApi::start(([127, 0, 0, 1], 0).into(), script, None).await?;
        let mut account = world.account("ann")?;
        account.use_real_cli(&api)?;
        let (alpha, _beta) = pair(&account).await?;
        let lines: Vec<String> =
            (0..150).map(|n| format!("line {n} of a story that goes on and on, word after word")).collect();
        let text =
            format!("A long story follows.\n{}\nThe last word is heron. Which one is it?", lines.join("\n"));
        ensure!(text.len() > 8_000, "{} characters", text.len());
        let answered = alpha.cli(&["threadline", "send", "beta", &text]).await?;
        let heard = answered.code == Some(0) && answered.stdout.contains(HEARD);
        ensure!(heard, "{answered:#?}\n{:#?}", outline(&api));
        let read = last_of(&api, "reader").context("beta's session")?;
        let story = read.done.iter().find(|call| call.text.contains("line 149 of a story"));
        ensure!(story.is_some_and(|story| !story.failed && story.text.contains("heron")), "{read:#?}");
        Ok(())
    });
}

#[test]
#[ignore = "drives the real CLI: tests/run e2e"]
fn a_stranger_gets_no_session() {
    isolated(a_stranger_gets_no_session, async {
        let world = World::new()?;
        let relay = Relay::start(&world, "").await?;
        let script = Script::from_json(rules().to_string().as_bytes())?;
        let api = MessagesApi::start(([127, 0, 0, 1], 0).into(), script, None).await?;
        let linked = json!({"threadline": {
            "localRelay": "off", "relayEnabled": true, "relayUrl": relay.url()
        }});
        let mut ann = world.account("ann")?;
        ann.use_real_cli(&api)?;
        ann.configure(linked.clone());
        let mut bob = world.account("bob")?;
        bob.configure(linked);
        let mut beta = ann.agent("beta").await?;
        beta.up().await?;
        // Two accounts share no list of ports: the second one finds the first one's taken.
        let mut stranger = bob.agent("stranger").await?;
        stranger.up().await?;

        let identity = beta.json(&["identity", "show"]).await?;
        let address = identity["fingerprint"].as_str().with_context(|| identity.to_string())?.to_owned();
        eventually(LIMIT, "the stranger's message left", async || {
            stranger.send(&address, QUESTION, None).await.map(Some)
        })
        .await?;
        let held = eventually(LIMIT, "the message is held for beta's owner", async || {
            let approvals = beta.json(&["threadline", "approvals"]).await?;
            let listed = ["approvals", "items"].iter().find_map(|list| approvals[list].as_array());
            let listed = listed.with_context(|| approvals.to_string())?;
            Ok((!listed.is_empty()).then(|| listed.clone()))
        })
        .await?;
        ensure!(held.len() == 1, "one row for the owner: {held:#?}");
        let sessions = beta.json(&["session", "list", "--all"]).await?;
        let none = sessions["sessions"].as_array().is_some_and(Vec::is_empty);
        ensure!(none, "a session was made: {sessions}");
        ensure!(processes::runtimes().is_empty(), "a runtime runs: {:?}", processes::runtimes());
        ensure!(api.seen().is_empty(), "the model was called: {:#?}", outline(&api));
        Ok(())
    });
}

/// What the two "models" do.
fn rules() -> Value {
    let tools = |names: &[&str]| {
        let full: Vec<String> =
            names.iter().map(|name| format!("mcp__threadline__threadline_{name}")).collect();
        json!({"tool": "ToolSearch", "input": {"query": format!("select:{}", full.join(",")), "max_results": 5}})
    };
    let call = |name: &str, input: Value| json!({"calls": [{"tool": format!("mcp__threadline__threadline_{name}"), "input": input}]});
    json!({"rules": [
        {"name": "asker", "when": {"user": "Ask beta please"}, "steps": [
            {"calls": [tools(&["discover", "send", "history"])]},
            call("discover", json!({"scope": "local"})),
            call("send", json!({"agentId": "beta", "message": QUESTION, "timeoutSeconds": 80})),
            call("history", json!({"threadId": "{result:/threadId}"})),
            {"text": "Beta has answered."}
        ]},
        {"name": "answerer", "when": {"user": concat!(
            "agentId \"(?<peer>\\w+)\", threadId \"(?<thread>[^\"]+)\" and inReplyTo \"(?<id>[^\"]+)\"",
            "[\\s\\S]*Which colour"
        )},
         "steps": [
            {"calls": [tools(&["send", "history"])]},
            call("history", json!({"threadId": "{thread}"})),
            {"calls": [{"tool": "Bash", "input": {"command": "cat /etc/passwd", "description": "look around"}}]},
            call("history", json!({"threadId": "some-other-thread"})),
            call("send", json!({
                "agentId": "{peer}", "threadId": "{thread}", "inReplyTo": "{id}", "message": ANSWER,
                "waitForReply": false
            })),
            {"text": "Answered."}
        ]},
        {"name": "reader", "when": {"user": concat!(
            "agentId \"(?<peer>\\w+)\", threadId \"(?<thread>[^\"]+)\" and inReplyTo \"(?<id>[^\"]+)\"",
            "[\\s\\S]*cut: read the rest with threadline_history"
        )},
         "steps": [
            {"calls": [tools(&["send", "history"])]},
            call("history", json!({"threadId": "{thread}"})),
            call("send", json!({
                "agentId": "{peer}", "threadId": "{thread}", "inReplyTo": "{id}", "message": HEARD,
                "waitForReply": false
            })),
            {"text": "Answered."}
        ]}
    ]})
}

/// The newest state of the conversation that a rule answers.
fn last_of(api: &MessagesApi, rule: &str) -> Option<Conversation> {
    let seen = api.seen();
    let last = seen.iter().rfind(|seen| seen.rule.as_deref() == Some(rule))?;
    Some(Conversation::from_messages(&last.body["system"], &last.body["messages"]))
}

/// How often the double called each tool.
fn calls_by_tool(api: &MessagesApi) -> BTreeMap<String, usize> {
    let mut made = BTreeMap::new();
    for tool in api.seen().into_iter().flat_map(|seen: Seen| seen.calls) {
        *made.entry(tool).or_insert(0) += 1;
    }
    made
}

/// The tool calls that `instar-hook` was asked about, as its log has them.
fn checked_tools(agent: &Agent) -> anyhow::Result<Vec<Value>> {
    let mut calls = Vec::new();
    for entry in std::fs::read_dir(agent.state().join("logs"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with("hooks-") {
            continue;
        }
        for line in std::fs::read_to_string(&path)?.lines() {
            let fired: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            if fired["event"] == "PreToolUse" {
                calls.push(fired);
            }
        }
    }
    Ok(calls)
}

/// A line per request, for error messages.
fn outline(api: &MessagesApi) -> Vec<String> {
    let line =
        |seen: Seen| format!("{} {} {:?} {:?} {:?}", seen.at_ms, seen.line, seen.rule, seen.calls, seen.said);
    api.seen().into_iter().map(line).collect()
}
