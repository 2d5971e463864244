//! One run: a part of the messages is let go, something breaks while they move, and all of them have to be there before
//! the next part goes.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::future::{join_all, try_join_all};
use instar_tests::harness::World;
use rand::rngs::StdRng;
use rand::seq::{IteratorRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use super::Plan;
use super::fleet::{Fleet, RELAYS, SMALL_DISK};
use super::lanes::{Ledger, check, follow, lanes, write};
use super::v1::Pair;

/// The death of a relay has to be bridged by the others within this time.
const BRIDGE_LIMIT: Duration = Duration::from_secs(30);
/// Longest time in which what was sent has to be there, whatever broke.
const SETTLE_LIMIT: Duration = Duration::from_secs(150);
/// Wrong clocks still agree within the two minutes that the protocol allows.
const SKEW_S: i64 = 50;
/// Clocks that their peers can't work with: what one says that is ahead counts only when its time has come.
const WRONG_S: [i64; 2] = [-3_600, 170];

/// What breaks while one part of the messages moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// So many nodes and relays are killed, on top of each other, and come back.
    Kills(usize),
    /// A relay dies and stays dead until the others have delivered everything.
    Bridge(usize),
    /// Half the sockets of a relay go dead without a word, and so does one node.
    HalfOpen(usize),
    /// A relay can't be reached, but nobody is told.
    Dark(usize),
    /// A relay has no room left, and is killed in this state.
    DiskFull,
    /// Some nodes and a relay restart with clocks that differ by up to 100 s.
    Skew,
    /// A node restarts with a wrong clock, and later with the right one.
    WrongClock,
}

impl Plan {
    fn faults(self, random: &mut StdRng) -> Vec<Fault> {
        let mut all = Vec::new();
        for number in 0..self.rounds {
            let relay = number % RELAYS;
            let mut round =
                vec![Fault::Kills(6), Fault::Kills(6), Fault::DiskFull, Fault::Skew, Fault::HalfOpen(relay)];
            round.extend((0..RELAYS).map(Fault::Bridge));
            if self.slow_faults && number % 3 == 0 {
                round.extend([Fault::Dark((relay + 1) % RELAYS), Fault::WrongClock]);
            }
            round.shuffle(random);
            all.extend(round);
        }
        all
    }
}

/// Runs the plan.
pub(super) async fn run(plan: Plan) -> anyhow::Result<()> {
    let begun = Instant::now();
    let world = World::in_memory("3g")?;
    let routes = lanes(plan.nodes);
    let fleet = Arc::new(Fleet::start(&world, plan.nodes, &routes).await?);
    println!("{} nodes and {RELAYS} relays stand after {:.1} s", plan.nodes, begun.elapsed().as_secs_f32());
    let ledger = Arc::new(Ledger::new(routes));

    let mut work = JoinSet::new();
    work.spawn(follow(Arc::clone(&fleet), Arc::clone(&ledger)));
    let mut clients = JoinSet::new();
    let pairs: Vec<Arc<Pair>> = (0..RELAYS).map(|_| Arc::default()).collect();
    for (number, pair) in pairs.iter().enumerate() {
        clients.spawn(Arc::clone(pair).run(fleet.relay_url(number)));
    }
    for lane in 0..ledger.lanes.len() {
        work.spawn(write(Arc::clone(&fleet), Arc::clone(&ledger), lane, plan.per_lane));
    }

    let random = StdRng::seed_from_u64(plan.seed);
    let mut campaign = Campaign {
        plan,
        fleet: Arc::clone(&fleet),
        ledger: Arc::clone(&ledger),
        random,
        kills: 0,
        worst: Duration::ZERO,
    };
    let trouble = async {
        while let Some(ended) = work.join_next().await {
            ended??;
        }
        // The follower never ends well, so this is not reached while the scenario runs.
        std::future::pending::<anyhow::Result<()>>().await
    };
    let done = tokio::select! {
        done = campaign.go() => done,
        wrong = trouble => wrong,
        wrong = failed(&mut clients) => wrong,
    };
    if let Err(error) = done {
        println!("{}", campaign.diagnosis().await);
        return Err(error);
    }
    work.shutdown().await;
    for pair in &pairs {
        pair.stop();
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }

    let total = check(&fleet, &ledger, plan.per_lane)?;
    ensure!(total == plan.per_lane * ledger.lanes.len(), "the stores hold {total} messages");
    let by_v1: Vec<_> = pairs.iter().map(|pair| pair.figures()).collect();
    println!(
        "{total} messages, none lost, none twice, all in order; {} kills; worst bridging of a dead relay {:.1} s; v1 \
         clients got (messages, again) {by_v1:?}; {:.0} s in all",
        campaign.kills,
        campaign.worst.as_secs_f32(),
        begun.elapsed().as_secs_f32()
    );
    ensure!(campaign.kills >= plan.kills, "only {} kills", campaign.kills);
    ensure!(by_v1.iter().all(|(came, _)| *came >= 20), "v1 clients hardly talked: {by_v1:?}");
    Ok(())
}

