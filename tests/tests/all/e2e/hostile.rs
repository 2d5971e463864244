//! A hostile relay between real nodes, beside a good one.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use instar_tests::harness::hostile::{Crimes, Denial, HostileRelay};
use instar_tests::harness::{
    Agent, MessageStore, RAISED_LIMITS, Relay, Stored, World, eventually, isolated, request,
};
use serde_json::{Value, json};
use threadline::v2::Key;
use threadline::v2::mail::RowKind;

use super::sealed::{entry, sessions_are_ready};

/// Longest wait for anything. A withheld message goes another way 8 s after its relay said that it has it, a dropped one
/// after 3 s.
const LIMIT: Duration = Duration::from_secs(45);
/// What no relay may read.
const SECRET: &str = "azure heron";
const THREAD: &str = "thread-under-seal";
const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn a_hostile_relay_achieves_nothing() {
    isolated(a_hostile_relay_achieves_nothing, async {
        let world = World::new()?;
        let hostile = HostileRelay::start().await?;
        let mut good = Relay::start(&world, RAISED_LIMITS).await?;
        let mut meeting = Meeting::begin(&world, &hostile, &good).await?;
        meeting.were_disowned(&hostile)?;

        // Nobody else is there to ask.
        good.kill().await?;
        hostile.commit(Crimes { swaps_keys: true, ..Crimes::default() });
        meeting.everybody_writes(1).await?;
        eventually(LIMIT, "keys are swapped in every way", async || {
            Ok((hostile.deeds().swapped >= 12).then_some(()))
        })
        .await?;
        ensure!(meeting.nothing_came()?, "a message was sealed for keys that are not the peer's");
        good.up().await?;
        meeting.everything_came("keys are swapped", LIMIT).await?;

        hostile.commit(Crimes { withholds: true, lies: true, ..Crimes::default() });
        meeting.everybody_writes(2).await?;
        meeting.nothing_counts_as_delivered_that_did_not_come()?;
        meeting.everything_came("messages are withheld", LIMIT).await?;
        meeting.everybody_knows_so("receipts are withheld").await?;
        let deeds = hostile.deeds();
        ensure!(deeds.withheld >= 1 && deeds.lied >= 1, "{deeds:?}");
        nothing_was_read(&hostile)
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn losses_forgeries_and_repetitions_achieve_nothing() {
    isolated(losses_forgeries_and_repetitions_achieve_nothing, async {
        let world = World::new()?;
        let hostile = HostileRelay::start().await?;
        let good = Relay::start(&world, RAISED_LIMITS).await?;
        let mut meeting = Meeting::begin(&world, &hostile, &good).await?;
        hostile.commit(Crimes { drops: true, forges: true, ..Crimes::default() });
        meeting.everybody_writes(10).await?;
        let what = "messages are dropped, forged, repeated and shuffled";
        meeting.everything_came(what, LIMIT).await?;
        meeting.everybody_knows_so(what).await?;
        let deeds = hostile.deeds();
        ensure!(deeds.dropped >= 1 && deeds.forged >= 10, "{deeds:?}");
        println!("the hostile relay did {deeds:?}");
        nothing_was_read(&hostile)
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn keys_of_devices_that_are_gone_do_not_keep_mail_from_those_that_are_there() {
    isolated(keys_of_devices_that_are_gone_do_not_keep_mail_from_those_that_are_there, async {
        let world = World::new()?;
        let hostile = HostileRelay::start().await?;
        let good = Relay::start(&world, RAISED_LIMITS).await?;
        let mut meeting =
            Meeting::begin_with(&world, &hostile, &good, &good.url(), Crimes::default()).await?;
        // Everybody becomes another device.
        hostile.commit(Crimes { disowns: true, ..Crimes::default() });
        hostile.hang_up();
        eventually(LIMIT, "everybody is another device", async || {
            Ok(meeting.were_disowned(&hostile).is_ok().then_some(()))
        })
        .await?;
        hostile.commit(Crimes { serves_the_past: true, ..Crimes::default() });
        meeting.everybody_writes(2).await?;
        let what = "a relay gives out keys of the past";
        meeting.everything_came(what, LIMIT).await?;
        meeting.everybody_knows_so(what).await?;
        let deeds = hostile.deeds();
        println!("the hostile relay did {deeds:?}");
        ensure!(deeds.past >= 1, "{deeds:?}");
        nothing_was_read(&hostile)
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn a_key_that_everybody_is_given_keeps_no_mail_back() {
    isolated(a_key_that_everybody_is_given_keeps_no_mail_back, async {
        let world = World::new()?;
        let hostile = HostileRelay::start().await?;
        let good = Relay::start(&world, RAISED_LIMITS).await?;
        let mut meeting =
            Meeting::begin_with(&world, &hostile, &good, &good.url(), Crimes::default()).await?;
        hostile.commit(Crimes { repeats_keys: true, ..Crimes::default() });
        meeting.everybody_writes(2).await?;
        let what = "a relay gives everybody the same one-time key";
        meeting.everything_came(what, LIMIT).await?;
        meeting.everybody_knows_so(what).await?;
        let deeds = hostile.deeds();
        println!("the hostile relay did {deeds:?}");
        ensure!(deeds.repeated_keys >= 1, "{deeds:?}");
        nothing_was_read(&hostile)
    });
}

/// A node whose store was damaged asks who its peers' devices are, although it has sessions with them.
#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn forged_words_about_devices_achieve_nothing() {
    isolated(forged_words_about_devices_achieve_nothing, async {
        let world = World::new()?;
        let hostile = HostileRelay::start().await?;
        let mut good = Relay::start(&world, RAISED_LIMITS).await?;
        let mut meeting =
            Meeting::begin_with(&world, &hostile, &good, &good.url(), Crimes::default()).await?;
        meeting.everybody_writes(1).await?;
        meeting.everything_came("nothing is wrong", LIMIT).await?;
        meeting.everybody_knows_so("nothing is wrong").await?;

        // Nobody else is there to ask.
        good.kill().await?;
        hostile.commit(Crimes { forges_devices: true, forges: true, ..Crimes::default() });
        let asker = 1;
        meeting.agents[asker].kill().await?;
        forget_peers(&meeting.agents[asker])?;
        meeting.agents[asker].up().await?;
        sessions_are_ready(&meeting.agents[asker], 1).await?;
        let before = inbound(&meeting.agents[asker])?.len();
        for _ in 0..4 {
            let told = hostile.deeds().misnamed;
            for from in [0, 2] {
                meeting.write(from, asker).await?;
            }
            // Perhaps one question for both: who asks already does not ask again.
            eventually(LIMIT, "devices are misnamed", async || {
                Ok((hostile.deeds().misnamed > told).then_some(()))
            })
            .await?;
        }
        ensure!(inbound(&meeting.agents[asker])?.len() == before, "mail of a device that nobody vouched for");
        ensure!(!knows(&meeting.agents[asker], hostile.forger())?, "the forger is somebody's device");
        good.up().await?;
        let what = "devices are misnamed";
        meeting.everything_came(what, LIMIT).await?;
        meeting.everybody_knows_so(what).await?;
        ensure!(!knows(&meeting.agents[asker], hostile.forger())?, "the forger is somebody's device");
        let deeds = hostile.deeds();
        println!("the hostile relay did {deeds:?}");
        ensure!(deeds.forged >= 8, "{deeds:?}");
        nothing_was_read(&hostile)
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn a_relay_whose_clock_is_a_year_off_expires_nothing() {
    isolated(a_relay_whose_clock_is_a_year_off_expires_nothing, async {
        const YEAR_MS: i64 = 365 * 86_400_000;
        let world = World::new()?;
        let hostile = HostileRelay::start().await?;
        let mut good = Relay::start(&world, RAISED_LIMITS).await?;
        let mut meeting =
            Meeting::begin_with(&world, &hostile, &good, &good.url(), Crimes::default()).await?;
        for alone in [false, true] {
            if alone {
                good.kill().await?;
            }
            for (clock_ms, what) in [(YEAR_MS, "a year ahead"), (-YEAR_MS, "a year behind")] {
                hostile.commit(Crimes { clock_ms, ..Crimes::default() });
                hostile.hang_up();
                meeting.everybody_writes(2).await?;
                let what = format!("a relay is {what}{}", if alone { ", and alone" } else { "" });
                meeting.everything_came(&what, LIMIT).await?;
                meeting.everybody_knows_so(&what).await?;
            }
        }
        for agent in &meeting.agents {
            ensure!(agent.node_log().contains("relay-clock:"), "{} was not told", agent.name());
        }
        let deeds = hostile.deeds();
        println!("the hostile relay did {deeds:?}");
        ensure!(deeds.misdated >= 12 && deeds.skewed == 0, "{deeds:?}");
        nothing_was_read(&hostile)
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn a_relay_that_spoke_v2_pulls_nobody_down_to_v1() {
    isolated(a_relay_that_spoke_v2_pulls_nobody_down_to_v1, async {
        let world = World::new()?;
        let hostile = HostileRelay::start().await?;
        let mut good = Relay::start(&world, RAISED_LIMITS).await?;
        let mut meeting =
            Meeting::begin_with(&world, &hostile, &good, &hostile.url(), Crimes::default()).await?;
        meeting.everybody_writes(1).await?;
        meeting.everything_came("nothing is wrong", LIMIT).await?;
        meeting.everybody_knows_so("nothing is wrong").await?;

        good.kill().await?;
        for (denies, restarts) in
            [(Denial::Document, false), (Denial::Document, true), (Denial::NotFound, true)]
        {
            hostile.commit(Crimes { denies: Some(denies), ..Crimes::default() });
            if restarts {
                for agent in &mut meeting.agents {
                    agent.kill().await?;
                    agent.up().await?;
                }
            }
            meeting.everybody_sees_a_downgrade(&hostile.url()).await?;
            meeting.everybody_writes(1).await?;
            // Long enough for another login.
            tokio::time::sleep(Duration::from_secs(3)).await;
            let deeds = hostile.deeds();
            ensure!(deeds.denied >= 1 && deeds.v1_logins == 0, "{denies:?}: {deeds:?}");
            nothing_was_read(&hostile)?;
        }
        good.up().await?;
        meeting.everything_came("a relay denies v2", LIMIT).await?;
        meeting.everybody_knows_so("a relay denies v2").await?;
        let deeds = hostile.deeds();
        println!("the hostile relay did {deeds:?}");
        ensure!(deeds.v1_logins == 0, "{deeds:?}");
        nothing_was_read(&hostile)
    });
}

/// It heard what the nodes said in clear, and nothing of what they said to each other.
fn nothing_was_read(hostile: &HostileRelay) -> anyhow::Result<()> {
    ensure!(hostile.heard(b"alpha"), "the relay heard nothing at all");
    for secret in [SECRET, THREAD] {
        ensure!(!hostile.heard(secret.as_bytes()), "the relay read {secret:?}");
    }
    Ok(())
}

struct Meeting {
    agents: Vec<Agent>,
    fingerprints: Vec<String>,
    /// What the one wrote to the other.
    said: BTreeMap<(usize, usize), Vec<String>>,
}

impl Meeting {
    /// Starts everybody, in spite of what the hostile relay says of them, and waits until all can seal for all.
    async fn begin(world: &World, hostile: &HostileRelay, good: &Relay) -> anyhow::Result<Self> {
        let crimes = Crimes { disowns: true, ..Crimes::default() };
        Self::begin_with(world, hostile, good, &good.url(), crimes).await
    }

    /// The same while the hostile relay does this. The relay at `link` is the one that v1 would be spoken with.
    async fn begin_with(
        world: &World,
        hostile: &HostileRelay,
        good: &Relay,
        link: &str,
        crimes: Crimes,
    ) -> anyhow::Result<Self> {
        let mut account = world.account("ann")?;
        // The hostile one comes first: every message is offered to it.
        let relays = [json!({"url": hostile.url(), "key": hostile.key()}), entry(good).await?];
        // Else a node keeps the sixth message of a minute waiting, and what a relay did is not told from that.
        let many = 1_000;
        let limits = json!({"verified": {
            "messagesPerHour": many, "messagesPerDay": many, "perThreadPerHour": many, "burstPerMinute": many,
            "outboundPerHour": many,
        }});
        account.configure(json!({"threadline": {
            "localRelay": "off", "relayEnabled": true, "relayUrl": link, "relays": relays,
            "visibility": "public", "direct": {"enabled": false}, "sessions": {"maxActive": 0},
            "limits": limits,
        }}));
        hostile.commit(crimes);
        let mut agents = Vec::new();
        for name in NAMES {
            let mut agent = account.agent(name).await?;
            agent.up().await?;
            agents.push(agent);
        }
        let mut meeting = Self { agents, fingerprints: Vec::new(), said: BTreeMap::new() };
        meeting.get_to_know().await?;
        Ok(meeting)
    }

    fn were_disowned(&self, hostile: &HostileRelay) -> anyhow::Result<()> {
        let deeds = hostile.deeds();
        ensure!(
            deeds.disowned >= 2 * self.agents.len(),
            "each node was told twice that it is an old copy: {deeds:?}"
        );
        Ok(())
    }

    /// Waits until every node says of this relay that it spoke v2 before.
    async fn everybody_sees_a_downgrade(&self, url: &str) -> anyhow::Result<()> {
        for agent in &self.agents {
            eventually(LIMIT, &format!("{} sees a downgrade", agent.name()), async || {
                let status = agent.json(&["threadline", "status"]).await?;
                let relays = status["v2"]["relays"].as_array().cloned().unwrap_or_default();
                let relay = relays.iter().find(|relay| relay["url"] == url).context("the relay")?;
                ensure!(relay["trouble"] == "relay-downgrade" && relay["speaks"].is_null(), "so far {relay}");
                Ok(Some(()))
            })
            .await?;
        }
        Ok(())
    }

    async fn get_to_know(&mut self) -> anyhow::Result<()> {
        for agent in &self.agents {
            sessions_are_ready(agent, 2).await?;
            let health = agent.get("/threadline/health").await?.body;
            let fingerprint = health["fingerprint"].as_str().with_context(|| health.to_string())?;
            self.fingerprints.push(fingerprint.to_owned());
        }
        for agent in &self.agents {
            eventually(LIMIT, "everybody is known", async || {
                let known = agent.json(&["threadline", "discover", "--network"]).await?;
                let sealed = |entry: &&Value| entry.to_string().contains("tl2");
                let count = known["agents"].as_array().map_or(0, |all| all.iter().filter(sealed).count());
                Ok((count == NAMES.len() - 1).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// Everybody writes so many messages to everybody.
    async fn everybody_writes(&mut self, count: usize) -> anyhow::Result<()> {
        for _ in 0..count {
            for from in 0..self.agents.len() {
                for to in (0..self.agents.len()).filter(|to| *to != from) {
                    self.write(from, to).await?;
                }
            }
        }
        Ok(())
    }

    async fn write(&mut self, from: usize, to: usize) -> anyhow::Result<()> {
        let said = self.said.entry((from, to)).or_default();
        let text = format!("{SECRET} {}: shall we meet at {}?", said.len(), rand::random::<u16>());
        let body = json!({
            "agentId": self.fingerprints[to], "message": text, "threadId": THREAD, "waitForReply": false,
        });
        let path = "/threadline/tools/threadline_send";
        let answer = request(&self.agents[from].socket(), "POST", path, &[], Some(&body)).await?;
        ensure!(answer.status == 200 && answer.body["encryption"] == "e2e", "{answer:?}");
        said.push(text);
        Ok(())
    }

    /// Waits until everybody has what was written to it: once, in order, sealed, from whom it says, and nothing else.
    async fn everything_came(&self, while_what: &str, limit: Duration) -> anyhow::Result<()> {
        let begun = std::time::Instant::now();
        eventually(limit, &format!("everything is there although {while_what}"), async || {
            for (to, agent) in self.agents.iter().enumerate() {
                let came: Vec<Stored> = inbound(agent)?;
                for (from, peer) in self.fingerprints.iter().enumerate().filter(|(from, _)| *from != to) {
                    let texts: Vec<&str> =
                        came.iter().filter(|m| m.peer == *peer).map(|m| m.body.as_str()).collect();
                    let said = &self.said[&(from, to)];
                    ensure!(
                        said.iter().zip(&texts).all(|(said, came)| said == came) && texts.len() <= said.len(),
                        "{} to {}: {texts:?} of {said:?}",
                        NAMES[from],
                        NAMES[to]
                    );
                    ensure!(
                        texts.len() == said.len(),
                        "{} to {}: {} of {} came; as the sender has them: {:?}",
                        NAMES[from],
                        NAMES[to],
                        texts.len(),
                        said.len(),
                        self.states(from, &self.fingerprints[to])?
                    );
                }
                ensure!(
                    came.iter().all(|m| m.transport == "sealed" && self.fingerprints.contains(&m.peer)),
                    "{} has something from elsewhere: {came:?}",
                    NAMES[to]
                );
            }
            Ok(Some(()))
        })
        .await?;
        println!("{while_what}: everything came in {:.1} s", begun.elapsed().as_secs_f32());
        Ok(())
    }

    /// Waits until every sender has its peer's own word for everything: nothing that came is ever called expired.
    async fn everybody_knows_so(&self, while_what: &str) -> anyhow::Result<()> {
        let begun = std::time::Instant::now();
        eventually(LIMIT, &format!("everything is confirmed although {while_what}"), async || {
            for agent in &self.agents {
                let waiting = MessageStore::open(&agent.store())?.unconfirmed()?;
                ensure!(waiting.is_empty(), "{} knows nothing of {waiting:?}", agent.name());
            }
            Ok(Some(()))
        })
        .await?;
        println!("{while_what}: everything was confirmed {:.1} s later", begun.elapsed().as_secs_f32());
        Ok(())
    }

    /// States of what one of them sent to a peer, oldest first.
    fn states(&self, from: usize, peer: &str) -> anyhow::Result<Vec<String>> {
        let all = MessageStore::open(&self.agents[from].store())?.after(0)?;
        Ok(all.into_iter().filter(|m| m.sent && m.peer == *peer).map(|m| m.state).collect())
    }

    fn nothing_came(&self) -> anyhow::Result<bool> {
        Ok(self.agents.iter().map(inbound).collect::<Result<Vec<_>, _>>()?.concat().is_empty())
    }

    /// A relay's word that a message was taken is not the peer's.
    fn nothing_counts_as_delivered_that_did_not_come(&self) -> anyhow::Result<()> {
        let came: Vec<Stored> = self.agents.iter().map(inbound).collect::<Result<Vec<_>, _>>()?.concat();
        for agent in &self.agents {
            let sent = MessageStore::open(&agent.store())?.after(0)?.into_iter().filter(|m| m.sent);
            for message in sent.filter(|sent| came.iter().all(|came| came.id != sent.id)) {
                ensure!(message.state != "delivered", "{}: {message:?}", agent.name());
            }
        }
        Ok(())
    }
}

/// Takes what a stopped agent knows of its peers' devices out of its store; its sessions with them stay.
fn forget_peers(agent: &Agent) -> anyhow::Result<()> {
    let database = rusqlite::Connection::open(agent.store())?;
    let forgotten = database.execute("DELETE FROM mail WHERE kind = ?1", [RowKind::Peer as i64])?;
    ensure!(forgotten >= 2, "{forgotten} peers were known");
    Ok(())
}

/// Whether a key is anywhere in what an agent keeps of its sealed mail.
fn knows(agent: &Agent, key: Key) -> anyhow::Result<bool> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let database = rusqlite::Connection::open_with_flags(agent.store(), flags)?;
    let anywhere = "SELECT EXISTS(SELECT 1 FROM mail WHERE instr(key, ?1) > 0 OR instr(value, ?1) > 0)";
    Ok(database.query_row(anywhere, [key.0], |row| row.get(0))?)
}

fn inbound(agent: &Agent) -> anyhow::Result<Vec<Stored>> {
    let all = MessageStore::open(&agent.store())?.after(0)?;
    Ok(all.into_iter().filter(|message| !message.sent).collect())
}
