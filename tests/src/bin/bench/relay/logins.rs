//! Logins of v1, and what idle sessions of it cost, with and without TLS.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use threadline::identity::Identity;

use super::idle::{AT_ONCE, Kind, Meter, Readings};
use super::subject::Subject;
use super::wire::{Client, Phase};

/// Pings are answered this often while others log in.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) const PLAIN: Kind =
    Kind { name: "v1", login_budget: "<= 0.2 CPU ms", idle_budget: "<= 8 KiB", like_node: true };
pub(crate) const OVER_TLS: Kind =
    Kind { name: "v1 over TLS", login_budget: "-", idle_budget: "<= 16 KiB", like_node: false };

pub(crate) fn figures(relay: &Subject, count: usize) -> Result<Readings> {
    // What every connection shares is there before the first reading.
    drop(open(relay, 64)?);
    std::thread::sleep(Duration::from_millis(500));
    let identities = (0..count).map(|_| Identity::generate(&mut rand::rng())).collect();
    let meter = Meter::start(relay)?;
    let start = Instant::now();
    let clients = log_in(relay, identities)?;
    let (took, cpu) = (start.elapsed(), meter.cpu_since()?);
    std::thread::sleep(Duration::from_secs(2));
    let full = relay.resident()?;
    drop(clients);
    std::thread::sleep(Duration::from_secs(6));
    Ok(Readings { count, took, cpu, before: meter.resident, full, after: relay.resident()? })
}

pub(crate) fn open(relay: &Subject, count: usize) -> Result<Vec<Client>> {
    log_in(relay, (0..count).map(|_| Identity::generate(&mut rand::rng())).collect())
}

pub(crate) fn log_in(relay: &Subject, mut identities: Vec<Identity>) -> Result<Vec<Client>> {
    let (mut under_way, mut live) = (Vec::new(), Vec::with_capacity(identities.len()));
    let deadline = Instant::now() + Duration::from_mins(5);
    let mut looked = Instant::now();
    while !(identities.is_empty() && under_way.is_empty()) {
        ensure!(Instant::now() < deadline, "the logins take too long: {} so far", live.len());
        while under_way.len() < AT_ONCE
            && let Some(identity) = identities.pop()
        {
            under_way.push(Client::start_with(relay, "/v1/connect", Some(identity))?);
        }
        for index in (0..under_way.len()).rev() {
            under_way[index].poll(&mut |_, _| Ok(()))?;
            match under_way[index].phase {
                Phase::Live => live.push(under_way.swap_remove(index)),
                Phase::Closed => anyhow::bail!("a login was refused after {} good ones", live.len()),
                Phase::Upgrading | Phase::LoggingIn => {}
            }
        }
        if looked.elapsed() > LOOK {
            looked = Instant::now();
            for client in &mut live {
                client.poll(&mut |_, _| Ok(()))?;
                ensure!(client.phase == Phase::Live, "the relay closed an idle connection");
            }
        }
    }
    Ok(live)
}
