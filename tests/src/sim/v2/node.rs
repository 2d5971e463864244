//! A node: its mail, a session with every relay, and the disk. Every commit may be its last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use threadline::identity::Identity;
use threadline::path::PATIENCE_MS;
use threadline::v2::content::Body;
use threadline::v2::frames::{Frame, Hello, Role};
use threadline::v2::mail::{
    Commit, Draft, HighWater, Mail, Marker, Outcome, Received, Records, Unopened, Write,
};
use threadline::v2::session::{Carrier, ClientSession, ConnectionId, Courier, SessionConfig, SessionEffect};
use threadline::v2::{Blob, Id, Key};

use super::HOST;
use super::{SealedDefect, SealedStats};

/// The process was killed.
pub(super) struct Killed;

/// What the node asks of the world.
pub(super) enum Ask {
    Connect { relay: usize, connection: ConnectionId, carrier: Carrier },
    Write { relay: usize, connection: ConnectionId, frame: Frame },
    Close { relay: usize, connection: ConnectionId },
}

/// A message that was handed on to the thread store.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) peer: Key,
    pub(super) thread: String,
    pub(super) text: String,
    pub(super) marker: Marker,
}

pub(super) struct Node {
    pub(super) identity: Arc<Identity>,
    pub(super) key: Key,
    disk: Records,
    /// The thread store: by (peer, id), so handing on twice does nothing.
    store: BTreeMap<(Key, Id), usize>,
    /// Messages that were ever put into the inbox.
    inboxed: BTreeSet<(Key, Id)>,
    pub(super) stored: Vec<Stored>,
    pub(super) twice: Option<String>,
    relays: Vec<Key>,
    live: Option<Process>,
    pub(super) rng: StdRng,
    /// Chance of a kill at each commit, per mille.
    pub(super) danger: u32,
    pub(super) stats: SealedStats,
    defect: SealedDefect,
}

struct Process {
    mail: Mail,
    sessions: Vec<ClientSession>,
    asks: Vec<Ask>,
    courier: Courier,
}

impl Node {
    pub(super) fn new(seed: [u8; 32], relays: Vec<Key>, defect: SealedDefect) -> Self {
        let identity = Arc::new(Identity::from_seed(&seed));
        Self {
            key: identity.public().into(),
            identity,
            disk: Records::default(),
            store: BTreeMap::new(),
            inboxed: BTreeSet::new(),
            stored: Vec::new(),
            twice: None,
            relays,
            live: None,
            rng: StdRng::from_seed(seed),
            danger: 0,
            stats: SealedStats::default(),
            defect,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.live.is_some()
    }

    pub(super) fn kill(&mut self) {
        if self.live.take().is_some() {
            self.stats.kills += 1;
        }
    }

    pub(super) fn open_messages(&self) -> usize {
        self.disk.outbox.values().filter(|row| row.is_open()).count()
            + self.disk.spool.len()
            + self.disk.inbox.len()
            + self.disk.receipts.len()
    }

    /// Starts the process from its disk.
    pub(super) fn start(&mut self, now: u64) -> Result<(), Killed> {
        let mut records = self.disk.clone();
        if self.defect == SealedDefect::SeenForgotten {
            records.seen.clear();
            self.disk.seen.clear();
        }
        let mut mail = Mail::new(self.identity.clone(), records, self.seed());
        let commit = mail.ensure_device("sim", now).expect("a device");
        self.commit(commit)?;
        let row = self.disk.device.clone().expect("committed");
        let hello = Hello {
            v: 2,
            dev: row.device,
            cert: Blob(row.cert.bytes().to_vec()),
            cs: *row.cert.signature(),
            list: Blob(row.list.bytes().to_vec()),
            ls: *row.list.signature(),
            name: "sim".into(),
            fw: None,
            ver: None,
            caps: Vec::new(),
            bio: None,
            tags: Vec::new(),
            vis: None,
            listed: false,
            role: Role::Active,
            sib: Vec::new(),
            vouch: None,
            win: None,
            ep: 0,
            nov1: true,
            feat: Vec::new(),
        };
        let sessions = self
            .relays
            .clone()
            .into_iter()
            .map(|relay| {
                let config = SessionConfig {
                    relay,
                    host: HOST.into(),
                    quic: true,
                    websocket: true,
                    hello: hello.clone(),
                };
                let mut session = ClientSession::new(config, self.identity.clone(), self.seed());
                session.start(now);
                session
            })
            .collect();
        self.live = Some(Process { mail, sessions, asks: Vec::new(), courier: Courier::default() });
        Ok(())
    }

    fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        seed
    }

