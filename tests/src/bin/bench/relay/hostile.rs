//! What others feel while somebody misbehaves. The limits per source are off, so every defence that is measured here
//! works without knowing where a connection comes from. A second relay that nobody troubles is loaded in turn.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use threadline::identity::Identity;

use super::Plan;
use super::load;
use super::rounds::{self, Lane};
use super::subject::{Subject, free_port};
use super::wire::{Client, PING, Phase, Template, encode};
use crate::{registry, report};

/// Bytes of a message between those who behave.
const SIZE: usize = 1024;
/// How much their 99th percentile may grow.
const GROWTH: f64 = 2.0;

/// Called once per round of the load generator. It opens at most one connection at a time: what the generator takes for
/// its attack it would otherwise measure as the relay's.
type Attack<'a> = Box<dyn FnMut() -> Result<()> + 'a>;
type Start = for<'a> fn(&'a Subject) -> Result<Attack<'a>>;

pub(crate) fn figures(bin_dir: &Path, plan: &Plan) -> Result<()> {
    let start = |agents: u32| {
        let metrics = format!("127.0.0.1:{}", free_port()?);
        let settings =
            ["durability", "process", "limits.messages_per_minute", "30000", "metrics.listen", &metrics];
        Subject::relay_on(bin_dir, &settings, |data| {
            if agents > 0 { registry::fill(&data.join("registry.db"), agents) } else { Ok(()) }
        })
    };
    let attacks: [(&str, u32, Start); 8] = [
        ("searches, metrics, health polls; 100k agents", 100_000, |relay| Ok(questions(relay))),
        ("100k tiny frames/s", 0, |relay| Ok(tiny_frames(relay))),
        ("slow loris, 400 sockets", 0, |relay| Ok(slow_loris(relay))),
        ("20 recipients that never confirm, 200/s", 0, never_acking),
        ("10 recipients that never read, 16 KiB, 200/s", 0, never_reading),
        ("bad logins, 500/s", 0, |relay| Ok(bad_logins(relay))),
        ("connection churn, 200/s", 0, |relay| Ok(churn(relay))),
        ("oversized frames", 0, |relay| Ok(oversized(relay))),
    ];
    let mut over = Vec::new();
    for (name, agents, begin) in attacks.into_iter().filter(|(name, ..)| plan.has_attack(name)) {
        let (calm, relay) = (start(0)?, start(agents)?);
        let mut lanes = [
            Lane::new(load::connect(&calm, SIZE)?, Box::new(|| Ok(()))),
            Lane::new(load::connect(&relay, SIZE)?, begin(&relay)?),
        ];
        rounds::run(&mut lanes, plan.length())?;
        let [calm, attacked] = &lanes;
        report::times(&format!("hostile: nobody, beside: {name}"), &calm.all, "-", None);
        let limit = calm.all.at(99.0).mul_f64(GROWTH);
        let budget = format!("p99 <= {}", report::show(limit));
        report::times(&format!("hostile: {name}"), &attacked.all, &budget, None);
        rounds::compare(&format!("hostile: {name}"), "nobody", attacked, calm);
        if attacked.all.at(99.0) > limit {
            over.push(name);
        }
    }
    ensure!(over.is_empty(), "others feel too much of: {}", over.join("; "));
    Ok(())
}

/// What asks for one page at a time, as often as it may.
struct Questioner {
    at: SocketAddr,
    path: &'static str,
    pace: Pace,
    socket: Option<TcpStream>,
}

impl Questioner {
    fn poll(&mut self, scratch: &mut [u8]) -> Result<()> {
        let Some(socket) = &mut self.socket else {
            if self.pace.due(1) > 0 {
                let mut socket = TcpStream::connect(self.at)?;
                write!(socket, "GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", self.path)?;
                socket.set_nonblocking(true)?;
                self.socket = Some(socket);
            }
            return Ok(());
        };
        match socket.read(scratch) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(count) if count > 0 => {}
            _ => self.socket = None,
        }
        Ok(())
    }
}

fn questions(relay: &Subject) -> Attack<'_> {
    let mut questioners: Vec<Questioner> = [
        ("/v1/registry/search?q=assistant", 20.0),
        ("/v1/registry/search?limit=50", 20.0),
        ("/health", 10.0),
        ("/ready", 10.0),
    ]
    .map(|(path, rate)| Questioner { at: relay.at, path, pace: Pace::new(rate), socket: None })
    .into();
    if let Some(at) = relay.metrics {
        questioners.push(Questioner { at, path: "/metrics", pace: Pace::new(5.0), socket: None });
    }
    let mut scratch = vec![0; 64 << 10];
    Box::new(move || questioners.iter_mut().try_for_each(|questioner| questioner.poll(&mut scratch)))
}

/// Lets something happen `rate` times a second.
struct Pace {
    rate: f64,
    start: Instant,
    done: u64,
}

impl Pace {
    fn new(rate: f64) -> Self {
        Self { rate, start: Instant::now(), done: 0 }
    }

    /// How often it is due now; what was missed is not made up for beyond `most`.
    fn due(&mut self, most: u64) -> u64 {
        let should = (self.start.elapsed().as_secs_f64() * self.rate) as u64;
        let due = should.saturating_sub(self.done).min(most);
        self.done = should;
        due
    }
}

