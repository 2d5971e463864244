//! Messages that come without a relay: posted by agents of this host or by paired servers, or left in a file. All end in
//! the spool, which is the accept point of every carrier; the pipeline does the rest.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;
use threadline::identity::PublicIdentity;
use threadline::time::iso_ms;
use threadline::v1::envelope::Envelope;
use threadline::v1::local::{AgentName, LocalError, LocalMessage};
use threadline::{Fingerprint, ThreadId, text};
use threadline_net::store::{KnownPeer, SpoolEntry, Spooled, StoreError};
use threadline_net::{Route, SharedFiles};

use crate::core::Core;
use crate::ingest::LOCAL;
use crate::local::LocalAgent;
use crate::records::KnownAgent;

/// The folder of waiting files is looked at this often.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// Files whose sender was unknown are tried again this often.
const RETRY_EVERY: Duration = Duration::from_mins(1);

/// An answer in the shape of the carrier that asked.
#[derive(Debug, Clone, PartialEq)]
pub struct WireAnswer {
    /// HTTP status.
    pub status: u16,
    /// JSON body.
    pub body: Value,
}

/// What became of an envelope at the spool.
pub(crate) enum Taken {
    /// It is durable; its thread, if it names one.
    New(Option<ThreadId>),
    /// It was taken before.
    Known,
    /// No room.
    Full,
    /// It is not for this agent, or not an envelope.
    Invalid(String),
}

impl Core {
    /// `POST /messages/relay-agent`
    pub(crate) async fn relay_agent(&self, token: Option<&str>, body: &[u8]) -> WireAnswer {
        let refuse =
            |status: u16, error: &str| WireAnswer { status, body: json!({"ok": false, "error": error}) };
        let (Some(name), Some(own)) = (&self.name, &self.own_token) else {
            return refuse(503, "this agent takes no messages from other agents of this host");
        };
        if !token.is_some_and(|given| bool::from(given.as_bytes().ct_eq(own.as_bytes()))) {
            return refuse(401, "the bearer token is not the one of this agent's token file");
        }
        let message = match LocalMessage::parse(body) {
            Ok(message) => message,
            Err(error @ LocalError::TooLarge) => return refuse(413, &error.to_string()),
            Err(error) => return refuse(400, &error.to_string()),
        };
        if message.to.agent != name.as_str() {
            return refuse(400, "message.to: this is another agent");
        }
        if let Err(error) = message.check_loop(name, &self.origin()) {
            return refuse(409, &error.to_string());
        }
        let Some(from) = self.sender_of(&message).await else {
            return refuse(400, "message.from: no agent of this host answers to this name");
        };
        if from == self.us {
            return refuse(409, "the message comes from this agent");
        }
        // What waits in a file was written before.
        self.take_drops().await;
        if self.is_repeated(&message) {
            return WireAnswer { status: 200, body: json!({"ok": true, "deduped": true}) };
        }
        let taken = self.take(message.to_envelope(from, self.us), LOCAL, &self.origin()).await;
        if !matches!(taken, Ok(Taken::New(_))) {
            self.lock_recent().forget(&message);
        }
        self.is_back(&from).await;
        match taken {
            Ok(Taken::New(thread)) => WireAnswer {
                status: 200,
                body: json!({"ok": true, "accepted": true, "delivered": false, "threadId": thread,
                    "threadline": {"accepted": true, "threadId": thread}}),
            },
            Ok(Taken::Known) => refuse(409, "the message was taken before"),
            Ok(Taken::Full) => refuse(503, "the spool is full; try later"),
            Ok(Taken::Invalid(why)) => refuse(400, &why),
            Err(error) => {
                tracing::error!(%error, "a message of this host was not stored");
                refuse(503, "the message was not stored; try later")
            }
        }
    }

    /// Commits an envelope to the spool and wakes the pipeline.
    pub(crate) async fn take(
        &self,
        envelope: Envelope,
        transport: &'static str,
        carrier: &str,
    ) -> Result<Taken, StoreError> {
        let header = match envelope.header() {
            Ok(header) => header,
            Err(error) => return Ok(Taken::Invalid(error.to_string())),
        };
        if header.to != self.us {
            return Ok(Taken::Invalid("the envelope is not addressed to this agent".into()));
        }
        if self.store.is_taken(header.from, header.message_id.clone()).await? {
            return Ok(Taken::Known);
        }
        let entry = SpoolEntry {
            relay: carrier.to_owned(),
            from: header.from,
            message_id: header.message_id,
            thread_id: header.thread_id.clone(),
            transport,
            envelope: envelope.to_bytes(),
        };
        let spooled = self.store.spool_put(vec![entry], self.now()).await?.pop();
        Ok(match spooled {
            Some(Spooled::New(_)) => {
                self.ingest_wake.notify_one();
                Taken::New(header.thread_id)
            }
            Some(Spooled::Known) => Taken::Known,
            Some(Spooled::Full) | None => Taken::Full,
        })
    }

