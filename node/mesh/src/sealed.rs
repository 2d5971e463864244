//! Sealed mail in this room: who is written to with it, what comes in through it, what its peers are told, and how two
//! people make sure of each other's keys.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use instar_outbound::{Cleared, OutboundMessage};
use serde_json::{Value, json};
use threadline::audit::Action;
use threadline::identity::{Identity, PublicIdentity};
use threadline::service::{Caller, ServiceError};
use threadline::time::iso_ms;
use threadline::trust::{Profiles, TrustSource};
use threadline::v1::frames::Visibility;
use threadline::v2::content::ReceiptStatus;
use threadline::v2::frames;
use threadline::v2::login::QuicAddress;
use threadline::v2::opened::sealed_id;
use threadline::v2::safety::safety_number;
use threadline::v2::{Key, MAX_BODY, mail::Change};
use threadline::{Fingerprint, MessageId, ThreadKey, TrustLevel, text};
use threadline_net::sealed::{
    Introduction, RelayNews, RelaySetting, RelayTrouble, SealedDeps, SealedDraft, SealedError, SealedEvent,
    SealedFuture, SealedHandle, SealedRelay, SealedStatus, Standing, follow_relays, run_sealed,
};
use threadline_net::store::{
    Approval, ApprovalKind, Direction, KnownPeer, OutboundDraft, Queued, SEALED, Store, StoreError,
    StoredMessage,
};
use threadline_net::{Control, LinkHandle};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::MeshConfig;
use crate::core::{Core, internal};
use crate::records::{Controls, Record};
use crate::trust::require_owner;

/// Tag of nodes that speak v2.
pub(crate) const TAG: &str = "tl2";

/// Keys of directories that are remembered.
const MAX_FOUND: usize = 1_000;

/// Sealed mail as the room sees it.
pub(crate) struct SealedRoom {
    pub(crate) handle: SealedHandle,
    settings: watch::Sender<Vec<RelaySetting>>,
    news: watch::Receiver<Vec<RelayNews>>,
    again: watch::Sender<u64>,
    /// Peers that relays of v2 say are there. Held only to look and to note.
    there: Mutex<HashSet<Fingerprint>>,
    /// Keys that directories named; what is not used is not pinned. Held only to look and to note.
    found: Mutex<HashMap<Fingerprint, PublicIdentity>>,
    /// Relays that opened a v2 session since the start. Held only to look and to note.
    spoke_v2: Mutex<HashSet<String>>,
}

/// What runs for it.
pub(crate) struct SealedRun {
    pub(crate) mail: SealedFuture,
    pub(crate) relays: SealedFuture,
    pub(crate) events: mpsc::Receiver<SealedEvent>,
}

/// What sealed mail is made of.
pub(crate) struct SealedParts<'a> {
    pub(crate) identity: &'a Arc<Identity>,
    pub(crate) store: &'a Store,
    pub(crate) link: &'a LinkHandle,
    pub(crate) agent_name: &'a str,
    pub(crate) config: &'a Arc<ArcSwap<MeshConfig>>,
    pub(crate) profiles: &'a Arc<Record<Profiles>>,
    pub(crate) controls: &'a Arc<Record<Controls>>,
    pub(crate) stop: &'a CancellationToken,
}

