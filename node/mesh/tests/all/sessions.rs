//! Sessions that do what the test says.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hmac::{Hmac, KeyInit, Mac};
use instar_state::BoxFuture;
use instar_state::ids::{ConversationKey, SessionId};
use instar_state::ports::{
    HeartbeatSpec, InputState, LiveSession, PeerSessionSpec, PeerSessions, SessionInput, SpawnRefused,
};
use instar_state::time::now_ms;
use sha2::Sha256;
use tokio::sync::Notify;
use ulid::Ulid;

#[derive(Default)]
pub struct Sessions {
    state: Mutex<State>,
    changed: Notify,
    /// Starts that are refused before one succeeds.
    pub refuse: AtomicU32,
    /// Starts that panic before one does not.
    pub panics: AtomicU32,
    /// Unix milliseconds before which every start is refused.
    pub paused_until: AtomicI64,
    /// Starts that were refused so.
    pub paused: AtomicU32,
    /// Memory in use, percent.
    pub memory: AtomicU8,
    /// Reads of the inbox that fail before one succeeds.
    pub unreadable: AtomicU32,
    /// Inputs that the inbox refuses before it takes one.
    pub full: AtomicU32,
    /// Supervisors write no proof of life.
    pub silent: AtomicBool,
}

#[derive(Default)]
struct State {
    rows: BTreeMap<String, (SessionInput, Ulid, InputState)>,
    live: HashMap<ConversationKey, LiveSession>,
    order: Vec<String>,
    starts: Vec<PeerSessionSpec>,
    ended: Vec<(SessionId, String)>,
    tainted: Vec<SessionId>,
}

impl Sessions {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn rows(&self) -> Vec<(SessionInput, InputState)> {
        self.state().rows.values().map(|(input, _, state)| (input.clone(), *state)).collect()
    }

    /// Inbox keys in the order in which the inbox took them.
    pub fn order(&self) -> Vec<String> {
        self.state().order.clone()
    }

    pub fn starts(&self) -> Vec<PeerSessionSpec> {
        self.state().starts.clone()
    }

    pub fn ended(&self) -> Vec<String> {
        self.state().ended.iter().map(|(_, reason)| reason.clone()).collect()
    }

    pub fn tainted(&self, id: &SessionId) -> bool {
        self.state().tainted.contains(id)
    }

    /// The turn of every session is over.
    pub fn become_idle(&self) {
        for session in self.state().live.values_mut() {
            session.idle = true;
        }
        self.changed.notify_one();
    }

    /// Every session dies; what it had not answered is queued again.
    pub fn die(&self) {
        let mut state = self.state();
        state.live.clear();
        for (_, _, row) in state.rows.values_mut() {
            if *row == InputState::Injected {
                *row = InputState::Queued;
            }
        }
        drop(state);
        self.changed.notify_one();
    }
}