    /// Address of the sender. A sealed envelope names it and proves it later; of a clear one it is the agent of this host
    /// that has the sender's name.
    async fn sender_of(&self, message: &LocalMessage) -> Option<Fingerprint> {
        if let Some(envelope) = message.sealed() {
            return envelope.header().ok().map(|header| header.from);
        }
        if self.local.is_stale() {
            self.scan_local().await;
        }
        let port = loopback_port(&message.origin_server);
        let named: Vec<LocalAgent> =
            self.local.known().into_iter().filter(|agent| agent.registered == message.from.agent).collect();
        let proven = match &named[..] {
            [only] => Some(only),
            several => several.iter().find(|agent| Some(agent.port) == port),
        };
        if let Some(agent) = proven {
            return Some(agent.key.fingerprint());
        }
        if let Some(port) = port
            && let Some(found) = self.ask_port(port, &message.from.agent).await
        {
            return Some(found);
        }
        let known = self.known_agents.get();
        let mut named = known.agents.iter().filter(|agent| agent.name == message.from.agent);
        match (named.next(), named.next()) {
            (Some(only), None) => Some(only.fingerprint),
            _ => None,
        }
    }

    /// Asks an existing install, which has no socket to prove its key on, who it is. It stays a stranger until the owner
    /// decides.
    async fn ask_port(&self, port: u16, name: &str) -> Option<Fingerprint> {
        let health = self.servers.health(&format!("http://127.0.0.1:{port}")).await.ok()?;
        let protocol = health["protocol"].as_str() == Some("threadline");
        let bytes = hex::decode(health["identityPub"].as_str()?).ok()?;
        let peer = PublicIdentity::from_bytes(&bytes).ok()?.fingerprint();
        if !protocol || health["agent"].as_str() != Some(name) || peer == self.us {
            return None;
        }
        let framework = health["framework"].as_str().map_or_else(|| "unknown".into(), text::name);
        let now = self.now();
        let known = KnownPeer {
            fingerprint: peer,
            name: text::name(name),
            capabilities: Vec::new(),
            framework: framework.clone(),
            status: "online".into(),
            first_seen: now,
            last_seen: now,
            machine: Some("local".into()),
            sources: vec!["local".into()],
        };
        if let Err(error) = self.store.merge_known(vec![known]).await {
            tracing::error!(%error, "an agent was not noted");
        }
        self.remember_agents(vec![KnownAgent { name: name.to_owned(), fingerprint: peer, port, framework }])
            .await;
        Some(peer)
    }

    /// Takes over what a scan of this account's agents proved.
    pub(crate) async fn remember_local(&self, found: &[LocalAgent]) {
        let heard = found.iter().map(|agent| KnownAgent {
            name: agent.registered.clone(),
            fingerprint: agent.key.fingerprint(),
            port: agent.port,
            framework: agent.framework.clone(),
        });
        self.remember_agents(heard.collect()).await;
        for agent in found {
            self.is_back(&agent.key.fingerprint()).await;
        }
    }

    /// A peer shows a sign of life: what waited for it is tried at once.
    pub(crate) async fn is_back(&self, peer: &Fingerprint) {
        if !self.routes.is_back(peer) {
            return;
        }
        if let Err(error) = self.store.outbox_retry_all(self.now()).await {
            tracing::error!(%error, "the outbox was not made due");
        }
        self.direct.flush();
    }

    async fn remember_agents(&self, heard: Vec<KnownAgent>) {
        let changes = self.known_agents.get().as_ref().clone().merge(&heard);
        if changes {
            let at = iso_ms(self.now());
            let written = self.known_agents.change(move |known| {
                known.merge(&heard);
                known.updated_at = at;
            });
            if let Err(error) = written.await {
                tracing::warn!(%error, "known-agents.json was not written");
            }
        }
        self.refresh_routes();
    }

    /// Makes the table of routes from pairings and from agents of this host; it is empty while the relay is to carry
    /// everything.
    pub(crate) fn refresh_routes(&self) {
        let routes = if self.config().direct_enabled { self.known_routes() } else { BTreeMap::new() };
        self.routes.set(routes);
        self.flush();
    }

    fn known_routes(&self) -> BTreeMap<Fingerprint, Route> {
        let mut routes = BTreeMap::new();
        for pairing in self.pairings.get().0.values() {
            if let (Some(base), Some(key), Some(token)) = (&pairing.url, pairing.key(), pairing.token()) {
                routes.insert(key.fingerprint(), Route::Paired { base: base.clone(), token });
            }
        }
        for agent in &self.known_agents.get().agents {
            if let Some(name) = AgentName::parse(&agent.name).filter(|_| agent.fingerprint != self.us) {
                routes.insert(agent.fingerprint, Route::SameHost { name, port: agent.port });
            }
        }
        routes
    }

