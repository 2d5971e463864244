//! A hostile relay on real sockets: it speaks WebSocket/2 as a good one does and commits, while it is told to, what a relay
//! can commit.

mod crimes;
mod socket;
mod v1;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use threadline::v2::Key;
use threadline::v2::frames::Frame;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::sim::v2::relay::{Out, Relay};
pub use crimes::{Crimes, Deeds, Denial};
use crimes::{Mallory, misdated};
use socket::Event;
pub use v1::{FORGED, HOSTILE_PROFILE, HostileV1, V1Crimes, V1Deeds};

/// Pause between two looks at what waits.
const TICK: Duration = Duration::from_millis(100);

/// The relay. Ends with its value.
#[derive(Debug)]
pub struct HostileRelay {
    port: u16,
    key: Key,
    forger: Key,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    crimes: Mutex<Crimes>,
    deeds: Mutex<Deeds>,
    /// Every byte that came, after the carrier.
    heard: Mutex<Vec<u8>>,
    hang_up: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HostileRelay {
    /// Listens on a free port of loopback; commits nothing yet.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("a port for a relay")?;
        let port = listener.local_addr()?.port();
        let seed: [u8; 32] = rand::random();
        let hosts = vec![format!("127.0.0.1:{port}"), "127.0.0.1".to_owned()];
        let relay = Relay::new(seed, hosts.clone(), true);
        let (key, shared) = (relay.key, Arc::<Shared>::default());
        let mallory = Mallory::new()?;
        let forger = mallory.key();
        let core = Core { relay, connections: HashMap::new(), mallory, shared: Arc::clone(&shared) };
        let (events_tx, events) = mpsc::channel(256);
        let document = socket::Documents::new(seed, &hosts);
        let mut tasks = JoinSet::new();
        tasks.spawn(socket::accept(listener, document, events_tx, Arc::clone(&shared)));
        tasks.spawn(core.run(events));
        Ok(Self { port, key, forger, shared, _tasks: tasks })
    }

    /// Address for `threadline.relays`.
    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}/v1/connect", self.port)
    }

    /// Its key, hex.
    pub fn key(&self) -> String {
        hex::encode(self.key.0)
    }

    /// The key of the agent that it puts in the place of others.
    pub fn forger(&self) -> Key {
        self.forger
    }

    /// From now on it commits these.
    pub fn commit(&self, crimes: Crimes) {
        *lock(&self.shared.crimes) = crimes;
    }

    /// Ends every session; who comes back is welcomed anew.
    pub fn hang_up(&self) {
        self.shared.hang_up.notify_one();
    }

    /// What it did so far.
    pub fn deeds(&self) -> Deeds {
        *lock(&self.shared.deeds)
    }

    /// Whether it ever heard these bytes.
    pub fn heard(&self, bytes: &[u8]) -> bool {
        lock(&self.shared.heard).windows(bytes.len()).any(|window| window == bytes)
    }
}

/// The task that owns the relay's state.
struct Core {
    relay: Relay,
    connections: HashMap<u64, mpsc::UnboundedSender<Frame>>,
    mallory: Mallory,
    shared: Arc<Shared>,
}

impl Core {
    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut tick = tokio::time::interval(TICK);
        let shared = Arc::clone(&self.shared);
        loop {
            tokio::select! {
                () = shared.hang_up.notified() => self.end_all(),
                event = events.recv() => match event {
                    Some(event) => self.handle(event),
                    None => return,
                },
                _ = tick.tick() => {
                    if lock(&self.shared.crimes).denies.is_some() {
                        self.end_all();
                    }
                    let mut out = Vec::new();
                    self.relay.deliver(&mut out);
                    self.emit(out);
                }
            }
        }
    }

    fn end_all(&mut self) {
        self.relay.kill();
        self.connections.clear();
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Opened(connection, frames) => {
                let challenge = self.relay.opened(connection, rand::random(), now());
                self.connections.insert(connection, frames);
                self.write(connection, challenge);
            }
            Event::Frame(connection, frame) => {
                let crimes = *lock(&self.shared.crimes);
                let shared = Arc::clone(&self.shared);
                let lies = self.mallory.before(&frame, crimes, &mut lock(&shared.deeds), now());
                let Some(lies) = lies else { return };
                let out = self.relay.received(connection, *frame, now());
                self.emit(out);
                for lie in lies {
                    self.write(connection, lie);
                }
            }
            Event::Closed(connection) => {
                self.relay.closed(connection);
                self.connections.remove(&connection);
            }
        }
    }

    fn emit(&mut self, out: Vec<Out>) {
        let crimes = *lock(&self.shared.crimes);
        for out in out {
            match out {
                Out::Frame(connection, frame) => {
                    let shared = Arc::clone(&self.shared);
                    let said = self.mallory.instead_of(frame, crimes, &mut lock(&shared.deeds));
                    for frame in said {
                        self.write(connection, frame);
                    }
                }
                Out::Close(connection, _) => drop(self.connections.remove(&connection)),
            }
        }
    }

    fn write(&self, connection: u64, frame: Frame) {
        if let Some(frames) = self.connections.get(&connection) {
            let clock_ms = lock(&self.shared.crimes).clock_ms;
            let _ = frames.send(misdated(frame, clock_ms, &mut lock(&self.shared.deeds)));
        }
    }
}

/// Unix ms.
fn now() -> u64 {
    u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap_or(0)
}