    /// Stores a commit as one transaction; the process may die right before or right after.
    fn commit(&mut self, commit: Commit) -> Result<(), Killed> {
        if commit.is_empty() {
            return Ok(());
        }
        self.stats.commits += 1;
        if self.rng.random_range(0..1_000) < self.danger {
            self.stats.kills_before_commit += 1;
            return Err(Killed);
        }
        for write in &commit.writes {
            if self.defect == SealedDefect::SessionNotStored
                && matches!(write, Write::Session(row) if row.sealed > 0)
            {
                continue;
            }
            if let Write::Inbox(row) = write
                && !self.inboxed.insert((row.peer, row.id))
            {
                self.twice = Some(format!("message {} of {}", row.id, row.peer));
            }
            self.disk.apply(write);
        }
        if self.rng.random_range(0..1_000) < self.danger { Err(Killed) } else { Ok(()) }
    }

    /// A person's message: whether it was taken.
    pub(super) fn submit(
        &mut self,
        to: Key,
        thread: &str,
        text: &str,
        now: u64,
    ) -> Option<Result<(), Killed>> {
        let live = self.live.as_mut()?;
        let draft = Draft::text(thread.parse().expect("a thread id"), text);
        let (_, commit) = live.mail.submit(to, draft, now).expect("a device");
        Some(self.commit(commit))
    }

    /// Whether the last submitted text is on the disk.
    pub(super) fn has_taken(&self, text: &str) -> bool {
        self.disk.outbox.values().any(|row| matches!(&row.content.body, Body::Text(t) if t == text))
    }

    pub(super) fn connected(&mut self, relay: usize, connection: ConnectionId, now: u64) {
        if let Some(live) = &mut self.live {
            live.sessions[relay].handle_connected(connection, now);
        }
    }

    pub(super) fn closed(&mut self, relay: usize, connection: ConnectionId, code: Option<u16>, now: u64) {
        if let Some(live) = &mut self.live {
            live.sessions[relay].handle_closed(connection, code, now);
        }
    }

    pub(super) fn received(&mut self, relay: usize, connection: ConnectionId, frame: Frame, now: u64) {
        if let Some(live) = &mut self.live {
            live.sessions[relay].handle_frame(connection, frame, now);
        }
    }

    pub(super) fn asks(&mut self) -> Vec<Ask> {
        self.live.as_mut().map(|live| std::mem::take(&mut live.asks)).unwrap_or_default()
    }

    /// Does everything there is to do now.
    pub(super) fn pump(&mut self, now: u64) -> Result<(), Killed> {
        let Some(live) = &mut self.live else { return Ok(()) };
        for session in &mut live.sessions {
            if session.poll_timeout().is_some_and(|at| at <= now) {
                session.handle_timeout(now);
            }
        }
        for relay in 0..self.relays.len() {
            while let Some(effect) = self.live.as_mut().and_then(|live| live.sessions[relay].poll_effect()) {
                self.effect(relay, effect, now)?;
            }
        }
        self.open(now)?;
        self.hand_on(now)?;
        self.seal(now)?;
        self.send(now);
        for relay in 0..self.relays.len() {
            while let Some(effect) = self.live.as_mut().and_then(|live| live.sessions[relay].poll_effect()) {
                self.effect(relay, effect, now)?;
            }
        }
        Ok(())
    }

    fn effect(&mut self, relay: usize, effect: SessionEffect, now: u64) -> Result<(), Killed> {
        let Some(live) = &mut self.live else { return Ok(()) };
        match effect {
            SessionEffect::Connect { connection, carrier } => {
                live.asks.push(Ask::Connect { relay, connection, carrier });
            }
            SessionEffect::Write { connection, frame } => {
                live.asks.push(Ask::Write { relay, connection, frame: *frame });
            }
            SessionEffect::Close { connection, .. } => live.asks.push(Ask::Close { relay, connection }),
            SessionEffect::Welcome(welcome) => {
                assert_eq!(
                    live.mail.check_high_water(welcome.hw, now),
                    HighWater::Fits,
                    "nothing was restored"
                );
                live.courier.welcomed(&mut live.mail, now);
                self.publish(relay, None, now)?;
            }
            SessionEffect::Deliver(deliver) => {
                let claim = match (&deliver.id, &deliver.from, deliver.tt) {
                    (
                        threadline::v2::frames::FrameId::Bin(id),
                        threadline::v2::frames::Target::Key(from),
                        Some(tag),
                    ) => Some((*id, *from, tag)),
                    _ => None,
                };
                match live.mail.receive(&deliver.env.0, claim, now) {
                    Received::Take(commit) => {
                        self.commit(commit)?;
                        let live = self.live.as_mut().expect("running");
                        if let Some((_, from, _)) = claim {
                            live.courier.heard(relay, from, now);
                        }
                        let _ = live.sessions[relay].taken(&[deliver.did]);
                    }
                    Received::Refuse(code) => {
                        let _ = live.sessions[relay].not_taken(deliver.did, code);
                    }
                }
            }
            SessionEffect::Accepted { to, id, answer } => {
                let answer = live.courier.accepted(relay, &live.sessions, (to, id), &answer, now);
                let (commit, _) = live.mail.answered(&to, &id, answer, now);
                if self.defect == SealedDefect::AcceptedIsEnough {
                    live.mail.withdraw(&to, &id);
                    self.disk.outbox.remove(&(to, id));
                    return Ok(());
                }
                self.commit(commit)?;
            }
            SessionEffect::Rejected { to, id, code, retry_ms } => {
                let answer = live.courier.rejected(relay, &live.sessions, (to, id), code, retry_ms, now);
                let (commit, _) = live.mail.answered(&to, &id, answer, now);
                self.commit(commit)?;
            }
            SessionEffect::KeysOk(answer) => {
                let commit = live.mail.keys_stored(&self.relays[relay], &answer).expect("a device");
                self.commit(commit)?;
                self.publish(relay, Some(answer.have), now)?;
            }
            SessionEffect::Answer { request, frame } => {
                let answer =
                    live.courier.answer(&mut live.mail, &live.sessions, (relay, request), *frame, now);
                let Some((commit, _)) = answer else { return Ok(()) };
                self.commit(commit)?;
            }
            SessionEffect::Lost => {
                self.stats.moves += u64::from(live.sessions[relay].is_ready());
                live.courier.lost(&mut live.mail, &mut live.sessions, relay, now);
            }
            SessionEffect::State(_)
            | SessionEffect::Status { .. }
            | SessionEffect::Presence(_)
            | SessionEffect::Solve { .. }
            | SessionEffect::Blob(_) => {}
        }
        Ok(())
    }