    fn is_repeated(&self, message: &LocalMessage) -> bool {
        let now = self.now();
        self.lock_recent().is_repeated(message, now)
    }

    fn lock_recent(&self) -> std::sync::MutexGuard<'_, threadline::v1::local::RecentTexts> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn origin(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    /// Takes in files that other agents left, whenever the folder changes.
    pub(crate) async fn run_drops(&self) {
        let Some(name) = self.name.clone() else { return };
        let mut seen: Option<SystemTime> = None;
        let mut last = tokio::time::Instant::now();
        loop {
            let dir = self.files.drops_of(&name);
            let modified = tokio::task::spawn_blocking(move || {
                std::fs::metadata(dir).and_then(|meta| meta.modified()).ok()
            });
            let modified = modified.await.ok().flatten();
            if modified != seen || (modified.is_some() && last.elapsed() >= RETRY_EVERY) {
                (seen, last) = (modified, tokio::time::Instant::now());
                self.take_drops().await;
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(WATCH_EVERY) => {}
            }
        }
    }

    /// Takes in every file that waits. One at a time: a file that is being taken is not taken twice.
    pub(crate) async fn take_drops(&self) {
        let Some(name) = &self.name else { return };
        let _one_at_a_time = self.drops.lock().await;
        let (files, target) = (self.files.clone(), name.clone());
        let waiting = tokio::task::spawn_blocking(move || files.waiting(&target)).await;
        let waiting = match waiting {
            Ok(Ok(waiting)) => waiting,
            Ok(Err(error)) => return tracing::warn!(%error, "the folder of waiting messages cannot be read"),
            Err(_) => return,
        };
        for path in waiting {
            match self.take_drop(path.clone()).await {
                Ok(true) => {}
                Ok(false) => tracing::info!(file = %path.display(), "a waiting message stays for later"),
                Err(why) => {
                    tracing::warn!(file = %path.display(), why, "a waiting message is rejected");
                    self.notify(
                        "drop-rejected",
                        format!("A message left in a file was rejected: {why}"),
                        false,
                    );
                    let (files, target, path) = (self.files.clone(), name.clone(), path.clone());
                    let moved = tokio::task::spawn_blocking(move || files.reject(&target, &path)).await;
                    if let Ok(Err(error)) = moved {
                        tracing::warn!(%error, "a rejected message was not put aside");
                    }
                }
            }
        }
    }

    /// One file: verified, spooled, then deleted, so that a crash between repeats and doubles nothing. False leaves it for
    /// later; an error is why nobody can vouch for it.
    async fn take_drop(&self, path: PathBuf) -> Result<bool, String> {
        let reading = path.clone();
        let read = tokio::task::spawn_blocking(move || SharedFiles::read(&reading)).await;
        let Ok(Ok(bytes)) = read else { return Ok(false) };
        let message = LocalMessage::parse(&bytes).map_err(|e| e.to_string())?;
        let sender = message.signed_by.as_deref().and_then(AgentName::parse);
        let sender = sender.ok_or_else(|| LocalError::BadHmac.to_string())?;
        let files = self.files.clone();
        let token = tokio::task::spawn_blocking(move || files.token(&sender)).await;
        let Ok(Ok(Some(token))) = token else {
            return Err("its sender has no token file".into());
        };
        message.check_drop(&token).map_err(|e| e.to_string())?;
        if self.name.as_ref().is_none_or(|name| message.to.agent != name.as_str()) {
            return Err("it is for another agent".into());
        }
        let Some(from) = self.sender_of(&message).await else { return Ok(false) };
        match self.take(message.to_envelope(from, self.us), LOCAL, "file").await {
            Ok(Taken::New(_) | Taken::Known) => {
                let deleted = tokio::task::spawn_blocking(move || SharedFiles::taken(&path)).await;
                if let Ok(Err(error)) = deleted {
                    tracing::warn!(%error, "a message that was taken stays in its file");
                }
                Ok(true)
            }
            Ok(Taken::Full) => Ok(false),
            Ok(Taken::Invalid(why)) => Err(why),
            Err(error) => {
                tracing::error!(%error, "a waiting message was not stored");
                Ok(false)
            }
        }
    }
}

/// Port of a server of this host, as messages name it.
fn loopback_port(origin: &str) -> Option<u16> {
    let rest = origin.strip_prefix("http://")?;
    let rest = rest.strip_prefix("localhost:").or_else(|| rest.strip_prefix("127.0.0.1:"))?;
    rest.trim_end_matches('/').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_of_this_host_are_asked() {
        assert_eq!(loopback_port("http://localhost:4042"), Some(4042));
        assert_eq!(loopback_port("http://127.0.0.1:4042/"), Some(4042));
        for elsewhere in
            ["https://localhost:1", "http://localhost:1@evil:2", "http://evil:4042", "http://localhost:x", ""]
        {
            assert_eq!(loopback_port(elsewhere), None, "{elsewhere}");
        }
    }
}
