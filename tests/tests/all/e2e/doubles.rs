//! The stand-in runtime says and does what the real CLI says and does.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use instar_tests::anthropic::MessagesApi;
use instar_tests::harness::{Account, World, isolated};
use instar_tests::script::Script;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

const SESSION: &str = "11111111-2222-4333-8444-555555555555";
/// Uuid of an input, up to its number.
const INPUT: &str = "11111111-2222-4333-8444-66666666666";

#[test]
#[ignore = "drives the real CLI: tests/run e2e"]
fn standin_behaves_like_the_real_cli() {
    isolated(standin_behaves_like_the_real_cli, async {
        let rules = json!({"rules": [
            {"name": "hello", "when": {"user": "say hello"}, "steps": [{"text": "hello there"}]},
            {"name": "shell", "when": {"user": "run it"}, "steps": [
                {"calls": [{"tool": "Bash", "input": {"command": "echo one", "description": "x"}}]},
                {"text": "got {result}"}
            ]},
            {"name": "mcp", "when": {"user": "echo (?<word>\\w+)"}, "steps": [
                {"calls": [{"tool": "ToolSearch", "input": {"query": "select:mcp__demo__echo", "max_results": 3}}]},
                {"calls": [{"tool": "mcp__demo__echo", "input": {"text": "{word}"}}]},
                {"text": "heard {result:/echo}"}
            ]}
        ]});
        let world = World::new()?;
        let script = Script::from_json(rules.to_string().as_bytes())?;
        let api = MessagesApi::start(([127, 0, 0, 1], 0).into(), script, None).await?;

        let mut person = world.account("real")?;
        person.use_real_cli(&api)?;
        let real = observe(&person, &api).await.context("the real CLI")?;
        let refused: Vec<_> = api.seen().into_iter().filter(|seen| seen.refused.is_some()).collect();
        ensure!(refused.is_empty(), "the double refused the real CLI: {refused:#?}");

        let mut person = world.account("standin")?;
        person.use_standin(&rules)?;
        let standin = observe(&person, &api).await.context("the stand-in")?;

        assert_eq!(standin.lines, real.lines, "kinds of output lines, in order");
        assert_eq!(standin.results, real.results, "tool results and final texts");
        assert_eq!(standin.hooks.len(), real.hooks.len(), "hook calls");
        for (ours, theirs) in standin.hooks.iter().zip(&real.hooks) {
            assert_eq!(ours["hook_event_name"], theirs["hook_event_name"], "order of hook events");
            for (field, value) in ours.as_object().into_iter().flatten() {
                let known =
                    ["transcript_path", "cwd", "model", "tool_use_id", "duration_ms", "tool_response"];
                let same = if known.contains(&field.as_str()) {
                    theirs.get(field).is_some() || field == "model"
                } else {
                    theirs[field] == *value
                };
                assert!(same, "{field} of {}: {value} against {}", ours["hook_event_name"], theirs[field]);
            }
        }
        Ok(())
    });
}

/// What a client of the runtime can see.
#[derive(Debug, Default)]
struct Observed {
    lines: Vec<String>,
    results: Vec<Value>,
    hooks: Vec<Value>,
}

