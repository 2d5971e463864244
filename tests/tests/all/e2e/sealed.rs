//! Sealed mail between two real nodes over two real relays.

use std::time::Duration;

use anyhow::{Context, ensure};
use instar_tests::harness::{Agent, RAISED_LIMITS, Relay, UdpPath, World, eventually, isolated};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(45);

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn mail_is_sealed_and_survives_the_death_of_a_relay() {
    isolated(mail_is_sealed_and_survives_the_death_of_a_relay, async {
        let world = World::new()?;
        let mut first = Relay::start_named(&world, "first", "").await?;
        let second = Relay::start_named(&world, "second", "").await?;
        let relays = [entry(&first).await?, entry(&second).await?];
        let mut account = world.account("ann")?;
        account.configure(json!({"threadline": {
            "localRelay": "off", "relayEnabled": true, "relays": relays, "visibility": "public",
            "direct": {"enabled": false},
        }}));
        let (mut alpha, mut beta) = (account.agent("alpha").await?, account.agent("beta").await?);
        alpha.up().await?;
        beta.up().await?;
        for agent in [&alpha, &beta] {
            sessions_are_ready(agent, 2).await?;
        }
        eventually(LIMIT, "alpha knows beta", async || {
            let agents = alpha.json(&["threadline", "discover", "--network"]).await?;
            Ok(agents.to_string().contains("tl2").then_some(()))
        })
        .await?;

        let sent = alpha.send("beta", "which day is it?", None).await?;
        ensure!(sent["encryption"] == "e2e", "{sent}");
        let thread = sent["threadId"].as_str().with_context(|| sent.to_string())?.to_owned();
        arrived(&beta, &thread, 1).await?;

        first.kill().await?;
        beta.send("alpha", "a Sunday", Some(&thread)).await?;
        arrived(&alpha, &thread, 2).await?;
        alpha.send("beta", "thank you", Some(&thread)).await?;
        arrived(&beta, &thread, 3).await?;
        let status = alpha.json(&["threadline", "status"]).await?;
        ensure!(status["v2"]["sessions"].to_string().contains("ready"), "{status}");
        Ok(())
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn the_accounts_own_relay_carries_sealed_mail() {
    isolated(the_accounts_own_relay_carries_sealed_mail, async {
        let world = World::new()?;
        let mut account = world.account("ann")?;
        account.configure(json!({"threadline": {"direct": {"enabled": false}}}));
        let (mut alpha, mut beta) = (account.agent("alpha").await?, account.agent("beta").await?);
        alpha.up().await?;
        beta.up().await?;
        for (agent, other) in [(&alpha, "beta"), (&beta, "alpha")] {
            sessions_are_ready(agent, 1).await?;
            seals(agent, other).await?;
        }
        let sent = alpha.send("beta", "which day is it?", None).await?;
        ensure!(sent["encryption"] == "e2e", "{sent}");
        let thread = sent["threadId"].as_str().with_context(|| sent.to_string())?.to_owned();
        arrived(&beta, &thread, 1).await?;

        // The relay is in alpha: beta takes it over, with what it holds.
        alpha.kill().await?;
        beta.send("alpha", "a Sunday", Some(&thread)).await?;
        sessions_are_ready(&beta, 1).await?;
        alpha.up().await?;
        arrived(&alpha, &thread, 2).await?;
        alpha.send("beta", "thank you", Some(&thread)).await?;
        arrived(&beta, &thread, 3).await?;
        for (agent, count) in [(&alpha, 1), (&beta, 2)] {
            ensure!(sealed_arrivals(agent)? == count, "{} messages came sealed to {}", count, agent.name());
        }
        Ok(())
    });
}

/// New agents are shown at once.
const OPEN_DIRECTORY: &str = "[sybil]\ntiers = false\naging_s = 0\n";

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn strangers_find_each_other_where_only_v2_is_spoken() {
    isolated(strangers_find_each_other_where_only_v2_is_spoken, async {
        let world = World::new()?;
        let relay = Relay::start(&world, OPEN_DIRECTORY).await?;
        let mut listed = entry(&relay).await?;
        listed["protocol"] = json!("2");
        let linked = json!({"threadline": {
            "localRelay": "off", "relayEnabled": true, "relays": [listed], "visibility": "public",
        }});
        let mut agents = Vec::new();
        for (account, name) in [("ann", "alpha"), ("bob", "beta")] {
            let mut account = world.account(account)?;
            account.configure(linked.clone());
            let mut agent = account.agent(name).await?;
            agent.up().await?;
            sessions_are_ready(&agent, 1).await?;
            agents.push(agent);
        }
        let [alpha, mut beta] = <[Agent; 2]>::try_from(agents).map_err(|_| anyhow::anyhow!("two"))?;
        let status = alpha.json(&["threadline", "status"]).await?;
        ensure!(status["link"]["state"] != "connected", "no v1 is spoken: {status}");
        for (seeker, sought) in [(&beta, "alpha"), (&alpha, "beta")] {
            eventually(LIMIT, &format!("{sought} is found"), async || {
                let found = seeker.json(&["threadline", "discover", "--network"]).await?;
                Ok(found["agents"].to_string().contains(sought).then_some(()))
            })
            .await?;
        }
        beta.send("alpha", "you do not know me", None).await?;
        eventually(LIMIT, "alpha's owner is asked", async || {
            let approvals = alpha.json(&["threadline", "approvals"]).await?;
            Ok(approvals["approvals"].as_array().is_some_and(|rows| !rows.is_empty()).then_some(()))
        })
        .await?;
        status_of(&alpha, "beta", "online").await?;
        beta.kill().await?;
        status_of(&alpha, "beta", "offline").await?;
        beta.up().await?;
        status_of(&alpha, "beta", "online").await
    });
}

/// Waits until one agent hears that another one is there, or not.
async fn status_of(agent: &Agent, other: &str, wanted: &str) -> anyhow::Result<()> {
    eventually(LIMIT, &format!("{other} is {wanted}"), async || {
        let answer = agent.get("/threadline/agents?includeOffline=true").await?.body;
        let agents = answer["agents"].as_array().with_context(|| answer.to_string())?;
        let there = agents.iter().find(|known| known["name"] == other).map(|known| &known["status"]);
        if there.is_some_and(|status| *status == json!(wanted)) {
            Ok(Some(()))
        } else {
            anyhow::bail!("so far {answer}")
        }
    })
    .await
}

/// Messages that came to an agent as sealed mail.
fn sealed_arrivals(agent: &Agent) -> anyhow::Result<i64> {
    let path = agent.state().join("state/threadline.sqlite");
    let database = rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let count = "SELECT COUNT(*) FROM messages WHERE direction = 'in' AND transport = 'sealed'";
    Ok(database.query_row(count, [], |row| row.get(0))?)
}

/// Waits until one agent knows that another one speaks v2.
pub(crate) async fn seals(agent: &Agent, other: &str) -> anyhow::Result<()> {
    eventually(LIMIT, &format!("{} knows that {other} seals", agent.name()), async || {
        let answer = agent.json(&["threadline", "discover"]).await?;
        let agents = answer["agents"].as_array().with_context(|| answer.to_string())?;
        let seals = |known: &&Value| known["name"] == other && known.to_string().contains("tl2");
        if agents.iter().any(|known| seals(&known)) { Ok(Some(())) } else { anyhow::bail!("so far {answer}") }
    })
    .await
}

/// A session over WebSocket/2 goes over to QUIC by itself: the first try comes after 20 s at most, and each that fails
/// doubles the pause.
const GOES_OVER: Duration = Duration::from_secs(150);

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn mail_goes_over_quic_and_over_websocket_where_udp_is_cut() {
    isolated(mail_goes_over_quic_and_over_websocket_where_udp_is_cut, async {
        let world = World::new()?;
        let (mut relay, path) = relay_behind_a_path(&world).await?;
        let (alpha, beta) = two_over(&world, &relay).await?;
        let both = [&alpha, &beta];
        carried_by(&relay, &both, "quic").await?;
        seals(&alpha, "beta").await?;
        seals(&beta, "alpha").await?;
        let sent = alpha.send("beta", "one over QUIC", None).await?;
        ensure!(sent["encryption"] == "e2e", "{sent}");
        let thread = sent["threadId"].as_str().with_context(|| sent.to_string())?.to_owned();
        arrived(&beta, &thread, 1).await?;
        let confirmed = async |carrier: &str| {
            relay.figure(&format!("threadline_carrier_confirmed_total{{carrier=\"{carrier}\"}}")).await
        };
        ensure!(confirmed("quic").await? >= 1);
        doctor_says(&alpha, ": QUIC").await?;

        path.cut();
        beta.send("alpha", "two without UDP", Some(&thread)).await?;
        arrived(&alpha, &thread, 2).await?;
        carried_by(&relay, &both, "ws2").await?;
        ensure!(confirmed("ws2").await? >= 1);
        doctor_says(&alpha, "WebSocket/2, because UDP does not get through").await?;

        path.mend();
        carried_by(&relay, &both, "quic").await?;
        alpha.send("beta", "three over QUIC", Some(&thread)).await?;
        arrived(&beta, &thread, 3).await?;
        doctor_says(&alpha, ": QUIC").await?;

        // A relay that is back resets what it does not know.
        relay.kill().await?;
        relay.up().await?;
        carried_by(&relay, &both, "quic").await
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn a_session_goes_over_to_quic_by_itself_and_no_message_is_lost_or_doubled() {
    isolated(a_session_goes_over_to_quic_by_itself_and_no_message_is_lost_or_doubled, async {
        let world = World::new()?;
        let (relay, path) = relay_behind_a_path(&world).await?;
        path.cut();
        let (alpha, beta) = two_over(&world, &relay).await?;
        let both = [&alpha, &beta];
        carried_by(&relay, &both, "ws2").await?;
        doctor_says(&alpha, "WebSocket/2, because UDP does not get through").await?;
        seals(&alpha, "beta").await?;
        seals(&beta, "alpha").await?;
        let sent = alpha.send("beta", "alpha 0", None).await?;
        let thread = sent["threadId"].as_str().with_context(|| sent.to_string())?.to_owned();
        arrived(&beta, &thread, 1).await?;

        path.mend();
        let begun = std::time::Instant::now();
        let (mut rounds, mut went_over) = (0, None);
        // Some more go out over QUIC.
        while went_over.is_none_or(|at| rounds < at + 5) {
            rounds += 1;
            alpha.send("beta", &format!("alpha {rounds}"), Some(&thread)).await?;
            beta.send("alpha", &format!("beta {rounds}"), Some(&thread)).await?;
            let is_over = is_carried_by(&alpha, "quic").await? && is_carried_by(&beta, "quic").await?;
            if is_over && went_over.is_none() {
                println!("both went over after {:.1} s", begun.elapsed().as_secs_f32());
                went_over = Some(rounds);
            }
            ensure!(begun.elapsed() < GOES_OVER, "no session over QUIC after {rounds} rounds");
            // The relay takes a message a second from each.
            tokio::time::sleep(Duration::from_millis(800)).await;
        }
        for (agent, name, first) in [(&alpha, "beta", 1), (&beta, "alpha", 0)] {
            let said: Vec<String> = (first..=rounds).map(|number| format!("{name} {number}")).collect();
            eventually(LIMIT, &format!("{} has all of it", agent.name()), async || {
                let came: Vec<String> = bodies(agent, &thread)?;
                ensure!(came.len() >= said.len(), "so far {came:?}");
                Ok(Some(()))
            })
            .await?;
            ensure!(bodies(agent, &thread)? == said, "once, and in order: {:?}", bodies(agent, &thread)?);
        }
        for (carrier, sessions) in [("quic", 2), ("ws2", 0)] {
            let labels = format!("{{carrier=\"{carrier}\"}}");
            let logins = relay.figure(&format!("threadline_carrier_logins_total{labels}")).await?;
            let open = relay.figure(&format!("threadline_sessions{labels}")).await?;
            ensure!(logins == 2 && open == sessions, "{carrier}: {logins} logins, {open} sessions");
        }
        Ok(())
    });
}

/// A relay whose datagrams can be cut off.
async fn relay_behind_a_path(world: &World) -> anyhow::Result<(Relay, UdpPath)> {
    let mut relay = Relay::start(world, RAISED_LIMITS).await?;
    let path = UdpPath::to(relay.quic_port()).await?;
    relay.kill().await?;
    let settings = format!("{RAISED_LIMITS}\n[quic]\npublic_port = {}\n", path.port());
    std::fs::write(relay.data().join("relay.toml"), settings)?;
    relay.up().await?;
    Ok((relay, path))
}

/// What `instar doctor` says of the carrier, whatever else it finds.
async fn doctor_says(agent: &Agent, words: &str) -> anyhow::Result<()> {
    let said = agent.cli(&["doctor"]).await?.stdout;
    let line = said.lines().find(|line| line.contains("carrier"));
    println!("{}", line.unwrap_or("no line"));
    ensure!(line.is_some_and(|line| line.contains(words)), "{words}: {said}");
    Ok(())
}

/// Two agents of one account, alpha and beta, that have nothing but this relay between them.
async fn two_over(world: &World, relay: &Relay) -> anyhow::Result<(Agent, Agent)> {
    let mut account = world.account("ann")?;
    let many = 1_000;
    account.configure(json!({"threadline": {
        "localRelay": "off", "relayEnabled": true, "relays": [entry(relay).await?], "visibility": "public",
        "direct": {"enabled": false}, "sessions": {"maxActive": 0},
        "limits": {"verified": {
            "messagesPerHour": many, "messagesPerDay": many, "perThreadPerHour": many, "burstPerMinute": many,
            "outboundPerHour": many,
        }},
    }}));
    let (mut alpha, mut beta) = (account.agent("alpha").await?, account.agent("beta").await?);
    alpha.up().await?;
    beta.up().await?;
    Ok((alpha, beta))
}

async fn is_carried_by(agent: &Agent, word: &str) -> anyhow::Result<bool> {
    let status = agent.json(&["threadline", "status"]).await?;
    let sessions = status["v2"]["sessions"].as_array().cloned().unwrap_or_default();
    Ok(sessions.iter().any(|session| session["state"] == "ready" && session["carrier"] == word))
}

/// Waits until each of these agents has its v2 session over that carrier, by their words and by the relay's figures.
async fn carried_by(relay: &Relay, agents: &[&Agent], carrier: &str) -> anyhow::Result<()> {
    let word = if carrier == "quic" { "quic" } else { "websocket" };
    for agent in agents {
        eventually(GOES_OVER, &format!("a session of {} over {carrier}", agent.name()), async || {
            Ok(is_carried_by(agent, word).await?.then_some(()))
        })
        .await?;
    }
    eventually(LIMIT, &format!("the relay counts {} sessions over {carrier}", agents.len()), async || {
        let sessions = relay.figure(&format!("threadline_sessions{{carrier=\"{carrier}\"}}")).await?;
        Ok((sessions == agents.len() as i64).then_some(()))
    })
    .await
}

/// The relay with the key that it shows, as the configuration wants it without TLS.
pub(crate) async fn entry(relay: &Relay) -> anyhow::Result<Value> {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let url = relay.url();
    let base = url.replace("ws://", "http://").replace("/v1/connect", "");
    let signed: Value = reqwest::get(format!("{base}/.well-known/threadline")).await?.json().await?;
    let text = URL_SAFE_NO_PAD.decode(signed["doc"].as_str().context("a document")?)?;
    let document: Value = serde_json::from_slice(&text)?;
    let key = URL_SAFE_NO_PAD.decode(document["relay_key"].as_str().context("a key")?)?;
    Ok(json!({"url": url, "key": hex::encode(key)}))
}

pub(super) async fn sessions_are_ready(agent: &Agent, count: usize) -> anyhow::Result<()> {
    eventually(LIMIT, "v2 sessions are open", async || {
        let status = agent.json(&["threadline", "status"]).await?;
        let sessions = status["v2"]["sessions"].as_array().cloned().unwrap_or_default();
        let ready = sessions.iter().filter(|session| session["state"] == "ready").count();
        Ok((ready == count).then_some(()))
    })
    .await
}

async fn arrived(agent: &Agent, thread: &str, count: usize) -> anyhow::Result<()> {
    eventually(LIMIT, "the message is there", async || {
        let messages = agent.thread(thread).await.unwrap_or_default();
        Ok((messages.len() == count).then_some(()))
    })
    .await
}

/// The bodies of what came to an agent in a thread.
fn bodies(agent: &Agent, thread: &str) -> anyhow::Result<Vec<String>> {
    let path = agent.state().join("state/threadline.sqlite");
    let database = rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut statement = database
        .prepare("SELECT body FROM messages WHERE direction = 'in' AND thread_id = ?1 ORDER BY id")?;
    let rows = statement.query_map([thread], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Texts that fit into no envelope.
mod long_texts {
    use std::process::Stdio;

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Says a text that no argument could hold.
    async fn send_long(agent: &Agent, to: &str, text: &str) -> anyhow::Result<Value> {
        let mut command =
            agent.command(&["threadline", "send", to, "-", "--no-wait", "--new-thread", "--json"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().context("stdin")?;
        stdin.write_all(text.as_bytes()).await?;
        drop(stdin);
        let output = child.wait_with_output().await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    #[test]
    #[ignore = "drives the real binary: tests/run e2e"]
    fn a_long_text_survives_the_death_of_its_relay() {
        isolated(a_long_text_survives_the_death_of_its_relay, async {
            let world = World::new()?;
            let mut relay = Relay::start(&world, "").await?;
            let (alpha, beta) = two_over(&world, &relay).await?;
            for (agent, other) in [(&alpha, "beta"), (&beta, "alpha")] {
                sessions_are_ready(agent, 1).await?;
                seals(agent, other).await?;
            }
            let text = (0..40_000).map(|n| format!("{n:011}\n")).collect::<Vec<_>>().concat();
            for round in 0..3 {
                let text = format!("round {round}\n{text}");
                let sent = send_long(&alpha, "beta", &text).await?;
                ensure!(sent["encryption"] == "e2e", "{sent}");
                let thread = sent["threadId"].as_str().with_context(|| sent.to_string())?.to_owned();
                if round > 0 {
                    // While the text is asked for, or on its way.
                    tokio::time::sleep(Duration::from_millis(100 * round)).await;
                    relay.kill().await?;
                    relay.up().await?;
                }
                eventually(LIMIT * 2, "the whole text is there", async || {
                    let bodies = bodies(&beta, &thread)?;
                    ensure!(bodies.iter().all(|body| *body == text), "another text is there");
                    Ok((bodies.len() == 1).then_some(()))
                })
                .await?;
            }
            let refused = send_long(&alpha, "beta", &"x".repeat(600_000)).await;
            ensure!(refused.is_err_and(|error| error.to_string().contains("524288")), "the limit is told");
            Ok(())
        });
    }
}