async fn failed(clients: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    match clients.join_next().await {
        Some(ended) => ended?.and_then(|()| bail!("a v1 client ended by itself")),
        None => bail!("there are no v1 clients"),
    }
}

struct Campaign {
    plan: Plan,
    fleet: Arc<Fleet>,
    ledger: Arc<Ledger>,
    random: StdRng,
    kills: usize,
    /// Longest time that it took to bridge the death of a relay.
    worst: Duration,
}

impl Campaign {
    async fn go(&mut self) -> anyhow::Result<()> {
        let faults = self.plan.faults(&mut self.random);
        // One part for each fault, and one before them in peace.
        for part in 0..=faults.len() {
            let allowed = self.plan.per_lane * (part + 1) / (faults.len() + 1);
            self.ledger.allowed.send_replace(allowed);
            let begun = Instant::now();
            let fault = part.checked_sub(1).map(|index| faults[index]);
            match fault {
                Some(fault) => self.suffer(fault, allowed).await.with_context(|| format!("{fault:?}"))?,
                None => self.settle(allowed, SETTLE_LIMIT, &[]).await?,
            }
            println!(
                "{:>6} messages stored, {:>3} kills; {:.1} s for {fault:?}",
                self.ledger.stored(),
                self.kills,
                begun.elapsed().as_secs_f32()
            );
        }
        Ok(())
    }

    async fn suffer(&mut self, fault: Fault, allowed: usize) -> anyhow::Result<()> {
        let fleet = Arc::clone(&self.fleet);
        if fault != Fault::DiskFull {
            self.pause(0, 300).await;
        }
        match fault {
            Fault::Kills(count) => self.kill_some(count).await?,
            Fault::Bridge(relay) => {
                fleet.relays[relay].lock().await.kill().await?;
                self.kills += 1;
                let dead = Instant::now();
                self.settle(allowed, BRIDGE_LIMIT, &[])
                    .await
                    .context("the death of a relay was not bridged")?;
                self.worst = self.worst.max(dead.elapsed());
                println!("       relay {relay} dead: bridged in {:.1} s", dead.elapsed().as_secs_f32());
                fleet.relays[relay].lock().await.up().await?;
            }
            Fault::HalfOpen(relay) => {
                let frozen = fleet.proxies[relay].freeze(2);
                println!("       {frozen} sockets of relay {relay} are half open");
                let node = self.random.random_range(0..self.plan.nodes);
                let pause = self.milliseconds(0, 1_000);
                fleet.restart_node(node, pause).await?;
                self.kills += 1;
            }
            Fault::Dark(relay) => {
                fleet.proxies[relay].set_dark(true);
                let settled = self.settle(allowed, SETTLE_LIMIT, &[]).await;
                fleet.proxies[relay].set_dark(false);
                settled.context("with a relay in the dark")?;
            }
            Fault::DiskFull => {
                fleet.disk.fill()?;
                self.settle(allowed, SETTLE_LIMIT, &[]).await.context("with a full disk")?;
                fleet.relays[SMALL_DISK].lock().await.kill().await?;
                self.kills += 1;
                fleet.disk.relieve()?;
                fleet.relays[SMALL_DISK].lock().await.up().await?;
            }
            Fault::Skew => {
                for node in self.some_nodes(3) {
                    let seconds = self.random.random_range(-SKEW_S..=SKEW_S);
                    fleet.skew_node(node, seconds).await;
                    fleet.restart_node(node, Duration::ZERO).await?;
                    self.kills += 1;
                }
            }
            Fault::WrongClock => {
                let node = self.random.random_range(0..self.plan.nodes);
                let seconds = WRONG_S[self.random.random_range(0..WRONG_S.len())];
                fleet.skew_node(node, seconds).await;
                fleet.restart_node(node, Duration::ZERO).await?;
                self.settle(allowed, SETTLE_LIMIT, &[node]).await.context("beside a wrong clock")?;
                fleet.skew_node(node, 0).await;
                fleet.restart_node(node, Duration::ZERO).await?;
                self.kills += 2;
            }
        }
        self.settle(allowed, SETTLE_LIMIT, &[]).await
    }

