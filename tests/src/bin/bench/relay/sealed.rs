//! v2 over both carriers: pairs that exchange signed envelopes, and what logins and idle sessions cost.
//!
//! Envelopes are made before the clock runs: the generator only moves them.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use threadline::identity::Identity;
use threadline::v2::envelope::{Header, SUITE_OLM, assemble, encode_legs, thread_tag};
use threadline::v2::frames::{FORMAT_V2, Frame, FrameId, Send, Taken, Target};
use threadline::v2::{Bin, Blob, Key};
use tokio::task::yield_now;

use super::idle::{AT_ONCE, Meter, Readings};
use super::subject::Subject;
use super::v2_client::{Carrier, Link, Place, device};
use super::{Plan, load};
use crate::report::{self, Samples};

const PAIRS: usize = 16;
/// Messages of one pair without an answer, when looking for the capacity.
const WINDOW: u64 = 64;
/// Messages of one pair when looking for the capacity, and bytes of all of them: they are made before.
const EACH: u64 = 2_500;
const MOST_BYTES: u64 = 256 << 20;
const FIXED_RATE: f64 = 1000.0;

/// A sender and a recipient that takes each message.
struct Pair {
    sender: Link,
    recipient: Link,
    from: Arc<Identity>,
    to: Key,
    /// Of what is sealed, bytes.
    size: usize,
    /// What will be sent, the next one last.
    mail: Vec<Frame>,
    sent: u64,
    answered: u64,
    arrived: u64,
}

impl Pair {
    async fn connect(place: &Place, carrier: Carrier, size: usize) -> Result<Self> {
        let (from, to) = (Arc::new(fresh()), Arc::new(fresh()));
        let key = to.public().into();
        let (sender, recipient) =
            (Link::log_in(place, carrier, &from).await?, Link::log_in(place, carrier, &to).await?);
        let mail = Vec::new();
        Ok(Self { sender, recipient, from, to: key, size, mail, sent: 0, answered: 0, arrived: 0 })
    }

    /// Makes messages with the next numbers.
    fn write(&mut self, count: u64) {
        self.mail = (self.sent..self.sent + count).rev().map(|number| self.message(number)).collect();
    }

    fn message(&self, number: u64) -> Frame {
        let created = now_ms();
        let from: Key = self.from.public().into();
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_be_bytes());
        let thread = "bench".parse().expect("a thread id");
        let header = Header {
            suite: SUITE_OLM,
            from,
            to: self.to,
            device: device(&from),
            id: Bin(id),
            created,
            expires: created + 3_600_000,
            tag: thread_tag(&from, &self.to, &thread),
            nonce: Some(Bin([1; 24])),
        };
        let tag = header.tag;
        let env = assemble(&self.from, &header.to_bytes(), &encode_legs(&[]), &vec![7; self.size]);
        let (rid, to) = (number as u32, Target::Key(self.to));
        let send = Send {
            rid,
            id: FrameId::Bin(Bin(id)),
            to,
            tt: Some(tag),
            fmt: FORMAT_V2,
            env: Blob(env),
            ttl: 600,
            pri: 1,
        };
        send.into()
    }

    fn send(&mut self) -> Result<bool> {
        let Some(frame) = self.mail.pop() else { return Ok(false) };
        self.sender.say(frame)?;
        self.sent += 1;
        Ok(true)
    }

    /// Takes what has come; `arrived` and `answered` hear the numbers.
    fn poll(&mut self, arrived: &mut dyn FnMut(u64), answered: &mut dyn FnMut(u64)) -> Result<()> {
        while let Some(frame) = self.recipient.hear()? {
            if let Frame::Deliver(deliver) = frame {
                self.recipient.say(Taken { dids: vec![deliver.did] })?;
                self.arrived += 1;
                arrived(number(&deliver.id));
            }
        }
        while let Some(frame) = self.sender.hear()? {
            match frame {
                Frame::Accepted(answer) => {
                    self.answered += 1;
                    answered(number(&answer.id));
                }
                Frame::Rejected(answer) => anyhow::bail!("rejected: {:?}", answer.code),
                _ => {}
            }
        }
        Ok(())
    }
}

fn number(id: &FrameId) -> u64 {
    match id {
        FrameId::Bin(id) => id.0.first_chunk().map_or(u64::MAX, |bytes| u64::from_be_bytes(*bytes)),
        FrameId::Text(_) => u64::MAX,
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn fresh() -> Identity {
    Identity::generate(&mut rand::rng())
}

/// One thread that polls without sleeping, like the generator of v1.
pub(crate) fn on_one_thread<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().event_interval(4).build()?.block_on(work)
}

pub(crate) fn figures(
    relay: &Subject,
    durability: &str,
    carrier: Carrier,
    size: usize,
    plan: &Plan,
    fsync: Option<&Samples>,
) -> Result<()> {
    on_one_thread(async {
        let place = Place::find(relay).await?;
        let what = format!("{}, {} KiB, {durability}", carrier.name(), size / 1024);
        let mut pairs = connect(&place, carrier, size).await?;
        let (rate, us_each, busy) = saturate(relay, &mut pairs).await?;
        drop(pairs);
        report::figure(
            &format!("{what}: capacity"),
            &format!(
                "{rate:.0} messages/s ({PAIRS} pairs, window {WINDOW}, signed envelopes, each taken; relay used {:.0} % of its core)",
                busy * 100.0
            ),
            "-",
        );
        report::figure(
            &format!("{what}: CPU per 100k messages"),
            &format!("{:.2} s = {us_each:.1} us per message", us_each / 10.0),
            "-",
        );
        let bound = load::bound(size, fsync);
        for (name, rate, budget) in [
            ("1000/s".to_owned(), FIXED_RATE, bound.as_str()),
            ("25 % of capacity".to_owned(), rate * 0.25, "-"),
            ("75 % of capacity".to_owned(), rate * 0.75, "-"),
        ] {
            let mut pairs = connect(&place, carrier, size).await?;
            let (arrived, answered) = paced(&mut pairs, rate, plan.length()).await?;
            report::times(&format!("{what}: to recipient, {name} = {rate:.0}/s"), &arrived, budget, None);
            report::times(&format!("{what}: to ACCEPTED, {name}"), &answered, "-", None);
        }
        Ok(())
    })
}

async fn connect(place: &Place, carrier: Carrier, size: usize) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for _ in 0..PAIRS {
        pairs.push(Pair::connect(place, carrier, size).await?);
    }
    Ok(pairs)
}