fn tiny_frames(relay: &Subject) -> Attack<'_> {
    let frames = [
        encode(1, br#"{"type":"pong"}"#),
        encode(PING, b"x"),
        encode(1, b"{}"),
        encode(1, br#"{"type":"message","envelope":{}}"#),
    ];
    let mut clients: Vec<Client> = Vec::new();
    let mut pace = Pace::new(100_000.0);
    Box::new(move || {
        clients.retain(|client| client.phase != Phase::Closed);
        if clients.len() < 4 {
            clients.push(Client::start(relay.at, "/v1/connect", Some(Identity::generate(&mut rand::rng())))?);
        }
        let due = pace.due(400);
        for (index, client) in clients.iter_mut().enumerate() {
            if client.phase == Phase::Live && client.backlog() < 64 << 10 {
                for _ in 0..due / 4 {
                    client.push(&frames[index % frames.len()]);
                }
            }
            client.poll(&mut |_, _| Ok(()))?;
        }
        Ok(())
    })
}

fn slow_loris(relay: &Subject) -> Attack<'_> {
    let mut sockets: Vec<TcpStream> = Vec::new();
    let mut bare: Vec<Client> = Vec::new();
    let (mut pace, mut at) = (Pace::new(400.0), 0);
    Box::new(move || {
        for _ in 0..pace.due(1) {
            if sockets.len() < 200 {
                let mut socket = TcpStream::connect(relay.at)?;
                socket.write_all(b"GET /v1/connect HTTP/1.1\r\nHost: x\r\nX-Slow: ")?;
                socket.set_nonblocking(true)?;
                sockets.push(socket);
            } else if bare.len() < 200 {
                bare.push(Client::start(relay.at, "/v1/connect", None)?);
            } else {
                at += 1;
                let index = at % sockets.len();
                if sockets[index].write(b"x").is_err() {
                    sockets.swap_remove(index);
                }
                let index = at % bare.len();
                bare[index].push(b"\x81");
                bare[index].poll(&mut |_, _| Ok(()))?;
                if bare[index].phase == Phase::Closed {
                    bare.swap_remove(index);
                }
            }
        }
        Ok(())
    })
}

/// Recipients of whom `reads` says whether they read, and somebody who writes to them.
fn silent(relay: &Subject, count: usize, size: usize, reads: bool) -> Result<Attack<'_>> {
    let mut sender = Client::new_one(relay.at)?;
    let mut recipients = Vec::new();
    for _ in 0..count {
        recipients.push(Client::new_one(relay.at)?);
    }
    let templates: Vec<Template> =
        recipients.iter().map(|r| Template::new(&sender.address, &r.address, size)).collect();
    let (mut pace, mut number) = (Pace::new(200.0), 0);
    Ok(Box::new(move || {
        for _ in 0..pace.due(4) {
            templates[number as usize % templates.len()].write(number, sender.output_mut());
            number += 1;
        }
        sender.poll(&mut |_, _| Ok(()))?;
        if reads {
            for recipient in &mut recipients {
                recipient.swallow();
            }
        }
        Ok(())
    }))
}

fn never_acking(relay: &Subject) -> Result<Attack<'_>> {
    silent(relay, 20, 1024, true)
}

fn never_reading(relay: &Subject) -> Result<Attack<'_>> {
    silent(relay, 10, 16 << 10, false)
}

fn bad_logins(relay: &Subject) -> Attack<'_> {
    let mut clients: Vec<Client> = Vec::new();
    let mut pace = Pace::new(500.0);
    let mut serial = 0_u64;
    Box::new(move || {
        for _ in 0..pace.due(1) {
            if clients.len() < 200 {
                let mut client = Client::start(relay.at, "/v1/connect", None)?;
                serial += 1;
                client.say_when_live(format!(
                    r#"{{"type":"auth","agentId":"{serial:032x}","publicKey":"{}","signature":"{}"}}"#,
                    "1Y/MeX0zEmMlUzLeQ9zWwQ8kqrVkqqxfxMXZ6/KMZ8s=",
                    "A".repeat(86) + "=="
                ));
                clients.push(client);
            }
        }
        for client in &mut clients {
            client.poll(&mut |_, _| Ok(()))?;
        }
        clients.retain(|client| client.phase != Phase::Closed);
        Ok(())
    })
}

fn churn(relay: &Subject) -> Attack<'_> {
    let mut clients: Vec<Client> = Vec::new();
    let mut pace = Pace::new(200.0);
    let keys: Vec<[u8; 32]> = (0..50).map(|_| rand::random()).collect();
    let mut at = 0;
    Box::new(move || {
        for _ in 0..pace.due(1) {
            at += 1;
            let identity = Identity::from_seed(&keys[at % keys.len()]);
            clients.push(Client::start(relay.at, "/v1/connect", Some(identity))?);
        }
        for client in &mut clients {
            client.poll(&mut |_, _| Ok(()))?;
        }
        clients.retain(|client| !matches!(client.phase, Phase::Closed | Phase::Live));
        Ok(())
    })
}

fn oversized(relay: &Subject) -> Attack<'_> {
    let mut clients: Vec<Client> = Vec::new();
    let mut pace = Pace::new(20.0);
    let frame = encode(1, &vec![b'x'; 400 << 10]);
    let deadline = Duration::from_secs(2);
    let mut opened = Instant::now();
    Box::new(move || {
        if clients.len() < 4 && opened.elapsed() > deadline / 8 {
            opened = Instant::now();
            clients.push(Client::start(relay.at, "/v1/connect", Some(Identity::generate(&mut rand::rng())))?);
        }
        let due = pace.due(2);
        for client in &mut clients {
            if client.phase == Phase::Live && due > 0 && client.backlog() == 0 {
                client.push(&frame);
            }
            client.poll(&mut |_, _| Ok(()))?;
        }
        clients.retain(|client| client.phase != Phase::Closed);
        Ok(())
    })
}