    /// Kills that overlap: each victim dies and comes back at times of its own.
    async fn kill_some(&mut self, count: usize) -> anyhow::Result<()> {
        let relay = self.random.random_range(0..RELAYS);
        let nodes = self.some_nodes(count - 1);
        let mut times = || {
            let (at, dead) = (self.random.random_range(0..1_500), self.random.random_range(0..1_000));
            (Duration::from_millis(at), Duration::from_millis(dead))
        };
        let (at, dead) = times();
        let times: Vec<_> = nodes.into_iter().map(|node| (node, times())).collect();
        let fleet = &self.fleet;
        let deaths = times.into_iter().map(|(node, (at, dead))| async move {
            tokio::time::sleep(at).await;
            fleet.restart_node(node, dead).await
        });
        let death_of_relay = async {
            tokio::time::sleep(at).await;
            fleet.restart_relay(relay, dead).await
        };
        tokio::try_join!(try_join_all(deaths), death_of_relay)?;
        self.kills += count;
        Ok(())
    }

    fn some_nodes(&mut self, count: usize) -> Vec<usize> {
        (0..self.plan.nodes).sample(&mut self.random, count)
    }

    fn milliseconds(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.random.random_range(least..=most))
    }

    async fn pause(&mut self, least: u64, most: u64) {
        let pause = self.milliseconds(least, most);
        tokio::time::sleep(pause).await;
    }

    /// Waits until every lane has so many messages in its recipient's store, but those of the nodes in `except`.
    async fn settle(&self, wanted: usize, limit: Duration, except: &[usize]) -> anyhow::Result<()> {
        let begun = Instant::now();
        let wanted = vec![wanted; self.ledger.lanes.len()];
        loop {
            let missing = self.ledger.missing(&wanted, except);
            if missing.is_empty() {
                return Ok(());
            }
            ensure!(begun.elapsed() < limit, "not there after {limit:?}: {}", missing.join(", "));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What may explain why something is missing.
    async fn diagnosis(&self) -> String {
        let mut text = String::new();
        let statuses = self.fleet.nodes.iter().map(|node| async move {
            let node = node.lock().await;
            let status = node.get("/threadline/status").await.map(|answer| answer.body["v2"].to_string());
            format!("{}: {}", node.name(), status.unwrap_or_else(|error| format!("{error:#}")))
        });
        for status in join_all(statuses).await {
            let _ = writeln!(text, "{status}");
        }
        for (number, relay) in self.fleet.relays.iter().enumerate() {
            let log = relay.lock().await.log();
            let lines: Vec<&str> = log.lines().rev().take(15).collect();
            let _ = writeln!(text, "relay {number}, newest first:\n{}", lines.join("\n"));
        }
        let _ = writeln!(text, "taken by senders: {:?}", self.ledger.taken());
        text
    }
}
