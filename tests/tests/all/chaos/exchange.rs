//! One run: two agents, a relay, several threads, kills, and the check at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use instar_tests::anthropic::MessagesApi;
use instar_tests::harness::{Account, Agent, Relay, World, eventually};
use instar_tests::script::Script;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::killer::{Killer, Victim};
use crate::e2e::sealed;

/// Longest time without a new message in any thread.
const STALL_LIMIT: Duration = Duration::from_secs(90);

/// Limits of the relay, raised by its configuration.
const RELAY_SETTINGS: &str = "\
[limits]
messages_per_minute = 100000
messages_per_hour = 1000000
source_per_minute = 100000
auth_per_minute = 10000
auth_failed_per_minute = 10000
discover_per_minute = 10000

[sybil]
tiers = false
aging_s = 0
connections_per_minute = 10000
sessions_per_source = 1000
identities_per_hour = 1000
";

/// Which program the sessions run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runtime {
    StandIn,
    RealCli,
}

/// How messages get from one agent to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Over the relay alone: nothing leaves without one (`threadline.direct.enabled`).
    Relay,
    /// Sealed, over the relay alone, which is listed with its key.
    Sealed,
    /// As by default: from node to node while both are up, else over the relay.
    Direct,
}

/// What a run does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) runtime: Runtime,
    pub(super) route: Route,
    pub(super) messages: usize,
}

impl Plan {
    /// Threads that run side by side; the real CLI is heavy.
    fn threads(self) -> usize {
        match self.runtime {
            Runtime::StandIn => 4,
            Runtime::RealCli => 2,
        }
    }

    fn turns(self) -> usize {
        self.messages / self.threads()
    }
}

/// Runs the plan.
pub(super) async fn run(plan: Plan) -> anyhow::Result<()> {
    let world = World::new()?;
    let relay = Relay::start(&world, RELAY_SETTINGS).await?;
    let mut account = world.account("ann")?;
    let rules = rules(plan.turns());
    let script = Script::from_json(rules.to_string().as_bytes())?;
    let api = MessagesApi::start(([127, 0, 0, 1], 0).into(), script, None).await?;
    match plan.runtime {
        Runtime::StandIn => account.use_standin(&rules)?,
        Runtime::RealCli => account.use_real_cli(&api)?,
    }
    raise_limits(&mut account, &relay);
    if plan.route != Route::Direct {
        account.configure(json!({"threadline": {"direct": {"enabled": false}}}));
    }
    if plan.route == Route::Sealed {
        account.configure(json!({"threadline": {"relays": [sealed::entry(&relay).await?]}}));
    }
    let (mut alpha, mut beta) = (account.agent("alpha").await?, account.agent("beta").await?);
    alpha.up().await?;
    beta.up().await?;
    eventually(Duration::from_secs(30), "alpha sees beta", async || {
        Ok(alpha.json(&["threadline", "discover"]).await?.to_string().contains("beta").then_some(()))
    })
    .await?;

    if plan.route == Route::Sealed {
        sealed::seals(&alpha, "beta").await?;
    }

    let mut threads = Vec::new();
    for number in 0..plan.threads() {
        let text = format!("turn 1 of c{number}: where shall we begin, at {} or elsewhere?", plan.seed);
        let sent = alpha.send("beta", &text, None).await?;
        threads.push(sent["threadId"].as_str().with_context(|| sent.to_string())?.to_owned());
    }
    ensure!(
        threads.iter().collect::<BTreeSet<_>>().len() == threads.len(),
        "threads of their own: {threads:?}"
    );

    let mut exchange = Exchange { plan, relay, alpha, beta, threads, seen: 0, carried: 0 };
    let kills = exchange.carry_on().await?;
    ensure!(kills >= 10, "only {kills} kills");
    exchange.check().await?;
    exchange.check_route().await
}

struct Exchange {
    plan: Plan,
    relay: Relay,
    alpha: Agent,
    beta: Agent,
    threads: Vec<String>,
    seen: usize,
    /// Messages that relay processes took before they were killed.
    carried: i64,
}

