//! Servers side by side, each loaded for a short round in turn: a pause of the machine meets all of them alike, so that
//! their ratio says something even where the machine itself pauses for longer than what is measured.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::load::{self, FIXED_RATE, Pair, bound};
use super::subject::Subject;
use super::{Disk, NO_TLS, Plan, echo};
use crate::report::{self, Samples, show};

const ROUNDS: usize = 15;
const SIZE: usize = 1024;

/// One server with its load.
pub(crate) struct Lane<'a> {
    pub(crate) pairs: Vec<Pair>,
    /// Runs beside the load, once per round of polls.
    pub(crate) meanwhile: Box<dyn FnMut() -> Result<()> + 'a>,
    /// All rounds together.
    pub(crate) all: Samples,
    /// The 99th percentile of each round.
    each: Vec<Duration>,
}

impl<'a> Lane<'a> {
    pub(crate) fn new(pairs: Vec<Pair>, meanwhile: Box<dyn FnMut() -> Result<()> + 'a>) -> Self {
        Self { pairs, meanwhile, all: Samples::new(), each: Vec::new() }
    }

    fn idle(pairs: Vec<Pair>) -> Self {
        Self::new(pairs, Box::new(|| Ok(())))
    }

    /// The median of the rounds' 99th percentiles.
    pub(crate) fn typical(&self) -> Duration {
        let mut each = self.each.clone();
        each.sort_unstable();
        each.get(each.len() / 2).copied().unwrap_or_default()
    }

    fn round(&mut self, length: Duration) -> Result<()> {
        let arrived = load::paced(&mut self.pairs, FIXED_RATE, length, &mut self.meanwhile)?.arrived;
        self.each.push(arrived.at(99.0));
        self.all.add(&arrived);
        Ok(())
    }
}

/// Each lane in turn, so often that each has had `length` at least twice over.
pub(crate) fn run(lanes: &mut [Lane<'_>], length: Duration) -> Result<()> {
    for _ in 0..ROUNDS {
        for lane in lanes.iter_mut() {
            lane.round(length * 2 / ROUNDS as u32)?;
        }
    }
    Ok(())
}

/// 1,000 messages a second of 1 KiB through the relay, beside a plain echo that keeps them as durably.
pub(crate) fn figures(bin_dir: &Path, plan: &Plan, disk: &Disk) -> Result<()> {
    for (durability, kept, synced) in [("process", "never synced", false), ("power", "each synced", true)] {
        let relay = Subject::relay(bin_dir, &["durability", durability])?;
        let reference = echo::start(synced)?;
        let mut lanes =
            [Lane::idle(load::connect_to_echo(&reference, SIZE)?), Lane::idle(load::connect(&relay, SIZE)?)];
        run(&mut lanes, plan.length())?;
        disk.under(durability, NO_TLS);
        let [echo, relay] = &lanes;
        report::times(&format!("rounds: plain echo, {kept}, 1000/s"), &echo.all, "-", None);
        let budget = bound(SIZE, synced.then_some(&disk.fsync));
        report::times(&format!("rounds: v1, 1 KiB, {durability}, 1000/s"), &relay.all, &budget, None);
        compare(&format!("rounds: v1, 1 KiB, {durability}"), "plain echo", relay, echo);
    }
    Ok(())
}

/// Says how one lane stands to another.
pub(crate) fn compare(what: &str, other_name: &str, lane: &Lane<'_>, other: &Lane<'_>) {
    let ratio = |ours: Duration, theirs: Duration| ours.as_secs_f64() / theirs.as_secs_f64().max(1e-6);
    report::figure(
        &format!("{what}: against {other_name}"),
        &format!(
            "p99 {:.2} times, median of {} rounds' p99 {} against {} = {:.2} times",
            ratio(lane.all.at(99.0), other.all.at(99.0)),
            lane.each.len(),
            show(lane.typical()),
            show(other.typical()),
            ratio(lane.typical(), other.typical())
        ),
        "-",
    );
}
