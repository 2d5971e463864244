//! Pairs of a sender and a recipient: capacity, latency, processor time per message.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Plan;
use super::subject::Subject;
use super::wire::{Client, Heard, Phase, Template, acknowledge, number};
use crate::report::{self, Samples, show};

const PAIRS: usize = 16;
/// Messages of one pair without an answer, when looking for the capacity.
const WINDOW: u64 = 64;
/// What a Node.js relay of the same protocol takes, and for messages of which size.
const NODE_US_PER_MESSAGE: f64 = 65.0;
const NODE_SIZE: usize = 1024;
pub(super) const FIXED_RATE: f64 = 1000.0;

/// A sender and a recipient that confirms each message.
pub(crate) struct Pair {
    sender: Client,
    /// Nobody where the server sends everything back.
    recipient: Option<Client>,
    template: Template,
    sent: u64,
    answered: u64,
    arrived: u64,
}

impl Pair {
    pub(crate) fn connect(relay: &Subject, size: usize) -> Result<Self> {
        let (sender, recipient) = (Client::new_one(relay.at)?, Client::new_one(relay.at)?);
        let template = Template::new(&sender.address, &recipient.address, size);
        Ok(Self::new(sender, Some(recipient), template))
    }

    /// One client of the reference server: what comes back has arrived and is answered.
    pub(crate) fn with_itself(echo: &Subject, size: usize) -> Result<Self> {
        let mut sender = Client::start(echo.at, "/", None)?;
        while sender.phase != Phase::Live {
            sender.poll(&mut |_, _| Ok(()))?;
        }
        let address = "0".repeat(32);
        Ok(Self::new(sender, None, Template::new(&address, &address, size)))
    }

    fn new(sender: Client, recipient: Option<Client>, template: Template) -> Self {
        Self { sender, recipient, template, sent: 0, answered: 0, arrived: 0 }
    }

    fn send(&mut self) {
        self.template.write(self.sent, self.sender.output_mut());
        self.sent += 1;
    }

    /// Takes what has come; `arrived` and `answered` hear the numbers.
    fn poll(&mut self, arrived: &mut dyn FnMut(u64), answered: &mut dyn FnMut(u64)) -> Result<()> {
        let Self { sender, recipient, answered: answers, arrived: arrivals, .. } = self;
        if let Some(recipient) = recipient {
            recipient.poll(&mut |output, heard| {
                if let Heard::Message { id } = heard {
                    acknowledge(id, output);
                    *arrivals += 1;
                    arrived(number(id).unwrap_or(u64::MAX));
                }
                Ok(())
            })?;
            ensure!(recipient.phase == Phase::Live, "the relay closed a recipient's connection under load");
        }
        sender.poll(&mut |_, heard| {
            match heard {
                Heard::Ack { id, status } => {
                    ensure!(status != "rejected", "{id} was rejected");
                    *answers += 1;
                    answered(number(id).unwrap_or(u64::MAX));
                }
                Heard::Message { id } => {
                    let number = number(id).unwrap_or(u64::MAX);
                    (*arrivals, *answers) = (*arrivals + 1, *answers + 1);
                    arrived(number);
                    answered(number);
                }
                Heard::Other => {}
            }
            Ok(())
        })?;
        ensure!(sender.phase == Phase::Live, "the relay closed a sender's connection under load");
        Ok(())
    }
}

/// What 1,000 messages a second of 1 KiB may take: in memory of the system, or with the disk's own syncs.
pub(crate) fn bound(size: usize, fsync: Option<&Samples>) -> String {
    match fsync {
        _ if size != NODE_SIZE => "-".to_owned(),
        None => "p99 < 0.4 ms".to_owned(),
        Some(fsync) => format!("p99 < {}", show(fsync.at(99.0) * 2 + Duration::from_micros(400))),
    }
}

pub(crate) fn figures(
    relay: &Subject,
    what: &str,
    size: usize,
    plan: &Plan,
    fsync: Option<&Samples>,
) -> Result<()> {
    let mut pairs = connect(relay, size)?;
    let capacity = saturate(relay, &mut pairs, plan.length())?;
    report::figure(
        &format!("{what}: capacity"),
        &format!(
            "{:.0} messages/s ({PAIRS} pairs, window {WINDOW}, each message confirmed; relay used {:.0} % of its core)",
            capacity.rate,
            capacity.busy * 100.0
        ),
        "-",
    );
    let like_node = size == NODE_SIZE;
    let ratio = if like_node {
        format!(", {:.1}x less than Node.js", NODE_US_PER_MESSAGE / capacity.us_each)
    } else {
        String::new()
    };
    report::figure(
        &format!("{what}: CPU per 100k messages"),
        &format!("{:.2} s = {:.1} us per message{ratio}", capacity.us_each / 10.0, capacity.us_each),
        if like_node { "<= 6.5 us (process)" } else { "-" },
    );
    if !plan.has("latency") {
        return Ok(());
    }
    let bound = bound(size, fsync);
    let rates = [
        ("1000/s".to_owned(), FIXED_RATE, bound.as_str()),
        ("25 % of capacity".to_owned(), capacity.rate * 0.25, "-"),
        ("75 % of capacity".to_owned(), capacity.rate * 0.75, "-"),
    ];
    for (name, rate, budget) in rates {
        let mut pairs = connect(relay, size)?;
        let paced = paced(&mut pairs, rate, plan.length(), &mut || Ok(()))?;
        report::times(&format!("{what}: to recipient, {name} = {rate:.0}/s"), &paced.arrived, budget, None);
        report::times(&format!("{what}: to first ack, {name}"), &paced.answered, "-", None);
    }
    Ok(())
}

