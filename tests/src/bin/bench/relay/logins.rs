//! What logins and idle sessions cost.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use threadline::identity::Identity;

use super::subject::Subject;
use super::wire::{Client, Phase};
use crate::report;

/// Logins under way at a time.
const AT_ONCE: usize = 32;

pub(crate) fn figures(relay: &Subject, count: usize) -> Result<()> {
    // What every connection shares is there before the first reading.
    drop(open(relay, 64)?);
    std::thread::sleep(Duration::from_millis(500));
    let (before, cpu) = (relay.resident()?, relay.cpu()?);
    let identities = (0..count).map(|_| Identity::generate(&mut rand::rng())).collect();
    let start = Instant::now();
    let clients = log_in(relay, identities)?;
    let took = start.elapsed();
    let cpu = relay.cpu()?.saturating_sub(cpu);
    std::thread::sleep(Duration::from_secs(2));
    let full = relay.resident()?;
    drop(clients);
    std::thread::sleep(Duration::from_secs(6));
    let after = relay.resident()?;
    report::figure(
        &format!("v1, power: {count} logins, {AT_ONCE} at a time"),
        &format!(
            "{:.0}/s, {:.3} CPU ms each ({:.0}x less than Node.js)",
            count as f64 / took.as_secs_f64(),
            cpu.as_secs_f64() * 1000.0 / count as f64,
            1.9 / (cpu.as_secs_f64() * 1000.0 / count as f64)
        ),
        "<= 0.2 CPU ms",
    );
    report::figure(
        &format!("v1: {count} idle connections, no TLS"),
        &format!(
            "{:.2} KiB each (resident {:.1} to {:.1} MiB, {:.1} after they closed = {:.0} % given back)",
            (full - before) / count as f64,
            before / 1024.0,
            full / 1024.0,
            after / 1024.0,
            (full - after) / (full - before).max(1.0) * 100.0
        ),
        "<= 8 KiB",
    );
    Ok(())
}

pub(crate) fn open(relay: &Subject, count: usize) -> Result<Vec<Client>> {
    log_in(relay, (0..count).map(|_| Identity::generate(&mut rand::rng())).collect())
}

pub(crate) fn log_in(relay: &Subject, mut identities: Vec<Identity>) -> Result<Vec<Client>> {
    let (mut under_way, mut live) = (Vec::new(), Vec::with_capacity(identities.len()));
    let deadline = Instant::now() + Duration::from_mins(2);
    while !(identities.is_empty() && under_way.is_empty()) {
        ensure!(Instant::now() < deadline, "the logins take too long");
        while under_way.len() < AT_ONCE
            && let Some(identity) = identities.pop()
        {
            under_way.push(Client::start(relay.at, "/v1/connect", Some(identity))?);
        }
        for index in (0..under_way.len()).rev() {
            under_way[index].poll(&mut |_, _| Ok(()))?;
            match under_way[index].phase {
                Phase::Live => live.push(under_way.swap_remove(index)),
                Phase::Closed => anyhow::bail!("a login was refused"),
                Phase::Upgrading | Phase::LoggingIn => {}
            }
        }
    }
    Ok(live)
}
