//! Messages between two nodes through the relay that one of them runs, without any session.

use std::time::Duration;

use anyhow::{Context, ensure};
use instar_tests::harness::{Account, Agent, Message, World, eventually, isolated};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(30);

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn two_nodes_exchange_messages() {
    isolated(two_nodes_exchange_messages, async {
        let world = World::new()?;
        let account = world.account("ann")?;
        let (alpha, beta) = pair(&account).await?;

        let thread = begin(&alpha, &beta, "hello, which day is it?").await?;
        let copies = both_have(&alpha, &beta, &thread, 1).await?;
        assert!(copies[0][0].sent && !copies[1][0].sent, "{copies:#?}");
        assert!(copies[1][0].body.contains("which day is it?"), "{copies:#?}");
        assert_eq!(copies[0][0].id, copies[1][0].id, "one message, one id");

        beta.send("alpha", "a Sunday", Some(&thread)).await?;
        both_have(&alpha, &beta, &thread, 2).await?;
        Ok(())
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn a_message_waits_for_a_node_that_is_down() {
    isolated(a_message_waits_for_a_node_that_is_down, async {
        let world = World::new()?;
        let account = world.account("ann")?;
        let (mut alpha, mut beta) = pair(&account).await?;
        let thread = begin(&alpha, &beta, "are you there?").await?;

        beta.kill().await?;
        alpha.send("beta", "and now?", Some(&thread)).await?;
        // The relay is in alpha; it has to keep the message over its own death too.
        alpha.kill().await?;
        alpha.up().await?;
        beta.up().await?;
        let copies = both_have(&alpha, &beta, &thread, 2).await?;
        assert_eq!(copies[0].len(), 2, "nothing twice: {copies:#?}");
        assert_eq!(copies[1].len(), 2, "nothing twice: {copies:#?}");
        Ok(())
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn agents_of_one_host_need_no_relay() {
    isolated(agents_of_one_host_need_no_relay, async {
        let world = World::new()?;
        let mut account = world.account("ann")?;
        account.configure(json!({"threadline": {"localRelay": "off"}}));
        let (mut alpha, mut beta) = (account.agent("alpha").await?, account.agent("beta").await?);
        alpha.up().await?;
        beta.up().await?;
        see_each_other(&alpha, &beta).await?;
        let sent = alpha.send("beta", "hello, which day is it?", None).await?;
        ensure!(sent["deliveryPath"] == "local" && sent["encryption"] == "e2e", "{sent}");
        let thread = sent["threadId"].as_str().with_context(|| sent.to_string())?.to_owned();
        both_have(&alpha, &beta, &thread, 1).await?;
        beta.send("alpha", "a Sunday", Some(&thread)).await?;
        both_have(&alpha, &beta, &thread, 2).await?;

        // What is written to a node that is down waits in a file, and what is written after it does not overtake it.
        beta.kill().await?;
        alpha.send("beta", "and the month?", Some(&thread)).await?;
        let drops = account.home().join(".instar/messages/drop/beta");
        eventually(LIMIT, "a file waits", async || {
            let files = std::fs::read_dir(&drops).into_iter().flatten().flatten();
            Ok(files
                .filter(|f| f.path().extension().is_some_and(|e| e == "json"))
                .count()
                .eq(&1)
                .then_some(()))
        })
        .await?;
        alpha.send("beta", "and the year?", Some(&thread)).await?;
        alpha.kill().await?;
        beta.up().await?;
        eventually(LIMIT, "beta took the file", async || {
            Ok((beta.thread(&thread).await?.len() == 3).then_some(()))
        })
        .await?;
        alpha.up().await?;
        let copies = both_have(&alpha, &beta, &thread, 4).await?;
        for copy in copies {
            let bodies: Vec<_> = copy.iter().map(|m| m.body.clone()).collect();
            ensure!(
                copy.len() == 4 && bodies[2].contains("month") && bodies[3].contains("year"),
                "{bodies:?}"
            );
        }
        Ok(())
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn a_send_that_cannot_be_done_says_why() {
    isolated(a_send_that_cannot_be_done_says_why, async {
        let world = World::new()?;
        let account = world.account("ann")?;
        let mut alpha = account.agent("alpha").await?;
        let down = alpha.cli(&["threadline", "send", "beta", "hello"]).await?;
        ensure!(down.code == Some(4), "a node that is not running: {down:#?}");
        alpha.up().await?;
        let unknown = alpha.cli(&["threadline", "send", "nobody", "hello"]).await?;
        ensure!(unknown.code == Some(6) && unknown.stderr.contains("nobody"), "{unknown:#?}");
        let own = alpha.cli(&["threadline", "send", "alpha", "hello"]).await?;
        ensure!(own.code != Some(0), "a message to oneself: {own:#?}");
        let empty = alpha.cli(&["threadline", "send", "nobody", "  "]).await?;
        ensure!(empty.code != Some(0), "an empty message: {empty:#?}");
        Ok(())
    });
}

/// Two running agents of one account that have found each other.
pub(crate) async fn pair(account: &Account) -> anyhow::Result<(Agent, Agent)> {
    let (mut alpha, mut beta) = (account.agent("alpha").await?, account.agent("beta").await?);
    alpha.up().await?;
    beta.up().await?;
    see_each_other(&alpha, &beta).await?;
    Ok((alpha, beta))
}

/// Begins a thread with a message that arrives, and gives the thread's id.
pub(crate) async fn begin(one: &Agent, other: &Agent, text: &str) -> anyhow::Result<String> {
    let sent = one.send(other.name(), text, None).await?;
    let thread = sent["threadId"].as_str().with_context(|| sent.to_string())?.to_owned();
    both_have(one, other, &thread, 1).await?;
    Ok(thread)
}

/// Waits until each of the two finds the other.
pub(crate) async fn see_each_other(one: &Agent, other: &Agent) -> anyhow::Result<()> {
    for (seer, seen) in [(one, other), (other, one)] {
        let what = format!("{} discovers {}", seer.name(), seen.name());
        eventually(LIMIT, &what, async || {
            let answer = seer.json(&["threadline", "discover"]).await?;
            let names = answer["agents"].as_array().with_context(|| answer.to_string())?;
            Ok(names.iter().any(|agent| agent["name"] == seen.name()).then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// Waits until both copies of a thread hold this many messages.
pub(crate) async fn both_have(
    one: &Agent,
    other: &Agent,
    thread: &str,
    count: usize,
) -> anyhow::Result<[Vec<Message>; 2]> {
    eventually(LIMIT, &format!("{count} messages on both sides"), async || {
        let copies = [one.thread(thread).await?, other.thread(thread).await?];
        if copies.iter().all(|copy| copy.len() >= count) {
            return Ok(Some(copies));
        }
        anyhow::bail!("so far: {copies:#?}");
    })
    .await
}