impl SealedRoom {
    pub(crate) fn new(parts: &SealedParts<'_>) -> (Self, SealedRun) {
        let now = instar_state::time::now_ms;
        let (settings, wanted) = watch::channel(parts.config.load().relay_settings());
        let (news_tx, news) = watch::channel(Vec::new());
        let (again, asked_again) = watch::channel(0);
        let (relays_tx, relays) = watch::channel(Vec::new());
        let (events_tx, events) = mpsc::channel(256);
        let (profiles, controls) = (Arc::clone(parts.profiles), Arc::clone(parts.controls));
        let config = Arc::clone(parts.config);
        let standing = move |key: &Key| {
            let Ok(key) = PublicIdentity::from_bytes(&key.0) else { return Standing::Blocked };
            let peer = key.fingerprint();
            let profiles = profiles.get();
            let profile = profiles.profiles.get(&peer);
            if controls.get().is_blocked(&peer) {
                Standing::Blocked
            } else if profile.is_some_and(|profile| profile.level > TrustLevel::Untrusted) {
                Standing::Contact
            } else {
                Standing::Stranger { may_know: config.load().visibility != Visibility::Private }
            }
        };
        let (agent_name, introduced) = (parts.agent_name.to_owned(), Arc::clone(parts.config));
        let introduce = move || {
            let config = introduced.load();
            let mut capabilities = config.advertised();
            if !capabilities.iter().any(|tag| tag == TAG) {
                capabilities.push(TAG.into());
            }
            Introduction {
                name: agent_name.clone(),
                capabilities,
                visibility: match config.visibility {
                    Visibility::Public => frames::Visibility::Public,
                    Visibility::Unlisted => frames::Visibility::Unlisted,
                    Visibility::Private => frames::Visibility::Private,
                },
                listed: config.registry_listed,
            }
        };
        let deps = SealedDeps {
            link: Some(parts.link.clone()),
            identity: Arc::clone(parts.identity),
            store: parts.store.clone(),
            device_name: parts.agent_name.to_owned(),
            introduce: Arc::new(introduce),
            relays,
            standing: Arc::new(standing),
            events: events_tx,
            now,
        };
        let (handle, mail) = run_sealed(deps, parts.stop.clone());
        let (store, stop) = (parts.store.clone(), parts.stop.clone());
        let following = follow_relays(wanted, asked_again, news_tx, store, now, stop);
        let passing = pass_on(news.clone(), relays_tx);
        let relays = Box::pin(async move {
            tokio::join!(following, passing);
        });
        let (there, found, spoke_v2) = (Mutex::default(), Mutex::default(), Mutex::default());
        let room = Self { handle, settings, news, again, there, found, spoke_v2 };
        (room, SealedRun { mail, relays, events })
    }

    /// Whether the link may speak v1 with this relay: with one that ever opened a v2 session, beside an open one only. Else
    /// a relay would get a login by v1 until it is known that it does not speak v2 any more.
    pub(crate) fn v1_allowed(&self, url: &str) -> bool {
        let status = self.handle.status();
        let is_open = status.iter().any(|session| session.relay == url && session.state == "ready");
        let mut opened = self.spoke_v2.lock().unwrap_or_else(PoisonError::into_inner);
        if is_open {
            opened.insert(url.to_owned());
        }
        let news = self.news.borrow();
        let Some(news) = news.iter().find(|news| news.url == url) else { return true };
        let is_bound =
            news.v2.as_ref().is_some_and(|relay| relay.remember) && (news.spoke_v2 || opened.contains(url));
        news.v1_allowed && (is_open || !is_bound)
    }

    /// Whether it is known by now what this relay speaks, or that it does not say.
    pub(crate) fn was_asked(&self, url: &str) -> bool {
        self.news.borrow().iter().any(|news| news.url == url && news.asked)
    }

    /// Whether this relay speaks v2, so that others may be told that this agent does there.
    pub(crate) fn speaks(&self, url: &str) -> bool {
        self.news.borrow().iter().any(|news| news.url == url && news.v2.is_some())
    }

    fn speaks_anywhere(&self) -> bool {
        self.news.borrow().iter().any(|news| news.v2.is_some())
    }

    /// Whether a v2 session is open.
    pub(crate) fn is_connected(&self) -> bool {
        self.handle.status().iter().any(|status| status.state == "ready")
    }

    /// Whether a relay of v2 says that this peer is there.
    pub(crate) fn is_there(&self, peer: &Fingerprint) -> bool {
        self.there.lock().unwrap_or_else(PoisonError::into_inner).contains(peer)
    }

