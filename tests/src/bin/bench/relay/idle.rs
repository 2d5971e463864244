//! What logins and idle connections cost, told in the same way for every protocol.

use std::time::Duration;

use anyhow::Result;

use super::subject::Subject;
use crate::report;

/// Logins under way at a time.
pub(crate) const AT_ONCE: usize = 32;
/// What a connect and an idle connection cost a Node.js relay of v1 without TLS.
const NODE_CPU_MS: f64 = 1.9;
const NODE_KIB: f64 = 10.3 * 1000.0 / 1024.0;

/// What is said in a line, and what it is held against.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) login_budget: &'static str,
    pub(crate) idle_budget: &'static str,
    /// Whether the figures of Node.js are of the same kind.
    pub(crate) like_node: bool,
}

/// One relay process at one number of connections. Memory is resident memory in KiB.
pub(crate) struct Readings {
    pub(crate) count: usize,
    pub(crate) took: Duration,
    pub(crate) cpu: Duration,
    pub(crate) before: f64,
    pub(crate) full: f64,
    pub(crate) after: f64,
}

/// Time on the processor and memory, before and after `work`.
pub(crate) struct Meter<'a> {
    relay: &'a Subject,
    pub(crate) cpu: Duration,
    pub(crate) resident: f64,
}

impl<'a> Meter<'a> {
    pub(crate) fn start(relay: &'a Subject) -> Result<Self> {
        Ok(Self { relay, cpu: relay.cpu()?, resident: relay.resident()? })
    }

    pub(crate) fn cpu_since(&self) -> Result<Duration> {
        Ok(self.relay.cpu()?.saturating_sub(self.cpu))
    }
}

impl Readings {
    pub(crate) fn report(&self, kind: &Kind) {
        let Self { count, took, before, full, after, .. } = *self;
        let name = kind.name;
        let cpu_ms = self.cpu.as_secs_f64() * 1000.0 / count as f64;
        let each = (full - before) / count as f64;
        let ratio = |node: f64, ours: f64| {
            if kind.like_node { format!(", {:.1}x less than Node.js", node / ours) } else { String::new() }
        };
        report::figure(
            &format!("{name}: {count} authenticated connects, {AT_ONCE} at a time"),
            &format!(
                "{:.0}/s, {cpu_ms:.3} CPU ms each{}",
                count as f64 / took.as_secs_f64(),
                ratio(NODE_CPU_MS, cpu_ms)
            ),
            kind.login_budget,
        );
        report::figure(
            &format!("{name}: {count} idle connections"),
            &format!(
                "{each:.2} KiB each{} (resident {:.1} to {:.1} MiB, {:.1} after they closed = {:.0} % given back)",
                ratio(NODE_KIB, each),
                before / 1024.0,
                full / 1024.0,
                after / 1024.0,
                (full - after) / (full - before).max(1.0) * 100.0
            ),
            kind.idle_budget,
        );
    }
}

/// What one more connection costs, between the smallest and the largest number.
pub(crate) fn slope(kind: &Kind, readings: &[Readings]) {
    let (Some(few), Some(many)) = (
        readings.iter().min_by_key(|readings| readings.count),
        readings.iter().max_by_key(|readings| readings.count),
    ) else {
        return;
    };
    if few.count == many.count {
        return;
    }
    let slope = (many.full - few.full) / (many.count - few.count) as f64;
    report::figure(
        &format!("{}: slope of memory, {} to {} connections", kind.name, few.count, many.count),
        &format!("{slope:.2} KiB for one more connection"),
        kind.idle_budget,
    );
}