    fn publish(&mut self, relay: usize, have: Option<u16>, now: u64) -> Result<(), Killed> {
        let live = self.live.as_mut().expect("running");
        let (commit, put) = live.mail.publish(&self.relays[relay], have, now).expect("a device");
        self.commit(commit)?;
        let live = self.live.as_mut().expect("running");
        if let Some(put) = put {
            let _ = live.sessions[relay].put_keys(put);
        }
        Ok(())
    }

    fn open(&mut self, now: u64) -> Result<(), Killed> {
        loop {
            let live = self.live.as_mut().expect("running");
            let Some(opened) = live.mail.open_next(&|_| true, now).expect("pickles open") else {
                return Ok(());
            };
            self.commit(opened.commit)?;
            let live = self.live.as_mut().expect("running");
            if let Some(answer) = opened.answer {
                live.courier.carry(answer);
            }
            if opened.keys_failed {
                live.courier.keys_failed(opened.from);
            }
            if opened.outcome == Outcome::Unopened(Unopened::UnknownDevice) {
                live.courier.look_up(&mut live.sessions, opened.from, now);
            }
        }
    }

    /// The commit follows the hand-over, which does nothing the second time.
    fn hand_on(&mut self, now: u64) -> Result<(), Killed> {
        let live = self.live.as_mut().expect("running");
        let (commit, dispatched) = live.mail.dispatch(now);
        for message in dispatched {
            let key = (message.row.peer, message.row.id);
            let Body::Text(text) = &message.row.content.body else { continue };
            if self.store.contains_key(&key) {
                continue;
            }
            self.store.insert(key, self.stored.len());
            let stored = Stored {
                peer: key.0,
                thread: message.row.content.thread.to_string(),
                text: text.clone(),
                marker: message.marker,
            };
            if self.stored.iter().any(|other| other.peer == stored.peer && other.text == stored.text) {
                self.twice = Some(stored.text.clone());
            }
            self.stored.push(stored);
        }
        self.commit(commit)
    }

    fn seal(&mut self, now: u64) -> Result<(), Killed> {
        let live = self.live.as_mut().expect("running");
        live.courier.expire(now);
        let commit = live.mail.flush_receipts(&|_| true, now).expect("a device");
        self.commit(commit)?;
        let commit = self.live.as_mut().expect("running").mail.drop_stale(PATIENCE_MS, now);
        self.commit(commit)?;
        let peers = self.live.as_ref().expect("running").mail.peers_to_seal();
        for peer in peers {
            let live = self.live.as_mut().expect("running");
            let sealing = live.mail.seal(&peer, now).expect("pickles open");
            self.commit(sealing.commit)?;
            let live = self.live.as_mut().expect("running");
            if sealing.needs_keys {
                live.courier.claim_keys(&mut live.sessions, peer, now);
            }
        }
        let (commit, _) = self.live.as_mut().expect("running").mail.expire(now);
        self.commit(commit)
    }

    fn send(&mut self, now: u64) {
        let live = self.live.as_mut().expect("running");
        self.stats.envelopes += live.courier.send(&mut live.mail, &mut live.sessions, now);
        live.courier.tidy(&live.mail);
    }
}