    /// All those of whom a relay of v2 says so.
    fn all_there(&self) -> Vec<Fingerprint> {
        self.there.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    /// The key that a directory named for this address.
    pub(crate) fn found_key(&self, peer: &Fingerprint) -> Option<PublicIdentity> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).get(peer).copied()
    }

    /// Has the relays asked again what they speak: a connection with one of them was lost.
    pub(crate) fn look_again(&self) {
        self.again.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Changes of what relays speak, and of the sessions with them.
    pub(crate) async fn changed(
        news: &mut watch::Receiver<Vec<RelayNews>>,
        status: &mut watch::Receiver<Vec<SealedStatus>>,
    ) -> bool {
        tokio::select! {
            changed = news.changed() => changed.is_ok(),
            changed = status.changed() => changed.is_ok(),
        }
    }

    pub(crate) fn watch_news(&self) -> watch::Receiver<Vec<RelayNews>> {
        self.news.clone()
    }

    pub(crate) fn configure(&self, settings: Vec<RelaySetting>) {
        self.settings.send_if_modified(|known| {
            let changed = *known != settings;
            *known = settings;
            changed
        });
    }

    fn status(&self) -> Value {
        let relays: Vec<Value> = self
            .news
            .borrow()
            .iter()
            .map(|news| {
                json!({
                    "url": news.url,
                    "speaks": if news.v2.is_some() { Some(2) } else { news.v1_allowed.then_some(1) },
                    "trouble": news.trouble,
                    "quic": news.v2.as_ref().map(quic_addresses),
                })
            })
            .collect();
        json!({"relays": relays, "sessions": self.handle.status()})
    }
}

/// Tells sealed mail which relays there are.
async fn pass_on(mut news: watch::Receiver<Vec<RelayNews>>, relays: watch::Sender<Vec<SealedRelay>>) {
    loop {
        let open: Vec<SealedRelay> = news.borrow_and_update().iter().filter_map(|n| n.v2.clone()).collect();
        relays.send_if_modified(|known| {
            let changed = *known != open;
            *known = open;
            changed
        });
        if news.changed().await.is_err() {
            return;
        }
    }
}

impl Core {
    /// What this agent says at `relay` that it can do.
    pub(crate) fn capabilities_at(&self, relay: &str) -> Vec<String> {
        let mut tags = self.config().advertised();
        if self.sealed.speaks(relay) && !tags.iter().any(|tag| tag == TAG) {
            tags.push(TAG.into());
        }
        tags
    }

    /// What this agent says to whoever asks it.
    pub(crate) fn capabilities(&self) -> Vec<String> {
        self.config()
            .relay_url
            .as_deref()
            .map_or_else(|| self.config().advertised(), |url| self.capabilities_at(url))
    }

    /// The key to write sealed mail to, where this message goes that way: once a device of the peer is certified, always
    /// but on this host, and, without a session with that device, where no relay speaks v2; before that, when the peer says that it speaks v2 and a relay
    /// does. A thread stays with the carrier of what its peer has not confirmed yet.
    /// A text that fits into no other carrier goes that way in any case.
    pub(crate) async fn sealed_key(&self, key: &ThreadKey, bytes: usize) -> Result<Option<Key>, StoreError> {
        let peer = key.peer;
        let pinned = self.store.speaks_v2(peer).await?;
        if !(pinned || self.sealed.speaks_anywhere() && self.speaks(&peer, TAG).await?) {
            return Ok(None);
        }
        let Some(identity) = self.key_of(&peer).await? else { return Ok(None) };
        let (key_of_peer, nobody_speaks_v2) = (Key::from(&identity), self.nobody_speaks_v2());
        let sealed = Some(key_of_peer);
        if bytes > MAX_BODY && nobody_speaks_v2 {
            return Ok(None);
        }
        if bytes > MAX_BODY || !self.speaks(&peer, "tl-e2e").await? {
            return Ok(sealed);
        }
        let is_carried = nobody_speaks_v2
            && self.config().relay_url.is_some()
            && self.sealed.handle.can_seal(key_of_peer).await;
        let elsewhere = self.routes.leads(&peer) || nobody_speaks_v2 && !is_carried;
        if let Some(carrier) = self.store.open_carrier(key.clone()).await? {
            return Ok(sealed.filter(|_| carrier));
        }
        Ok(sealed.filter(|_| !elsewhere))
    }