/// Messages of this size that are made before the clock runs, at most.
fn most(size: usize) -> u64 {
    MOST_BYTES / size as u64
}

/// Closed loop with a window: messages per second, CPU time of the relay per message in µs, share of its core. The
/// first tenth is not counted.
async fn saturate(relay: &Subject, pairs: &mut [Pair]) -> Result<(f64, f64, f64)> {
    let each = pairs.iter().map(|pair| EACH.min(most(pair.size) / PAIRS as u64)).min().unwrap_or(0);
    for pair in pairs.iter_mut() {
        pair.write(each);
    }
    let all = each * PAIRS as u64;
    let deadline = Instant::now() + Duration::from_mins(2);
    let mut begun = None;
    loop {
        for pair in pairs.iter_mut() {
            let open = pair.sent - pair.answered;
            // Refilled by halves: what a sender writes at once is then more than a message.
            if open <= WINDOW / 2 {
                for _ in open..WINDOW {
                    pair.send()?;
                }
            }
            pair.poll(&mut |_| {}, &mut |_| {})?;
        }
        let arrived = pairs.iter().map(|pair| pair.arrived).sum::<u64>();
        if begun.is_none() && arrived >= all / 10 {
            begun = Some((Instant::now(), relay.cpu()?, arrived));
        }
        if let Some((start, cpu, before)) = begun.filter(|_| arrived >= all) {
            let (took, cpu) = (start.elapsed(), relay.cpu()?.saturating_sub(cpu));
            let count = (arrived - before) as f64;
            return Ok((
                count / took.as_secs_f64(),
                cpu.as_secs_f64() * 1e6 / count,
                cpu.as_secs_f64() / took.as_secs_f64(),
            ));
        }
        ensure!(Instant::now() < deadline, "{arrived} of {all} messages arrived");
        yield_now().await;
    }
}

/// Messages at a fixed rate whatever the relay does, as long as there are messages: times to the recipient and to the
/// answer.
async fn paced(pairs: &mut [Pair], rate: f64, length: Duration) -> Result<(Samples, Samples)> {
    let lanes = pairs.len() as u64;
    let most = pairs.iter().map(|pair| most(pair.size)).min().unwrap_or(0);
    let count = most.min((rate * length.as_secs_f64()) as u64) / lanes * lanes;
    for pair in pairs.iter_mut() {
        pair.write(count / lanes);
    }
    let start = Instant::now() + Duration::from_millis(10);
    // Message k goes to pair k mod lanes, as that pair's message number k / lanes.
    let intended =
        |number: u64, lane: u64| start + Duration::from_secs_f64((number * lanes + lane) as f64 / rate);
    let (mut arrived, mut answered) = (Samples::new(), Samples::new());
    let mut next = 0;
    let give_up = start + length + Duration::from_secs(20);
    while arrived.len() < count || answered.len() < count {
        let now = Instant::now();
        ensure!(now < give_up, "{} of {count} messages arrived at {rate:.0}/s", arrived.len());
        while next < count && intended(next / lanes, next % lanes) <= now {
            ensure!(pairs[(next % lanes) as usize].send()?, "a message is missing");
            next += 1;
        }
        for (lane, pair) in (0..).zip(pairs.iter_mut()) {
            pair.poll(&mut |number| arrived.record(intended(number, lane).elapsed()), &mut |number| {
                answered.record(intended(number, lane).elapsed());
            })?;
        }
        yield_now().await;
    }
    Ok((arrived, answered))
}

pub(crate) fn connections(relay: &Subject, carrier: Carrier, count: usize) -> Result<Readings> {
    on_one_thread(async {
        let place = Place::find(relay).await?;
        // What every connection shares is there before the first reading.
        drop(log_in(&place, carrier, 64).await?);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let meter = Meter::start(relay)?;
        let start = Instant::now();
        let links = log_in(&place, carrier, count).await?;
        let (took, cpu) = (start.elapsed(), meter.cpu_since()?);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let full = relay.resident()?;
        drop(links);
        tokio::time::sleep(Duration::from_secs(8)).await;
        Ok(Readings { count, took, cpu, before: meter.resident, full, after: relay.resident()? })
    })
}

async fn log_in(place: &Place, carrier: Carrier, count: usize) -> Result<Vec<Link>> {
    use futures::StreamExt as _;
    let logins = (0..count).map(|_| async {
        let identity = Arc::new(fresh());
        Link::log_in(place, carrier, &identity).await
    });
    let links = futures::stream::iter(logins).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
    links.into_iter().collect()
}
