//! A relay core, its storage and scripted clients.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use serde_json::{Value, json};
use threadline::identity::{Identity, LoginNonce};
use threadline::v1::frames::{Auth, ClientFrame, Metadata, RegistryWish, Visibility};

use crate::cluster::rig::Keeper;
use crate::config::{EngineKind, RelayConfig};
use crate::core::{ConnId, Core, Effect, Event, Inbound, Source, Start};
use crate::store::{QueueRules, QueueTotals, Store, StoreAnswer, StoreOp};

pub(super) const NOW: i64 = 1_768_478_400_000;

/// What keeps mail.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum On {
    Log,
    Nats,
}

pub(super) struct Bench {
    pub(super) core: Core,
    pub(super) store: Store,
    cluster: Option<Keeper>,
    pub(super) now: i64,
    config: Arc<RelayConfig>,
    got: HashMap<ConnId, Vec<Value>>,
    pub(super) closes: HashMap<ConnId, u16>,
    next: ConnId,
    /// Storage answers with failure.
    pub(super) broken: bool,
    gone: HashSet<ConnId>,
}

pub(super) fn agent(n: u8) -> Identity {
    Identity::from_seed(&[n; 32])
}

pub(super) fn address(n: u8) -> String {
    agent(n).fingerprint().to_string()
}