    /// Whether the relays that the owner chose speak v1 alone, as far as they can be asked: then what would wait for a
    /// relay of v2 for ever goes sealed in the form of v1.
    pub(crate) fn nobody_speaks_v2(&self) -> bool {
        let wanted = self.sealed.settings.borrow().len();
        let news = self.sealed.news.borrow();
        let is_plain = |relay: &RelayNews| {
            relay.asked && relay.v2.is_none() && relay.trouble.is_none() && relay.v1_allowed
        };
        news.len() == wanted && news.iter().all(is_plain) && (wanted > 0 || !self.config().relay_is_ours)
    }

    /// Takes a cleared text into sealed mail.
    pub(crate) async fn commit_sealed(
        &self,
        to: Key,
        cleared: Cleared<OutboundMessage>,
        draft: OutboundDraft,
    ) -> Result<Queued, ServiceError> {
        let ttl_ms = self.config().sealed_ttl_ms.unsigned_abs();
        let sealed = SealedDraft { need: None, ttl_ms, priority: 1 };
        self.sealed.handle.submit(to, cleared, draft, sealed).await.map_err(|error| match error {
            SealedError::Store(StoreError::AlreadyAnswered { in_reply_to, by }) => {
                ServiceError::new("already-answered", format!("message {in_reply_to} was answered by {by}"))
            }
            SealedError::Store(error) => internal(&error),
            SealedError::Submit(error) => ServiceError::new("invalid-arguments", error.to_string()),
            error @ (SealedError::NoUuid | SealedError::Mail(_)) => {
                ServiceError::new("internal", error.to_string())
            }
            error @ SealedError::Stopped => ServiceError::retry("storage-failed", error.to_string(), None),
        })
    }

    /// Sends a control message sealed, where the peer is written to that way. Whether it was.
    pub(crate) async fn control_sealed(
        &self,
        key: &ThreadKey,
        control: &Control,
    ) -> Result<bool, StoreError> {
        let Some(to) = self.sealed_key(key, 0).await? else { return Ok(false) };
        match self.sealed.handle.control(to, key.thread.clone(), control).await {
            Ok(_) => Ok(true),
            Err(SealedError::Store(error)) => Err(error),
            Err(error) => {
                tracing::warn!(%error, "a control message was not sealed");
                Ok(true)
            }
        }
    }

    /// Tells the sender of a sealed message what became of it.
    pub(crate) async fn tell_sender(&self, message: &StoredMessage, status: ReceiptStatus) {
        if message.transport == SEALED {
            self.receipt(&message.key.peer, &message.id, status).await;
        }
    }

    /// [`Core::tell_sender`] for the message that an approval is about.
    pub(crate) async fn tell_sender_of(&self, approval: &Approval, status: ReceiptStatus) {
        let (ApprovalKind::Message | ApprovalKind::FirstContact, Some(id)) =
            (approval.kind, approval.message_id.clone())
        else {
            return;
        };
        self.tell_sender_by(approval.peer, &id, status).await;
    }

    /// [`Core::tell_sender`] for the message with this id.
    pub(crate) async fn tell_sender_by(&self, peer: Fingerprint, id: &MessageId, status: ReceiptStatus) {
        if let Ok(Some(message)) = self.store.message(peer, id.clone(), Direction::In).await {
            self.tell_sender(&message, status).await;
        }
    }

    /// [`Core::tell_sender`] for a message that is known to have come sealed.
    pub(crate) async fn receipt(&self, peer: &Fingerprint, id: &MessageId, status: ReceiptStatus) {
        let (Ok(Some(pin)), Some(id)) = (self.store.pinned_key(*peer).await, sealed_id(id)) else { return };
        self.sealed.handle.receipt((&pin.key).into(), id, status).await;
    }

