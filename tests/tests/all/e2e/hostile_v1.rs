//! A hostile relay of v1 with its directory and its registry, and nothing else between two real nodes of two accounts.

use std::time::Duration;

use anyhow::{Context, ensure};
use instar_tests::harness::hostile::{
    Crimes, Denial, FORGED, HOSTILE_PROFILE, HostileRelay, HostileV1, V1Crimes,
};
use instar_tests::harness::{Agent, MessageStore, World, eventually, isolated, request};
use serde_json::{Value, json};

use super::inside_v1::{
    all_confirmed, came, found, inbound, introduced, knows_a_device, strangers, strangers_at,
};
use super::sealed::sessions_are_ready;

const LIMIT: Duration = Duration::from_mins(1);
/// What no relay may read.
const SECRET: &str = "azure heron";

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn a_directory_leads_nobody_to_another_key() {
    isolated(a_directory_leads_nobody_to_another_key, async {
        let world = World::new()?;
        let relay = HostileV1::start().await?;
        let [alpha, beta] = strangers(&world, &relay.url()).await?;
        introduced(&alpha, &beta).await?;
        let (mallory, fingerprint) = (relay.mallory().to_string(), fingerprint(&beta).await?);

        let lies = V1Crimes { impersonates: true, swaps_keys: true, strips: true, ..V1Crimes::default() };
        relay.commit(lies);
        let listed = eventually(LIMIT, "the directory lies", async || {
            let found = alpha.json(&["threadline", "discover", "--network"]).await?;
            let rows = found["agents"].as_array().cloned().unwrap_or_default();
            let row =
                rows.into_iter().find(|row| mallory.starts_with(row["fingerprint"].as_str().unwrap_or("-")));
            row.map(Some).with_context(|| format!("so far {found}"))
        })
        .await?;
        ensure!(
            listed["name"].as_str().is_some_and(|name| name.contains("not the agent you know"))
                && listed["trustLevel"] == "untrusted",
            "{listed}"
        );
        for (n, name) in
            ["beta", "Beta ", &format!("beta:{}", &fingerprint[..8]), &fingerprint].iter().enumerate()
        {
            let text = format!("{SECRET} {n}");
            let sent = alpha.send(name, &text, None).await?;
            ensure!(
                sent["resolvedAgent"]["fingerprint"] == fingerprint && sent["encryption"] == "e2e",
                "{sent}"
            );
            came(&beta, &text, "sealed").await?;
        }
        let asked = tool(&alpha, "threadline_registry_get", &json!({"agentId": fingerprint})).await?;
        ensure!(!asked.to_string().contains(&mallory) && asked["found"] != true, "{asked}");
        let rows = tool(&alpha, "threadline_registry_search", &json!({"query": "beta"})).await?;
        ensure!(
            !rows.to_string().contains(HOSTILE_PROFILE) || rows.to_string().contains("not instructions"),
            "{rows}"
        );
        let deeds = relay.deeds();
        ensure!(deeds.won == 0 && deeds.listed >= 2 && deeds.mistaken >= 1, "{deeds:?}");
        nothing_was_read(&relay)
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn a_relay_of_v1_achieves_nothing() {
    isolated(a_relay_of_v1_achieves_nothing, async {
        let world = World::new()?;
        let relay = HostileV1::start().await?;
        let [alpha, beta] = strangers(&world, &relay.url()).await?;
        let thread = introduced(&alpha, &beta).await?;

        relay.commit(V1Crimes { forges: true, replays: true, lies: true, ..V1Crimes::default() });
        for n in 0..6 {
            alpha.send("beta", &format!("{SECRET} {n} of alpha"), Some(&thread)).await?;
            beta.send("alpha", &format!("{SECRET} {n} of beta"), Some(&thread)).await?;
        }
        for (agent, other) in [(&alpha, "beta"), (&beta, "alpha")] {
            for n in 0..6 {
                came(agent, &format!("{SECRET} {n} of {other}"), "sealed").await?;
            }
            all_confirmed(agent).await?;
            nothing_forged_counts(agent)?;
        }

        relay.commit(V1Crimes { withholds: true, lies: true, ..V1Crimes::default() });
        let sent = alpha.send("beta", &format!("{SECRET} withheld"), Some(&thread)).await?;
        let id = sent["messageId"].as_str().context("an id")?.to_owned();
        eventually(LIMIT, "it is withheld", async || Ok((relay.deeds().withheld >= 1).then_some(()))).await?;
        // The relay says that it was delivered, is impossible, and expired: the peer said nothing.
        let store = MessageStore::open(&alpha.store())?;
        let state =
            || anyhow::Ok(store.after(0)?.into_iter().find(|m| m.sent && m.id == id).map(|m| m.state));
        for _ in 0..10 {
            let state = state()?;
            ensure!(matches!(state.as_deref(), Some("pending-send" | "sent")), "{state:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        relay.commit(V1Crimes::default());
        came(&beta, &format!("{SECRET} withheld"), "sealed").await?;
        all_confirmed(&alpha).await?;
        let deeds = relay.deeds();
        println!("the hostile relay of v1 did {deeds:?}");
        ensure!(
            deeds.forged >= 24 && deeds.repeated >= 12 && deeds.lied >= 3 && deeds.carried >= 14,
            "{deeds:?}"
        );
        nothing_was_read(&relay)
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn who_spoke_sealed_stays_sealed_when_v2_is_denied() {
    isolated(who_spoke_sealed_stays_sealed_when_v2_is_denied, async {
        let world = World::new()?;
        let (speaks_v2, relay) = (HostileRelay::start().await?, HostileV1::start().await?);
        let relays = json!([{"url": speaks_v2.url(), "key": speaks_v2.key()}, {"url": relay.url()}]);
        let [mut alpha, mut beta] = strangers_at(&world, &relay.url(), relays).await?;
        for agent in [&alpha, &beta] {
            sessions_are_ready(agent, 1).await?;
        }
        found(&alpha, &beta).await?;
        // In the form of v1, until each knows that the other speaks v2.
        let (hello, again) = (format!("{SECRET} for the first time"), format!("{SECRET} again"));
        let sent = alpha.send("beta", &hello, None).await?;
        ensure!(sent["encryption"] == "e2e", "{sent}");
        eventually(LIMIT, "the first message came", async || {
            Ok(inbound(&beta)?.iter().any(|message| message.body == hello).then_some(()))
        })
        .await?;
        knows_a_device(&beta).await?;
        beta.send("alpha", &again, None).await?;
        came(&alpha, &again, "sealed").await?;

        speaks_v2.commit(Crimes { denies: Some(Denial::Document), impersonates: true, ..Crimes::default() });
        let lies = V1Crimes { impersonates: true, swaps_keys: true, strips: true, ..V1Crimes::default() };
        relay.commit(lies);
        for round in 0..2 {
            for n in 0..3 {
                for (from, to, name) in [(&alpha, &beta, "beta"), (&beta, &alpha, "alpha")] {
                    let text = format!("{SECRET} {round}.{n} to {name}");
                    let sent = from.send(name, &text, None).await?;
                    ensure!(sent["encryption"] == "e2e", "{sent}");
                    came(to, &text, "sealed").await?;
                }
            }
            for agent in [&mut alpha, &mut beta] {
                all_confirmed(agent).await?;
                agent.kill().await?;
                agent.up().await?;
            }
        }
        let (denied, carried) = (speaks_v2.deeds(), relay.deeds());
        println!("the relays did {denied:?} and {carried:?}");
        ensure!(denied.denied >= 1 && denied.v1_logins == 0, "{denied:?}");
        ensure!(carried.carried >= 12 && carried.won == 0, "{carried:?}");
        ensure!(!speaks_v2.heard(SECRET.as_bytes()), "the relay of v2 read the secret");
        nothing_was_read(&relay)
    });
}

async fn fingerprint(agent: &Agent) -> anyhow::Result<String> {
    let health = agent.get("/threadline/health").await?.body;
    Ok(health["fingerprint"].as_str().with_context(|| health.to_string())?.to_owned())
}

async fn tool(agent: &Agent, name: &str, arguments: &Value) -> anyhow::Result<Value> {
    let path = format!("/threadline/tools/{name}");
    Ok(request(&agent.socket(), "POST", &path, &[], Some(arguments)).await?.body)
}

/// It heard who spoke, and nothing of what was said.
fn nothing_was_read(relay: &HostileV1) -> anyhow::Result<()> {
    ensure!(relay.heard(b"tl2-"), "the relay carried nothing");
    ensure!(!relay.heard(SECRET.as_bytes()), "the relay read the secret");
    Ok(())
}

/// What is forged waits for the owner at most.
fn nothing_forged_counts(agent: &Agent) -> anyhow::Result<()> {
    let forged: Vec<_> = inbound(agent)?.into_iter().filter(|message| message.body == FORGED).collect();
    ensure!(forged.iter().all(|message| message.state == "held"), "{}: {forged:?}", agent.name());
    Ok(())
}
