//! A node whose files, ports, disk or runtime are not as they should be.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use instar_tests::harness::{CliOutput, World, eventually, isolated};
use serde_json::json;

use crate::e2e::direct::{begin, both_have, pair};

const LIMIT: Duration = Duration::from_secs(30);

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn a_broken_configuration_is_named_and_left_alone() {
    isolated(a_broken_configuration_is_named_and_left_alone, async {
        let world = World::new()?;
        let account = world.account("ann")?;
        let mut agent = account.agent("alpha").await?;
        let path = agent.state().join("config.json");
        let good = std::fs::read(&path)?;

        let broken = b"{\n  \"port\": 4040,\n  \"sessions\": {,}\n}\n";
        std::fs::write(&path, broken)?;
        let refused = agent.cli(&["up"]).await?;
        ensure!(refused.code == Some(3) && refused.stderr.contains("line 3"), "{refused:#?}");
        ensure!(std::fs::read(&path)? == broken, "the file was changed");

        std::fs::write(&path, &good)?;
        agent.configure(json!({"port": 7, "sessions": {"maxSessions": "many"}, "version": null}))?;
        let refused = agent.cli(&["up"]).await?;
        let both = refused.stderr.contains("port") && refused.stderr.contains("sessions.maxSessions");
        ensure!(refused.code == Some(3) && both, "all problems at once: {refused:#?}");

        std::fs::write(&path, &good)?;
        agent.configure(json!({"version": 99}))?;
        let refused = agent.cli(&["up"]).await?;
        ensure!(refused.code == Some(3) && refused.stderr.contains("version"), "{refused:#?}");

        std::fs::write(&path, &good)?;
        agent.up().await?;
        std::fs::write(&path, broken)?;
        eventually(LIMIT, "the running node says that its configuration cannot be read", async || {
            let status = agent.json(&["status"]).await?;
            Ok(status.to_string().contains("config_unreadable").then_some(()))
        })
        .await?;
        ensure!(agent.get("/health").await?.status == 200, "it goes on with the last good one");
        Ok(())
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn state_of_a_newer_version_is_refused_untouched() {
    isolated(state_of_a_newer_version_is_refused_untouched, async {
        let world = World::new()?;
        let account = world.account("ann")?;
        let (alpha, mut beta) = pair(&account).await?;
        let thread = begin(&alpha, &beta, "are you new?").await?;
        beta.stop().await?;

        for name in ["threadline.sqlite", "messaging.sqlite"] {
            let path = beta.state().join("state").join(name);
            let version = set_version(&path, 9_999)?;
            let before = std::fs::read(&path)?;
            let refused = beta.cli(&["up"]).await?;
            ensure!(refused.code.is_some_and(|code| code != 0), "{name}: {refused:#?}");
            ensure!(refused.stderr.contains(name) && refused.stderr.contains("9999"), "{name}: {refused:#?}");
            ensure!(std::fs::read(&path)? == before, "{name} was changed");
            set_version(&path, version)?;
        }
        beta.up().await?;
        both_have(&alpha, &beta, &thread, 1).await?;
        Ok(())
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn a_full_disk_loses_nothing() {
    isolated(a_full_disk_loses_nothing, async {
        let world = World::new()?;
        let account = world.account("ann")?;
        let small = account.home().join("beta");
        std::fs::create_dir_all(&small)?;
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "small"]).arg(&small).status()?;
        ensure!(mounted.success(), "mount: {mounted}");
        let (alpha, beta) = pair(&account).await?;
        let thread = begin(&alpha, &beta, "is there room?").await?;

        let filler = small.join("filler");
        fill(&filler)?;
        alpha.send("beta", "and now, is there room?", Some(&thread)).await?;
        // With the first two these are as many as one peer may send in a minute.
        for number in 0..3 {
            alpha.send("beta", &format!("and for number {number}?"), Some(&thread)).await?;
        }
        let full = eventually(LIMIT, "the node says that its disk is full", async || {
            let answer = beta.get("/health").await?;
            ensure!(answer.status == 200, "{answer:?}");
            let status = beta.json(&["status"]).await?.to_string() + &answer.body.to_string();
            Ok(["disk", "storage", "spool"].iter().any(|word| status.contains(word)).then_some(()))
        });
        full.await?;

        std::fs::remove_file(&filler)?;
        let copies = both_have(&alpha, &beta, &thread, 5).await?;
        ensure!(copies.iter().all(|copy| copy.len() == 5), "each once: {copies:#?}");
        Ok(())
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn a_taken_port_and_a_second_node_are_refused() {
    isolated(a_taken_port_and_a_second_node_are_refused, async {
        let world = World::new()?;
        let account = world.account("ann")?;
        let mut agent = account.agent("alpha").await?;
        let config = agent.json(&["config", "get", "port"]).await?;
        let port = config["value"].as_u64().or(config.as_u64()).with_context(|| config.to_string())?;

        let holder = std::net::TcpListener::bind(("127.0.0.1", port as u16))?;
        let refused = agent.cli(&["up"]).await?;
        ensure!(refused.code == Some(1) && says(&refused, &port.to_string()), "{refused:#?}");
        drop(holder);

        agent.up().await?;
        let pid = agent.pid().context("a running node")?.to_string();
        let refused = agent.cli(&["up"]).await?;
        ensure!(refused.code == Some(1) && says(&refused, &pid), "the holder is named: {refused:#?}");
        ensure!(agent.get("/health").await?.status == 200, "the first one goes on");
        Ok(())
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn a_message_waits_for_a_runtime_that_is_missing() {
    isolated(a_message_waits_for_a_runtime_that_is_missing, async {
        let world = World::new()?;
        let mut account = world.account("ann")?;
        account.configure(json!({
            "sessions": {"allowRoot": true, "transport": {"conversation": "stdio"}},
            "threadline": {"spawn": {"cooldownMs": 500}}
        }));
        let (alpha, mut beta) = pair(&account).await?;
        let thread = begin(&alpha, &beta, "who answers here?").await?;
        eventually(LIMIT, "the missing runtime is reported", async || {
            let status = beta.json(&["status"]).await?;
            Ok(status.to_string().contains("runtime_missing").then_some(()))
        })
        .await?;

        account.use_standin(&json!({"rules": [{
            "name": "answer", "when": {"user": "agentId \"(?<peer>\\w+)\", threadId \"(?<thread>[^\"]+)\""},
            "steps": [
                {"calls": [{"tool": "mcp__threadline__threadline_send", "input": {
                    "agentId": "{peer}", "threadId": "{thread}", "message": "I do, now.", "waitForReply": false
                }}]},
                {"text": "answered"}
            ]
        }]}))?;
        // A restart looks for the program at once; without one it is found at the next try.
        beta.stop().await?;
        beta.up().await?;
        let copies = both_have(&alpha, &beta, &thread, 2).await?;
        ensure!(copies[0][1].body.contains("I do, now."), "{copies:#?}");
        Ok(())
    });
}

fn says(output: &CliOutput, word: &str) -> bool {
    output.stderr.contains(word) || output.stdout.contains(word)
}

/// Sets `user_version`; gives back the old one.
fn set_version(path: &std::path::Path, version: i64) -> anyhow::Result<i64> {
    let database = rusqlite::Connection::open(path)?;
    let old = database.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    database.pragma_update(None, "user_version", version)?;
    database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(old)
}

/// Writes until the disk is full.
fn fill(path: &std::path::Path) -> anyhow::Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(path)?;
    for size in [1 << 20, 1 << 12, 1] {
        while file.write_all(&vec![b'x'; size]).is_ok() {}
    }
    Ok(())
}