    pub(crate) async fn run_sealed_events(&self, mut events: mpsc::Receiver<SealedEvent>) {
        while let Some(event) = events.recv().await {
            match event {
                SealedEvent::Spooled => self.ingest_wake.notify_one(),
                SealedEvent::Carry => self.link.flush(),
                SealedEvent::Introduce(key) => self.introduce_again(&key).await,
                SealedEvent::Delivery(change) => self.sealed_delivery(&change).await,
                SealedEvent::Presence { key, here } => {
                    if let Ok(key) = PublicIdentity::from_bytes(&key.0) {
                        self.came_or_left(key.fingerprint(), here).await;
                    }
                }
                SealedEvent::PresenceUnknown => {
                    for peer in self.sealed.all_there() {
                        self.came_or_left(peer, false).await;
                    }
                }
                SealedEvent::KeysWithheld => self.notify(
                    "sealed-keys-withheld",
                    "A relay gives out this agent's last-resort key although it has one-time keys: first messages to it \
                     are less secret than they should be. Consider another relay",
                    false,
                ),
                SealedEvent::ClocksDiffer { relay, ahead_ms } => {
                    let day = self.now().div_euclid(86_400_000);
                    let minutes = ahead_ms.unsigned_abs() / 60_000;
                    let where_it_is = if ahead_ms > 0 { "ahead of" } else { "behind" };
                    let text = format!(
                        "The clock of the relay {relay} is {minutes} minutes {where_it_is} this machine's. Nothing is \
                         decided by the relay's; if this machine's is wrong, set it right"
                    );
                    self.notify(format!("relay-clock:{relay}:{day}"), text, false);
                }
                SealedEvent::NewDevice => self.notify(
                    "sealed-new-device",
                    "This state directory is an older copy of another: the agent goes on as a new device. If it runs \
                     twice, stop one of them",
                    true,
                ),
            }
        }
    }

    /// Notes what relays of v2 say; the link may know better.
    async fn came_or_left(&self, peer: Fingerprint, here: bool) {
        {
            let mut there = self.sealed.there.lock().unwrap_or_else(PoisonError::into_inner);
            if here {
                there.insert(peer)
            } else {
                there.remove(&peer)
            };
        }
        let linked = || self.link.agents().iter().any(|agent| agent.fingerprint == peer && agent.online);
        if let Err(error) = self.store.set_presence(peer, here || linked(), self.now()).await {
            tracing::error!(%error, "presence was not noted");
        }
    }

    /// The link is down: what it said of presence does not count any more, what relays of v2 say does.
    pub(crate) async fn forget_presence(&self) {
        let forgotten = async {
            self.store.presence_unknown().await?;
            for peer in self.sealed.all_there() {
                self.store.set_presence(peer, true, self.now()).await?;
            }
            Ok::<_, StoreError>(())
        };
        if let Err(error) = forgotten.await {
            tracing::error!(%error, "presence was not reset");
        }
    }

    /// Watches everyone whose key is pinned, those heard of last first, and whom directories named.
    pub(crate) async fn watch_peers(&self) {
        match self.store.watchable_keys(u32::try_from(frames::MAX_WATCHED).unwrap_or(u32::MAX)).await {
            Ok(pinned) => {
                let found = self.sealed.found.lock().unwrap_or_else(PoisonError::into_inner);
                let keys = pinned.iter().chain(found.values()).map(Key::from).collect();
                drop(found);
                self.sealed.handle.watch(keys);
            }
            Err(error) => tracing::error!(%error, "the keys to watch cannot be read"),
        }
    }