async fn observe(person: &Account, api: &MessagesApi) -> anyhow::Result<Observed> {
    let project = person.home().join("project");
    let hook_log = person.home().join("hooks.jsonl");
    write_settings(&project, &hook_log)?;
    let servers = person.home().join("mcp.json");
    let echo = json!({"type": "stdio", "command": env!("CARGO_BIN_EXE_echo-mcp"), "args": [], "env": {}});
    std::fs::write(&servers, json!({"mcpServers": {"demo": echo}}).to_string())?;

    let (mut observed, mut given) = (Observed::default(), BTreeSet::new());
    // What carries a number that was there before comes a second time.
    for (choice, texts) in [
        ("--session-id", &[(1, "say hello"), (2, "please echo apple"), (1, "say hello"), (3, "run it")][..]),
        ("--resume", &[(1, "say hello"), (4, "say hello again")]),
    ] {
        let mut child = tokio::process::Command::new(person.home().join(".local/bin/claude"))
            .args(["-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"])
            .args(["--replay-user-messages", "--include-hook-events", "--permission-mode", "default"])
            .args(["--allowedTools", "mcp__demo__echo,ToolSearch,Bash", "--strict-mcp-config"])
            .arg(format!("{choice}={SESSION}"))
            .arg("--mcp-config")
            .arg(&servers)
            .current_dir(&project)
            .env_clear()
            .envs(person.environment())
            .env("ANTHROPIC_BASE_URL", api.base_url())
            .env("ANTHROPIC_API_KEY", instar_tests::harness::API_KEY)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = child.stdin.take().context("stdin")?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        let hello = json!({"type": "control_request", "request_id": "r1",
            "request": {"subtype": "initialize", "hooks": null}});
        stdin.write_all(format!("{hello}\n").as_bytes()).await?;
        for (number, text) in texts {
            let uuid = format!("{INPUT}{number}");
            let again = !given.insert(*number);
            let message = json!({"type": "user", "parent_tool_use_id": null, "session_id": SESSION, "uuid": uuid,
                "message": {"role": "user", "content": [{"type": "text", "text": text}]}});
            stdin.write_all(format!("{message}\n").as_bytes()).await?;
            loop {
                let next = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await;
                let line = next.context("no line for 30 s")??.context("the output ended")?;
                let line: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
                observed.note(&line);
                let ended = if again {
                    line["isReplay"] == true && line["uuid"] == *uuid
                } else {
                    line["command_uuid"] == *uuid && line["state"] == "completed"
                };
                if ended {
                    break;
                }
            }
        }
        drop(stdin);
        let status =
            tokio::time::timeout(Duration::from_secs(10), child.wait()).await.context("its end")??;
        ensure!(status.success(), "the runtime ended with {status}");
    }
    let hooks = std::fs::read_to_string(&hook_log)?;
    for line in hooks.lines().filter(|line| !line.is_empty()) {
        observed.hooks.push(serde_json::from_str(line).with_context(|| line.to_owned())?);
    }
    Ok(observed)
}

impl Observed {
    fn note(&mut self, line: &Value) {
        let kind = line["type"].as_str().unwrap_or_default();
        let subtype = line["subtype"].as_str().unwrap_or_default();
        let blocks = || line["message"]["content"].as_array().into_iter().flatten();
        match (kind, subtype) {
            ("control_response", _) => {
                assert_eq!(line["response"]["subtype"], "success", "{line}");
                assert_eq!(line["response"]["request_id"], "r1", "{line}");
            }
            ("system", "init") => {
                assert_eq!(line["mcp_servers"][0]["status"], "connected", "{line}");
                self.lines.push("init".to_owned());
            }
            ("system", "hook_started" | "hook_response") => {
                self.lines.push(format!("{subtype} {}", line["hook_name"]));
            }
            ("user", _) => {
                let input = line["uuid"].as_str().and_then(|uuid| uuid.strip_prefix(INPUT));
                let replay = line["isReplay"].as_bool().unwrap_or(false);
                self.lines.push(format!("user replay={replay} input={input:?}"));
                self.results.extend(
                    blocks()
                        .filter(|block| block["type"] == "tool_result")
                        .map(|block| json!([block["content"], block["is_error"].as_bool().unwrap_or(false)])),
                );
            }
            ("assistant", _) => {
                let kinds: Vec<&str> = blocks().filter_map(|block| block["type"].as_str()).collect();
                self.lines.push(format!("assistant {}", kinds.join("+")));
            }
            ("result", _) => {
                self.lines.push(format!("result {subtype} error={}", line["is_error"]));
                self.results.push(line["result"].clone());
            }
            ("command_lifecycle", _) => {
                let number = line["command_uuid"].as_str().and_then(|uuid| uuid.strip_prefix(INPUT));
                self.lines.push(format!("input {number:?} {}", line["state"]));
            }
            _ => {}
        }
    }
}

fn write_settings(project: &Path, log: &Path) -> anyhow::Result<()> {
    let note = json!({"type": "command", "command": format!("{{ cat; echo; }} >> {}", log.display())});
    let deny = json!({"type": "command", "command": "cat >/dev/null; echo 'no shell here' >&2; exit 2"});
    let all = json!([{"hooks": [note]}]);
    let settings = json!({"hooks": {
        "SessionStart": [{"matcher": "startup|resume", "hooks": [note]}], "UserPromptSubmit": all,
        "PreToolUse": [{"matcher": "mcp__.*|ToolSearch", "hooks": [note]}, {"matcher": "Bash", "hooks": [deny]}],
        "PostToolUse": all, "Stop": all, "SessionEnd": all
    }});
    std::fs::create_dir_all(project.join(".claude"))?;
    Ok(std::fs::write(project.join(".claude/settings.json"), settings.to_string())?)
}
