//! Sealed mail between two real nodes of two accounts that share nothing but a real relay with which they speak v1 alone.

use std::time::Duration;

use anyhow::{Context, ensure};
use instar_tests::harness::{Agent, MessageStore, Relay, Stored, World, eventually, isolated};
use serde_json::{Value, json};
use threadline::v2::mail::RowKind;

const LIMIT: Duration = Duration::from_mins(1);
/// New agents are shown at once.
const OPEN_DIRECTORY: &str = "[sybil]\ntiers = false\naging_s = 0\n";

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn sealed_mail_travels_inside_a_relay_of_v1() {
    isolated(sealed_mail_travels_inside_a_relay_of_v1, async {
        let world = World::new()?;
        let mut relay = Relay::start(&world, OPEN_DIRECTORY).await?;
        let [alpha, mut beta] = strangers(&world, &relay.url()).await?;
        let thread = introduced(&alpha, &beta).await?;

        // From here on every message is sealed by sessions, and the peer's own receipt confirms it.
        for (round, (from, to, name)) in
            [(&alpha, &beta, "beta"), (&beta, &alpha, "alpha")].into_iter().cycle().take(6).enumerate()
        {
            let text = format!("round {round}");
            let sent = from.send(name, &text, Some(&thread)).await?;
            ensure!(sent["encryption"] == "e2e", "{sent}");
            came(to, &text, "sealed").await?;
        }
        for agent in [&alpha, &beta] {
            all_confirmed(agent).await?;
        }

        // What was written while the other one was away, and the relay died with it.
        beta.kill().await?;
        for n in 0..5 {
            alpha.send("beta", &format!("while you were away {n}"), Some(&thread)).await?;
        }
        relay.kill().await?;
        relay.up().await?;
        beta.up().await?;
        came(&beta, "while you were away 4", "sealed").await?;
        let texts: Vec<String> = inbound(&beta)?.into_iter().map(|message| message.body).collect();
        let away: Vec<_> = texts.iter().filter(|text| text.starts_with("while you were away")).collect();
        ensure!(away.len() == 5 && away.is_sorted(), "{texts:?}");
        all_confirmed(&alpha).await
    });
}

/// Two agents of two accounts, alpha and beta, that speak v1 with this relay and nothing else with anybody.
pub(super) async fn strangers(world: &World, url: &str) -> anyhow::Result<[Agent; 2]> {
    strangers_at(world, url, json!([{"url": url, "protocol": "1"}])).await
}

/// The same with these relays, of which the one at `url` is spoken v1 with, if any.
pub(super) async fn strangers_at(world: &World, url: &str, relays: Value) -> anyhow::Result<[Agent; 2]> {
    let many = 1_000;
    let limits = json!({
        "messagesPerHour": many, "messagesPerDay": many, "perThreadPerHour": many, "burstPerMinute": many,
        "outboundPerHour": many,
    });
    let linked = json!({"threadline": {
        "localRelay": "off", "relayEnabled": true, "relayUrl": url, "relays": relays,
        "visibility": "public", "sessions": {"maxActive": 0}, "firstContactPolicy": "auto",
        "limits": {"verified": limits, "untrusted": limits},
    }});
    let mut agents = Vec::new();
    for (account, name) in [("ann", "alpha"), ("bob", "beta")] {
        let mut account = world.account(account)?;
        account.configure(linked.clone());
        let mut agent = account.agent(name).await?;
        agent.up().await?;
        agents.push(agent);
    }
    <[Agent; 2]>::try_from(agents).map_err(|_| anyhow::anyhow!("two"))
}

/// Has one agent find the other and write to it, and that one answer. Returns their thread.
pub(super) async fn introduced(alpha: &Agent, beta: &Agent) -> anyhow::Result<String> {
    found(alpha, beta).await?;
    let sent = alpha.send("beta", "do you know me?", None).await?;
    ensure!(sent["encryption"] == "e2e", "{sent}");
    let thread = sent["threadId"].as_str().with_context(|| sent.to_string())?.to_owned();
    came(beta, "do you know me?", "relay").await?;
    knows_a_device(beta).await?;
    let sent: Value = beta.send("alpha", "now I do", Some(&thread)).await?;
    ensure!(sent["encryption"] == "e2e", "{sent}");
    came(alpha, "now I do", "sealed").await?;
    Ok(thread)
}

/// Waits until an agent knows a device of a peer: it is told by a message, and known a moment after that is stored.
pub(super) async fn knows_a_device(agent: &Agent) -> anyhow::Result<()> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let known = "SELECT EXISTS(SELECT 1 FROM mail WHERE kind = ?1)";
    eventually(LIMIT, &format!("{} knows a device", agent.name()), async || {
        let database = rusqlite::Connection::open_with_flags(agent.store(), flags)?;
        let known: bool = database.query_row(known, [RowKind::Peer as i64], |row| row.get(0))?;
        Ok(known.then_some(()))
    })
    .await
}

/// Waits until alpha and beta found each other.
pub(super) async fn found(alpha: &Agent, beta: &Agent) -> anyhow::Result<()> {
    for (seeker, sought) in [(beta, "alpha"), (alpha, "beta")] {
        eventually(LIMIT, &format!("{sought} is found"), async || {
            let found = seeker.json(&["threadline", "discover", "--network"]).await?;
            ensure!(found["agents"].to_string().contains(sought), "so far {found}");
            Ok(Some(()))
        })
        .await?;
    }
    Ok(())
}

/// What came to an agent, in the order in which it was stored.
pub(super) fn inbound(agent: &Agent) -> anyhow::Result<Vec<Stored>> {
    let all = MessageStore::open(&agent.store())?.after(0)?;
    Ok(all.into_iter().filter(|message| !message.sent).collect())
}

/// Waits until a text came to an agent, once and in this way.
pub(super) async fn came(agent: &Agent, text: &str, transport: &str) -> anyhow::Result<()> {
    eventually(LIMIT, &format!("{text:?} is there"), async || {
        let all = inbound(agent)?;
        let these: Vec<_> = all.iter().filter(|message| message.body == text).collect();
        ensure!(these.len() == 1 && these[0].transport == transport, "so far {all:?}");
        Ok(Some(()))
    })
    .await
}

/// Waits until the peers of an agent confirmed everything that it sent sealed.
pub(super) async fn all_confirmed(agent: &Agent) -> anyhow::Result<()> {
    eventually(LIMIT, &format!("everything of {} is confirmed", agent.name()), async || {
        let waiting = MessageStore::open(&agent.store())?.unconfirmed()?;
        ensure!(waiting.is_empty(), "{waiting:?}");
        Ok(Some(()))
    })
    .await
}