    /// Peers that have no certified device any more may be written to in the way of v1 again; the owner hears so.
    pub(crate) async fn lapse_pins(&self) {
        let lapsed = match self.store.lapse_v2(self.now()).await {
            Ok(lapsed) => lapsed,
            Err(error) => return tracing::error!(%error, "the pins of peers were not looked at"),
        };
        for peer in lapsed {
            let text = format!(
                "{} has shown no valid device for 30 days: its messages may come, and yours may go, without forward \
                 secrecy again",
                self.name_of(&peer).await
            );
            self.notify(format!("v2-lapsed:{peer}"), text, true);
        }
    }

    /// Takes over what directories of v2 relays say, but for the relay that the link asks. Whether one answered.
    pub(crate) async fn search_sealed(&self, capability: Option<&str>, limit: usize) -> bool {
        let asked = self.link.status().is_connected().then(|| self.config().relay_url.clone()).flatten();
        let rows = self.sealed.handle.search(asked.as_deref(), capability, limit).await;
        let Some(rows) = rows else { return false };
        let now = self.now();
        let mut heard = Vec::new();
        for row in rows {
            let Ok(key) = PublicIdentity::from_bytes(&row.key.0) else { continue };
            let fingerprint = key.fingerprint();
            if fingerprint == self.us {
                continue;
            }
            let mut found = self.sealed.found.lock().unwrap_or_else(PoisonError::into_inner);
            if found.len() >= MAX_FOUND {
                found.clear();
            }
            found.insert(fingerprint, key);
            drop(found);
            let seen = row.seen.and_then(|at| i64::try_from(at).ok()).filter(|_| !row.on);
            heard.push(KnownPeer {
                fingerprint,
                name: text::name(&row.name),
                capabilities: row.caps.iter().map(|tag| text::name(tag)).take(32).collect(),
                framework: row.fw.as_deref().map_or_else(|| "unknown".into(), text::name),
                status: if row.on || self.sealed.is_there(&fingerprint) { "online" } else { "offline" }
                    .into(),
                first_seen: now,
                last_seen: seen.unwrap_or(now).min(now),
                machine: None,
                sources: vec!["relay".into()],
            });
        }
        if let Err(error) = self.store.merge_known(heard).await {
            tracing::error!(%error, "agents of a directory were not noted");
        }
        self.watch_peers().await;
        true
    }

    /// What sealed mail stored about a message of ours is told to whoever waits.
    async fn sealed_delivery(&self, change: &Change) {
        use threadline::delivery::DeliveryState;
        if !matches!(change.state, DeliveryState::Rejected | DeliveryState::Failed | DeliveryState::Expired) {
            return;
        }
        let Ok(peer) = PublicIdentity::from_bytes(&change.peer.0) else { return };
        let id = threadline::v2::opened::message_id(&change.id);
        match self.store.delivery(peer.fingerprint(), id).await {
            Ok(Some(row)) => {
                let reason = match change.state {
                    DeliveryState::Rejected => "the other agent refused it",
                    DeliveryState::Expired => "nobody took it in its life",
                    _ => "the other agent, or every relay, could not take it",
                };
                self.report_failure(&row, reason).await;
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "a delivery cannot be read"),
        }
    }

    /// Follows what relays speak: the link's rights, what is said of this agent there, and what the owner must know.
    pub(crate) async fn run_relay_news(&self) {
        let mut news = self.sealed.watch_news();
        let mut status = self.sealed.handle.watch_status();
        loop {
            let known = news.borrow_and_update().clone();
            let lost = |session: &SealedStatus| matches!(session.state, "backoff" | "wrong-relay");
            if status.borrow_and_update().iter().any(lost) {
                self.sealed.look_again();
            }
            for relay in &known {
                self.relay_trouble(relay);
            }
            self.steer_link().await;
            tokio::select! {
                () = self.stop.cancelled() => return,
                goes_on = SealedRoom::changed(&mut news, &mut status) => if !goes_on { return },
            }
        }
    }