pub(super) fn envelope(from: u8, to: u8, id: &str) -> Value {
    json!({"from": address(from), "to": address(to), "threadId": "t", "messageId": id,
           "payload": "eyJ0ZXh0IjoiaGVsbG8iLCJ0eXBlIjoiY2hhdCJ9", "timestamp": "2026-01-15T12:00:00.000Z"})
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    /// Limits that are not the subject of a test are out of its way.
    pub(super) fn generous() -> Self {
        Self::generous_with(|_| {})
    }

    pub(super) fn generous_with(change: impl FnOnce(&mut RelayConfig)) -> Self {
        Self::generous_on(On::Log, change)
    }

    pub(super) fn generous_on(on: On, change: impl FnOnce(&mut RelayConfig)) -> Self {
        Self::on(on, |config| {
            config.sybil.tiers = false;
            config.sybil.aging_s = 0;
            config.limits.per_source = false;
            config.limits.messages_per_minute = 100_000;
            config.limits.messages_per_hour = 100_000;
            config.limits.global_per_minute = 100_000;
            config.queue.stranger_each = 500;
            config.queue.strangers = 500;
            config.queue.per_pair = 500;
            config.queue.unknown_recipient = 500;
            change(config);
        })
    }

    pub(super) fn with(change: impl FnOnce(&mut RelayConfig)) -> Self {
        Self::on(On::Log, change)
    }

    pub(super) fn on(on: On, change: impl FnOnce(&mut RelayConfig)) -> Self {
        let mut config = RelayConfig::default();
        change(&mut config);
        let rules = QueueRules { queue: config.queue.clone() };
        let cluster = (on == On::Nats).then(|| Keeper::new(rules));
        if cluster.is_some() {
            config.engine = EngineKind::Nats;
        }
        let store = Store::in_memory(QueueRules { queue: config.queue.clone() }).expect("store");
        let config = Arc::new(config);
        let core = start(&config, &store, NOW);
        Self {
            core,
            store,
            cluster,
            now: NOW,
            config,
            got: HashMap::new(),
            closes: HashMap::new(),
            next: 0,
            broken: false,
            gone: HashSet::new(),
        }
    }

    /// The process dies and starts again: sockets and everything not stored are gone.
    pub(super) fn crash(&mut self) {
        self.core = start(&self.config, &self.store, self.now);
        self.gone.extend(self.got.keys());
    }

    pub(super) fn handle(&mut self, event: Event) {
        self.core.handle(event, self.now);
        self.carry_out();
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::Send { conn, what } => {
                    let frame = serde_json::from_str(&what.to_text()).expect("frames are JSON");
                    self.got.entry(conn).or_default().push(frame);
                }
                Effect::Close { conn, code, .. } => {
                    self.closes.insert(conn, code);
                }
                Effect::Store { ticket, op } => {
                    let answer = match (&op, &mut self.cluster) {
                        _ if self.broken => Err(crate::store::StoreFailed),
                        (StoreOp::Queue(op), Some(cluster)) => {
                            cluster.apply(std::slice::from_ref(op)).remove(0).map(StoreAnswer::Queue)
                        }
                        _ => self.store.apply(&op),
                    };
                    self.core.handle(Event::Stored { ticket, answer }, self.now);
                }
            }
        }
    }

    /// Lets time pass, running every timer at its moment.
    pub(super) fn pass(&mut self, ms: i64) {
        let end = self.now + ms;
        while let Some(at) = self.core.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.handle(Event::Tick);
        }
        self.now = end;
        self.handle(Event::Tick);
    }

    pub(super) fn open_from(&mut self, net: u8) -> ConnId {
        self.next += 1;
        let source = Source { net: [net; 8], pseudonym: [net; 16] };
        self.got.insert(self.next, Vec::new());
        self.handle(Event::Opened { conn: self.next, source });
        self.next
    }

    pub(super) fn open(&mut self) -> ConnId {
        self.open_from(1)
    }

    pub(super) fn text(&mut self, conn: ConnId, text: &str) {
        self.handle(Event::Received { conn, inbound: Inbound::read(text) });
    }

    pub(super) fn frame(&mut self, conn: ConnId, frame: &Value) {
        self.text(conn, &frame.to_string());
    }

    /// Everything received since the last call.
    pub(super) fn got(&mut self, conn: ConnId) -> Vec<Value> {
        self.got.get_mut(&conn).map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn got_only(&mut self, conn: ConnId, kind: &str) -> Vec<Value> {
        self.got(conn).into_iter().filter(|frame| frame["type"] == kind).collect()
    }

    pub(super) fn auth(&mut self, conn: ConnId, n: u8, visibility: Visibility, listed: Option<bool>) -> Auth {
        let challenge = self.got_only(conn, "challenge").pop().expect("a challenge");
        let nonce = LoginNonce::parse(challenge["nonce"].as_str().expect("text")).expect("nonce");
        let metadata = Metadata { name: format!("agent-{n}"), ..Metadata::default() };
        let mut auth = Auth::new(&agent(n), &nonce, metadata, visibility);
        auth.registry = listed.map(|listed| RegistryWish { listed, homepage: None, framework_visible: None });
        auth
    }

    pub(super) fn log_in_as(&mut self, n: u8, visibility: Visibility, listed: Option<bool>) -> ConnId {
        let conn = self.open();
        let auth = self.auth(conn, n, visibility, listed);
        self.text(conn, &ClientFrame::Auth(Box::new(auth)).to_text());
        conn
    }

    /// Logs in unlisted and forgets what was received so far but messages.
    pub(super) fn log_in(&mut self, n: u8) -> ConnId {
        let conn = self.log_in_as(n, Visibility::Unlisted, None);
        let got = self.got(conn);
        assert_eq!(got[0]["type"], "auth_ok", "{got:?}");
        self.got.insert(conn, got.into_iter().skip(1).collect());
        conn
    }

    pub(super) fn send(&mut self, conn: ConnId, from: u8, to: u8, id: &str) {
        self.frame(conn, &json!({"type": "message", "envelope": envelope(from, to, id)}));
    }

    /// Sends and returns the acknowledgement that comes at once.
    pub(super) fn send_and_hear(&mut self, conn: ConnId, from: u8, to: u8, id: &str) -> Value {
        self.got(conn);
        self.send(conn, from, to, id);
        self.got_only(conn, "ack").pop().unwrap_or(Value::Null)
    }

    pub(super) fn ack(&mut self, conn: ConnId, id: &str) {
        self.frame(conn, &json!({"type": "ack", "messageId": id, "status": "delivered"}));
    }

    pub(super) fn message_ids(&mut self, conn: ConnId) -> Vec<String> {
        let messages = self.got_only(conn, "message");
        messages.iter().map(|m| m["envelope"]["messageId"].as_str().expect("id").to_owned()).collect()
    }

    pub(super) fn totals(&self) -> QueueTotals {
        self.cluster.as_ref().map_or_else(|| self.store.totals(), Keeper::totals)
    }

    /// A new world on the same server, which takes its time to start.
    pub(super) fn renew(mut self) -> Self {
        let mut cluster = self.cluster.take();
        if let Some(cluster) = &mut cluster {
            cluster.empty();
            cluster.restart(QueueRules { queue: self.config.queue.clone() });
        }
        let config = (*self.config).clone();
        let fresh = Self::with(|new| *new = config);
        Self { cluster, ..fresh }
    }
}

fn start(config: &Arc<RelayConfig>, store: &Store, now: i64) -> Core {
    let start = Start {
        last_seq: store.last_seq(),
        totals: store.totals(),
        relay_id: "relay-threadline-default".into(),
        signer: SigningKey::from_bytes(&[9; 32]),
        hosts: vec!["localhost".into()],
        seed: [now.to_le_bytes()[0]; 32],
    };
    Core::new(Arc::clone(config), start, now)
}
