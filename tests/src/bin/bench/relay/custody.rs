//! A hundred thousand messages for recipients that are away: taken, kept through SIGKILL, handed out.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use threadline::identity::Identity;

use super::logins::{log_in, open};
use super::subject::Subject;
use super::wire::{Client, Heard, Phase, Template, acknowledge};
use crate::report;

const RECIPIENTS: usize = 200;
const SENDERS_EACH: usize = 5;
const PER_PAIR: u64 = 100;
/// Groups of recipients, each with its own senders.
const GROUPS: usize = 4;
const SIZE: usize = 1024;
const WINDOW: u64 = 256;
const TOTAL: usize = RECIPIENTS * SENDERS_EACH * PER_PAIR as usize;

pub(crate) fn figures(bin_dir: &Path, durability: &str) -> Result<()> {
    // A mailbox has its usual size.
    let settings = ["durability", durability, "queue.per_pair", "100", "queue.per_recipient", "500"];
    let relay = Subject::relay(bin_dir, &settings)?;
    let seeds: Vec<[u8; 32]> = (0..RECIPIENTS).map(|_| rand::random()).collect();
    let identities = || seeds.iter().map(Identity::from_seed).collect::<Vec<_>>();
    // Somebody who never logged in has a smaller mailbox.
    drop(log_in(&relay, identities())?);
    let mut senders = open(&relay, GROUPS * SENDERS_EACH)?;
    std::thread::sleep(Duration::from_secs(4));
    let addresses: Vec<String> = identities().iter().map(|i| i.fingerprint().to_string()).collect();

    let (before, cpu) = (relay.resident()?, relay.cpu()?);
    let start = Instant::now();
    enqueue(&mut senders, &addresses)?;
    let took = start.elapsed();
    let cpu = relay.cpu()?.saturating_sub(cpu);
    let after = relay.resident()?;
    let what = format!("v1, 1 KiB, {durability}: {TOTAL} messages for {RECIPIENTS} away, 5 senders each");
    report::figure(
        &what,
        &format!(
            "{:.0}/s accepted, {:.1} us CPU each, resident {:.1} to {:.1} MiB ({:.0} bytes a message)",
            TOTAL as f64 / took.as_secs_f64(),
            cpu.as_secs_f64() * 1e6 / TOTAL as f64,
            before / 1024.0,
            after / 1024.0,
            (after - before) * 1024.0 / TOTAL as f64
        ),
        ">= 20000/s, flat memory",
    );
    drop(senders);
    let (relay, restart) = relay.kill_and_restart(bin_dir, &settings)?;
    let mut recipients = log_in(&relay, identities())?;
    let start = Instant::now();
    let (got, again) = drain(&mut recipients)?;
    report::figure(
        &format!("v1, 1 KiB, {durability}: after SIGKILL"),
        &format!(
            "{got} of {TOTAL} arrived, {again} twice; listening again after {restart:.1?}, handed out in {:.1?}",
            start.elapsed()
        ),
        "all",
    );
    ensure!(got == TOTAL, "messages that were accepted are lost");
    Ok(())
}

fn enqueue(senders: &mut [Client], addresses: &[String]) -> Result<()> {
    let per_group = addresses.len() / GROUPS;
    let templates: Vec<Vec<Template>> = senders
        .iter()
        .enumerate()
        .map(|(index, sender)| {
            let first = index / SENDERS_EACH * per_group;
            let recipients = &addresses[first..first + per_group];
            recipients.iter().map(|to| Template::new(&sender.address, to, SIZE)).collect()
        })
        .collect();
    let each = per_group as u64 * PER_PAIR;
    let mut state = vec![(0_u64, 0_u64); senders.len()];
    let deadline = Instant::now() + Duration::from_mins(2);
    while state.iter().any(|(_, answered)| *answered < each) {
        ensure!(Instant::now() < deadline, "the messages are not accepted in time");
        for (index, sender) in senders.iter_mut().enumerate() {
            let (sent, answered) = &mut state[index];
            while *sent < each && *sent - *answered < WINDOW && sender.backlog() < 1 << 20 {
                let recipient = (*sent % per_group as u64) as usize;
                // An id is unique in the whole run, so that what arrives can be counted.
                let number = index as u64 * 1_000_000 + *sent;
                templates[index][recipient].write(number, sender.output_mut());
                *sent += 1;
            }
            sender.poll(&mut |_, heard| {
                if let Heard::Ack { id, status } = heard {
                    ensure!(status == "queued", "{id} was {status}");
                    *answered += 1;
                }
                Ok(())
            })?;
            ensure!(sender.phase == Phase::Live, "the relay closed a sender after {answered} answers");
        }
    }
    Ok(())
}

/// Messages that arrived, and how many of them more than once.
fn drain(recipients: &mut [Client]) -> Result<(usize, usize)> {
    let (mut got, mut again) = (HashSet::new(), 0);
    let mut quiet = Instant::now();
    while quiet.elapsed() < Duration::from_secs(30) && got.len() < TOTAL {
        for recipient in recipients.iter_mut() {
            recipient.poll(&mut |output, heard| {
                if let Heard::Message { id } = heard {
                    acknowledge(id, output);
                    again += usize::from(!got.insert(id.to_owned()));
                    quiet = Instant::now();
                }
                Ok(())
            })?;
        }
    }
    Ok((got.len(), again))
}