impl Exchange {
    /// Kills by the plan until all messages are there; gives back the number of kills.
    async fn carry_on(&mut self) -> anyhow::Result<usize> {
        let mut killer = Killer::new(self.plan.seed, self.plan.messages);
        let (mut kills, mut moved) = (0, Instant::now());
        loop {
            let progress = self.progress().await;
            if progress > self.seen {
                (self.seen, moved) = (progress, Instant::now());
            }
            if self.seen >= self.plan.messages && killer.done() {
                return Ok(kills);
            }
            if moved.elapsed() > STALL_LIMIT {
                let seen = format!("{} of {} messages after {kills} kills", self.seen, self.plan.messages);
                bail!("the exchange stands still at {seen}\n{}", self.diagnosis().await);
            }
            if let Some(victim) = killer.next(self.seen) {
                tokio::time::sleep(Duration::from_millis(killer.pause())).await;
                let pause = Duration::from_millis(killer.pause());
                if self.kill(&mut killer, victim, pause).await.with_context(|| format!("{victim:?}"))? {
                    kills += 1;
                    println!("kill {kills}: {victim:?} at message {}", self.seen);
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Kills and, where nobody else does it, starts again. Whether there was something to kill.
    async fn kill(&mut self, killer: &mut Killer, victim: Victim, pause: Duration) -> anyhow::Result<bool> {
        match victim {
            Victim::Relay => {
                self.carried += self.relay.accepted().await?;
                self.relay.kill().await?;
                tokio::time::sleep(pause).await;
                self.relay.up().await?;
            }
            Victim::NodeA => restart(&mut self.alpha, pause).await?,
            Victim::NodeB => restart(&mut self.beta, pause).await?,
            Victim::SessionHost | Victim::Runtime => {
                let found = eventually(Duration::from_secs(20), "a process to kill", async || {
                    Ok(killer.process(victim).filter(|process| process.signal(Signal::KILL)))
                });
                return Ok(found.await.is_ok());
            }
        }
        Ok(true)
    }

    /// Messages in alpha's copies; what an agent that is down would say is not counted.
    async fn progress(&self) -> usize {
        let mut sum = 0;
        for thread in &self.threads {
            sum += self.alpha.thread(thread).await.map_or(0, |messages| messages.len());
        }
        sum
    }

    /// Both copies of every thread hold every turn once, in order, under the same ids.
    async fn check(&self) -> anyhow::Result<()> {
        for (number, thread) in self.threads.iter().enumerate() {
            let expected: Vec<String> = (1..=self.plan.turns()).map(|turn| turn_of(turn, number)).collect();
            let copies = eventually(Duration::from_secs(30), "both copies are complete", async || {
                let copies = [self.alpha.thread(thread).await?, self.beta.thread(thread).await?];
                Ok(copies.iter().all(|copy| copy.len() >= expected.len()).then_some(copies))
            });
            let copies = copies.await?;
            for (agent, copy) in ["alpha", "beta"].iter().zip(&copies) {
                let turns: Vec<String> = copy.iter().map(|message| turn_in(&message.body)).collect();
                ensure!(
                    turns == expected,
                    "{agent}'s copy of {thread}: {turns:?}\n{}",
                    self.diagnosis().await
                );
                for (index, message) in copy.iter().enumerate() {
                    let own = (index % 2 == 0) == (*agent == "alpha");
                    ensure!(message.sent == own, "{agent}: direction of {message:?}");
                }
            }
            let ids = |copy: &[instar_tests::harness::Message]| -> Vec<String> {
                copy.iter().map(|message| message.id.clone()).collect()
            };
            ensure!(ids(&copies[0]) == ids(&copies[1]), "the copies of {thread} have other ids");
        }
        Ok(())
    }

    /// The messages took the route of the plan, by the relay's figures and by what the recipients stored.
    async fn check_route(&self) -> anyhow::Result<()> {
        let over_relay = self.carried + self.relay.accepted().await?;
        let mut came = BTreeMap::new();
        for agent in [&self.alpha, &self.beta] {
            for (transport, count) in transports(agent)? {
                *came.entry(transport).or_insert(0) += count;
            }
        }
        println!("the relay took {over_relay} messages; they came by {came:?}");
        let all = self.plan.messages as i64;
        let sum: i64 = came.values().sum();
        match self.plan.route {
            // What a process takes between the reading of its figures and its death is not counted.
            // Once the two have introduced themselves they write sealed, inside the messages of v1.
            Route::Relay => ensure!(
                over_relay >= all * 9 / 10
                    && sum == all
                    && came.keys().all(|way| way == "relay" || way == "sealed")
                    && came.contains_key("relay"),
                "the relay took {over_relay} of {all} messages, which came by {came:?}"
            ),
            Route::Sealed => ensure!(
                came == BTreeMap::from([("sealed".to_owned(), all)]),
                "{all} messages came by {came:?}"
            ),
            Route::Direct => ensure!(
                came.get("local").is_some_and(|count| *count >= all / 2),
                "few of {all} messages came without the relay: {came:?}"
            ),
        }
        Ok(())
    }

    /// Everything that may explain why nothing moves.
    async fn diagnosis(&self) -> String {
        let mut lines = Vec::new();
        for agent in [&self.alpha, &self.beta] {
            for thread in &self.threads {
                let copy = agent.thread(thread).await;
                let shown = copy.map(|messages| {
                    let last: Vec<String> = messages
                        .iter()
                        .rev()
                        .take(3)
                        .map(|message| format!("{} ({})", turn_in(&message.body), message.state))
                        .collect();
                    format!("{} messages, newest first: {}", messages.len(), last.join(", "))
                });
                lines.push(format!("{} {thread}: {shown:?}", agent.name()));
            }
            for command in [&["session", "list"][..], &["threadline", "status"]] {
                let output = agent.cli(command).await.map(|output| output.stdout);
                lines.push(format!("{} {command:?}: {}", agent.name(), output.unwrap_or_default()));
            }
            let rows = open_inputs(agent).unwrap_or_else(|error| vec![format!("{error:#}")]);
            lines.push(format!("{} open inputs: {rows:#?}", agent.name()));
        }
        lines.join("\n")
    }
}

async fn restart(agent: &mut Agent, pause: Duration) -> anyhow::Result<()> {
    agent.kill().await?;
    tokio::time::sleep(pause).await;
    agent.up().await
}

fn database(agent: &Agent, name: &str) -> anyhow::Result<rusqlite::Connection> {
    let path = agent.state().join("state").join(name);
    Ok(rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?)
}

/// How the messages that an agent has came to it.
fn transports(agent: &Agent) -> anyhow::Result<BTreeMap<String, i64>> {
    let database = database(agent, "threadline.sqlite")?;
    let mut query = database
        .prepare("SELECT transport, COUNT(*) FROM messages WHERE direction = 'in' GROUP BY transport")?;
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Rows of the session inbox that wait for something.
fn open_inputs(agent: &Agent) -> anyhow::Result<Vec<String>> {
    let database = database(agent, "messaging.sqlite")?;
    let mut query = database.prepare(
        "SELECT inbox_key, state, attempts, session_id, error FROM session_inbox WHERE state <> 'acked'",
    )?;
    let rows = query.query_map([], |row| {
        let (key, state, attempts): (String, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let (session, error): (Option<String>, Option<String>) = (row.get(3)?, row.get(4)?);
        Ok(format!("{key} {state} attempts={attempts} session={session:?} error={error:?}"))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn turn_of(turn: usize, thread: usize) -> String {
    format!("turn {turn} of c{thread}")
}

/// The turn that a text names.
fn turn_in(body: &str) -> String {
    let from = body.find("turn ").unwrap_or(body.len());
    body[from..].split([':', '\n']).next().unwrap_or_default().to_owned()
}

/// Every turn but the last is answered by the next one.
fn rules(turns: usize) -> Value {
    let open: Vec<String> = (1..turns).map(|turn| turn.to_string()).collect();
    let each = format!(
        "agentId \"(?<peer>\\w+)\", threadId \"(?<thread>[^\"]+)\" and inReplyTo \"(?<id>[^\"]+)\"\
         [\\s\\S]*?<<<PEER_MESSAGE nonce=\\w+>>>\\s*turn (?<n>{}) of (?<c>c\\d+)",
        open.join("|")
    );
    json!({"rules": [{
        "name": "next turn",
        "when": {"user": "\\[threadline:"},
        "answer": {
            "each": each,
            "call": {"tool": "mcp__threadline__threadline_send", "input": {
                "agentId": "{peer}", "threadId": "{thread}", "inReplyTo": "{id}", "waitForReply": false,
                "message": "turn {n+1} of {c}: and what about {noise}?"
            }},
            "attempts": 40, "retry_delay_ms": 500, "then": "answered"
        }
    }]})
}

/// What an exchange of this size needs beyond the defaults.
fn raise_limits(account: &mut Account, relay: &Relay) {
    let many = 1_000_000;
    account.configure(json!({
        // The progress is asked for every 0.1 s.
        "http": {"limits": {"requestsPerMinute": many}},
        "sessions": {"maxSessions": 40, "transport": {"conversation": "stdio"}},
        "threadline": {
            "localRelay": "off", "relayEnabled": true, "relayUrl": relay.url(),
            "sessions": {"maxActive": 20},
            "spawn": {"cooldownMs": 0, "maxQueuedPerPeer": 1000},
            "limits": {
                "globalPerHour": many, "machinePerHour": many,
                "verified": {
                    "messagesPerHour": many, "messagesPerDay": many, "perThreadPerHour": many,
                    "burstPerMinute": many, "outboundPerHour": many, "spawnsPerHour": many
                }
            }
        }
    }));
}