    fn relay_trouble(&self, relay: &RelayNews) {
        let cause = format!("relay-v2:{}", relay.url);
        let Some(trouble) = relay.trouble else { return self.notices.resolve(&cause) };
        let text = match trouble {
            RelayTrouble::RelayDowngrade => format!(
                "The relay {} spoke v2 before and does not now. Nothing is sent through it until it does again",
                relay.url
            ),
            RelayTrouble::KeyChanged => format!(
                "The relay {} shows another key than before. If its operator changed it, set threadline.relays[].key",
                relay.url
            ),
            RelayTrouble::KeyNotConfigured => format!(
                "The relay {} has no TLS: to speak v2 with it, set its key as threadline.relays[].key",
                relay.url
            ),
        };
        self.notices.degrade(&cause, &text);
        if trouble == RelayTrouble::RelayDowngrade {
            self.notify(cause, text, true);
        }
    }

    pub(crate) fn sealed_status(&self) -> Value {
        self.sealed.status()
    }

    /// The number that two people compare.
    pub(crate) async fn safety(&self, peer: Fingerprint) -> Result<Value, ServiceError> {
        let key = self.key_of(&peer).await.map_err(|e| internal(&e))?;
        let key = key.ok_or_else(|| {
            ServiceError::new(
                "key-unknown",
                "the key of this agent is not known yet; exchange a message first",
            )
        })?;
        let verified_at = self.store.verified_at(peer).await.map_err(|e| internal(&e))?;
        let (us, them) = (*self.identity.public(), key);
        let number = tokio::task::spawn_blocking(move || safety_number(&us, &them)).await;
        let number = number.map_err(|e| ServiceError::new("internal", e.to_string()))?;
        Ok(json!({
            "fingerprint": peer,
            "name": self.name_of(&peer).await,
            "number": number,
            "verifyUri": verify_uri(self.identity.public()),
            "verifiedAt": verified_at.map(iso_ms),
        }))
    }

    /// The owner compared the numbers: `matches` makes the peer mutually verified, the contrary bars it.
    pub(crate) async fn confirm_safety(
        &self,
        caller: &Caller,
        peer: Fingerprint,
        matches: bool,
    ) -> Result<Value, ServiceError> {
        require_owner(caller, "confirming a safety number")?;
        let key = self.store.pinned_key(peer).await.map_err(|e| internal(&e))?;
        let key = key.ok_or_else(|| ServiceError::new("key-unknown", "no key of this agent is pinned"))?.key;
        let name = self.name_of(&peer).await;
        let at = matches.then(|| self.now());
        self.store.set_verified(&key, at).await.map_err(|e| internal(&e))?;
        let details = json!({"key": hex::encode(key.as_bytes()), "matches": matches});
        self.audit.record(Action::TrustUpgrade, &peer.to_string(), "user", details).await;
        if matches {
            let level = self.level(&peer).max(TrustLevel::Trusted);
            let reason = Some("safety number compared");
            self.apply_level(peer, &name, level, TrustSource::MutualVerified, "user", reason).await?;
        } else {
            let reason = Some("safety number differs");
            let level = TrustLevel::Untrusted;
            self.apply_level(peer, &name, level, TrustSource::UserGranted, "user", reason).await?;
            self.block(caller, peer, Some("the safety number differs".into())).await?;
            let text = format!(
                "The safety number of {name} differs: someone may sit between you. The agent is blocked"
            );
            self.notify(format!("safety-differs:{peer}"), text, true);
        }
        self.safety(peer).await
    }
}

/// `host:port` of each QUIC socket.
fn quic_addresses(relay: &SealedRelay) -> Vec<String> {
    let text = |at: &QuicAddress| {
        if at.host.contains(':') {
            format!("[{}]:{}", at.host, at.port)
        } else {
            format!("{}:{}", at.host, at.port)
        }
    };
    relay.quic.iter().map(text).collect()
}

fn verify_uri(key: &PublicIdentity) -> String {
    use base64::Engine as _;
    let key = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(key.as_bytes());
    format!("threadline:verify?v=2&k={key}")
}