impl PeerSessions for Sessions {
    fn enqueue(&self, input: SessionInput) -> BoxFuture<'_, Result<Ulid, String>> {
        Box::pin(async move {
            if take_one(&self.full) {
                return Err("disk full".into());
            }
            let mut state = self.state();
            let injected = state.live.contains_key(&input.conversation);
            let first = if injected { InputState::Injected } else { InputState::Queued };
            if !state.rows.contains_key(&input.inbox_key) {
                state.order.push(input.inbox_key.clone());
            }
            let row = state.rows.entry(input.inbox_key.clone());
            Ok(row.or_insert_with(|| (input, Ulid::generate(), first)).1)
        })
    }

    fn live(&self, conversation: &ConversationKey) -> Option<LiveSession> {
        self.state().live.get(conversation).cloned()
    }

    fn memory_percent(&self) -> u8 {
        self.memory.load(Ordering::SeqCst)
    }

    fn start(&self, spec: PeerSessionSpec) -> BoxFuture<'_, Result<SessionId, SpawnRefused>> {
        Box::pin(async move {
            assert!(!take_one(&self.panics), "a defect in the start of sessions");
            let until_ms = self.paused_until.load(Ordering::SeqCst);
            if now_ms() < until_ms {
                self.paused.fetch_add(1, Ordering::SeqCst);
                return Err(SpawnRefused::Paused { until_ms, reason: "the provider refuses".into() });
            }
            if self.refuse.load(Ordering::SeqCst) > 0 {
                self.refuse.fetch_sub(1, Ordering::SeqCst);
                return Err(SpawnRefused::Failed("no".into()));
            }
            if !self.silent.load(Ordering::SeqCst)
                && let Some(heartbeat) = &spec.heartbeat
            {
                beat(heartbeat);
            }
            let id = SessionId::random();
            let mut state = self.state();
            let live = LiveSession { id, idle: false, child_pid: Some(1) };
            state.live.insert(spec.conversation.clone(), live);
            for (input, _, row) in state.rows.values_mut() {
                if input.conversation == spec.conversation && *row == InputState::Queued {
                    *row = InputState::Injected;
                }
            }
            state.starts.push(spec);
            drop(state);
            self.changed.notify_one();
            Ok(id)
        })
    }

    fn replied(&self, conversation: &ConversationKey, inbox_key: Option<&str>) -> BoxFuture<'_, ()> {
        let (conversation, key) = (conversation.clone(), inbox_key.map(str::to_owned));
        Box::pin(async move {
            for (input, _, row) in self.state().rows.values_mut() {
                let named = key.as_ref().is_none_or(|k| *k == input.inbox_key);
                if input.conversation == conversation && named && *row != InputState::Failed {
                    *row = InputState::Acked;
                }
            }
            self.changed.notify_one();
        })
    }

    fn input_state(&self, inbox_key: &str) -> BoxFuture<'_, Result<Option<InputState>, String>> {
        if take_one(&self.unreadable) {
            return Box::pin(async { Err("disk I/O error".into()) });
        }
        let state = self.state().rows.get(inbox_key).map(|(_, _, state)| *state);
        Box::pin(async move { Ok(state) })
    }

    fn withdraw(&self, inbox_key: &str) -> BoxFuture<'_, ()> {
        if let Some((_, _, state)) = self.state().rows.get_mut(inbox_key)
            && matches!(state, InputState::Queued | InputState::Injected)
        {
            *state = InputState::Expired;
        }
        Box::pin(async {})
    }

    fn end(&self, id: &SessionId, reason: &str) -> BoxFuture<'_, ()> {
        let mut state = self.state();
        let ended = state.live.iter().find(|(_, session)| session.id == *id).map(|(key, _)| key.clone());
        state.live.retain(|_, session| session.id != *id);
        for (input, _, row) in state.rows.values_mut() {
            if Some(&input.conversation) == ended.as_ref() && *row == InputState::Injected {
                *row = InputState::Queued;
            }
        }
        state.ended.push((*id, reason.to_owned()));
        drop(state);
        self.changed.notify_one();
        Box::pin(async {})
    }

    fn taint(&self, id: &SessionId) -> BoxFuture<'_, ()> {
        self.state().tainted.push(*id);
        Box::pin(async {})
    }

    fn retract(&self, conversation: &ConversationKey, _: &str) -> BoxFuture<'_, ()> {
        for (input, _, row) in self.state().rows.values_mut() {
            if input.conversation == *conversation {
                input.body.clear();
                if matches!(row, InputState::Queued | InputState::Injected) {
                    *row = InputState::Expired;
                }
            }
        }
        self.changed.notify_one();
        Box::pin(async {})
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.changed.notified())
    }
}

fn take_one(count: &AtomicU32) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

/// What the supervisor writes.
fn beat(spec: &HeartbeatSpec) {
    let ts = instar_state::time::now_ms();
    let text = format!("evt:{}:pid:1:tid:{}:ts:{ts}", spec.event_id, spec.thread_id);
    let nonce = hex::decode(&spec.nonce).expect("hex");
    let mut mac = Hmac::<Sha256>::new_from_slice(&nonce).expect("key");
    mac.update(text.as_bytes());
    let hmac = hex::encode(mac.finalize().into_bytes());
    let beat = serde_json::json!({"eventId": spec.event_id, "sessionPid": 1, "threadId": spec.thread_id,
        "ts": ts, "hmac": hmac});
    std::fs::create_dir_all(spec.file.parent().expect("parent")).expect("directory");
    std::fs::write(&spec.file, beat.to_string()).expect("write");
}