pub(crate) fn connect_to_echo(echo: &Subject, size: usize) -> Result<Vec<Pair>> {
    (0..PAIRS).map(|_| Pair::with_itself(echo, size)).collect()
}

pub(crate) fn connect(relay: &Subject, size: usize) -> Result<Vec<Pair>> {
    (0..PAIRS).map(|_| Pair::connect(relay, size)).collect()
}

struct Capacity {
    rate: f64,
    us_each: f64,
    /// Share of its core that the relay used.
    busy: f64,
}

/// Closed loop with a window: how much the relay takes, and what it costs.
fn saturate(relay: &Subject, pairs: &mut [Pair], length: Duration) -> Result<Capacity> {
    let warm = Instant::now() + Duration::from_millis(500);
    let end = warm + length;
    let mut begun: Option<(Instant, Duration, u64)> = None;
    let arrived = |pairs: &[Pair]| pairs.iter().map(|pair| pair.arrived).sum::<u64>();
    loop {
        let now = Instant::now();
        for pair in pairs.iter_mut() {
            let open = pair.sent - pair.answered;
            // Refilled by halves: what a sender writes at once is then more than a message.
            if now < end && open <= WINDOW / 2 {
                for _ in open..WINDOW {
                    pair.send();
                }
            }
            pair.poll(&mut |_| {}, &mut |_| {})?;
        }
        if begun.is_none() && now >= warm {
            begun = Some((now, relay.cpu()?, arrived(pairs)));
        }
        if now < end {
            continue;
        }
        let (start, cpu, before) = begun.unwrap_or((now, Duration::ZERO, 0));
        let (took, cpu) = (start.elapsed(), relay.cpu()?.saturating_sub(cpu));
        let count = (arrived(pairs) - before) as f64;
        settle(pairs)?;
        return Ok(Capacity {
            rate: count / took.as_secs_f64(),
            us_each: cpu.as_secs_f64() * 1e6 / count.max(1.0),
            busy: cpu.as_secs_f64() / took.as_secs_f64(),
        });
    }
}

fn settle(pairs: &mut [Pair]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while pairs.iter().any(|pair| pair.answered < pair.sent || pair.arrived < pair.sent) {
        ensure!(Instant::now() < deadline, "accepted messages did not arrive");
        for pair in pairs.iter_mut() {
            pair.poll(&mut |_| {}, &mut |_| {})?;
        }
    }
    Ok(())
}

pub(crate) struct Paced {
    pub(crate) arrived: Samples,
    pub(crate) answered: Samples,
}

/// Messages at a fixed rate whatever the server does. `meanwhile` runs once per round of polls and must be short. May be
/// called again with the same pairs.
pub(crate) fn paced(
    pairs: &mut [Pair],
    rate: f64,
    length: Duration,
    meanwhile: &mut dyn FnMut() -> Result<()>,
) -> Result<Paced> {
    let lanes = pairs.len() as u64;
    // Each pair sends as many as the others.
    let each = (rate * length.as_secs_f64()) as u64 / lanes;
    let count = each * lanes;
    let first = pairs.first().map_or(0, |pair| pair.sent);
    let start = Instant::now() + Duration::from_millis(10);
    // Message k goes to pair k mod lanes, as its message number k / lanes of this call.
    let intended =
        |turn: u64, lane: u64| start + Duration::from_secs_f64((turn * lanes + lane) as f64 / rate);
    let (mut arrived, mut answered) = (Samples::new(), Samples::new());
    let mut heard: Vec<Vec<bool>> = pairs.iter().map(|_| vec![false; each as usize]).collect();
    let mut next = 0;
    let give_up = start + length + Duration::from_secs(20);
    while arrived.len() < count || answered.len() < count {
        let now = Instant::now();
        ensure!(
            now < give_up,
            "only {} of {count} messages arrived and {} were answered at {rate:.0}/s",
            arrived.len(),
            answered.len()
        );
        while next < count && intended(next / lanes, next % lanes) <= now {
            pairs[(next % lanes) as usize].send();
            next += 1;
        }
        for (lane, pair) in pairs.iter_mut().enumerate() {
            let heard = &mut heard[lane];
            let lane = lane as u64;
            pair.poll(
                &mut |number| arrived.record(intended(number.saturating_sub(first), lane).elapsed()),
                &mut |number| {
                    // A message that was answered with `queued` gets a second answer later, maybe in a later call.
                    let Some(turn) = number.checked_sub(first) else { return };
                    if let Some(seen) = heard.get_mut(turn as usize)
                        && !std::mem::replace(seen, true)
                    {
                        answered.record(intended(turn, lane).elapsed());
                    }
                },
            )?;
        }
        meanwhile()?;
    }
    Ok(Paced { arrived, answered })
}
