//! Agents of this account: found in the machine registry, proven on their own socket
//! (`threadline-agent.md` §4.2 `os-verified`, `discovery-interop.md` §2.2).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::join_all;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use instar_state::paths::AccountPaths;
use instar_state::registry::{AgentStatus, Registry};
use serde::Deserialize;
use serde_json::json;
use threadline::identity::{DiscoveryChallenge, PublicIdentity};
use threadline::{Fingerprint, text};
use tokio::net::UnixStream;

/// Longest conversation with one socket.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer read.
const MAX_ANSWER: usize = 64 * 1024;
/// How far the clock of a process of the same machine may seem off, ms.
const MAX_SKEW_MS: i64 = 120_000;
/// Agents asked at once.
const MAX_ASKED: usize = 64;

/// An agent of this account whose key answered on its own socket just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalAgent {
    pub(crate) key: PublicIdentity,
    pub(crate) name: String,
    pub(crate) capabilities: Vec<String>,
    pub(crate) framework: String,
    pub(crate) path: PathBuf,
    /// Name in the registry, which its token file has too.
    pub(crate) registered: String,
    /// Loopback port.
    pub(crate) port: u16,
}

/// Finds the agents of this account; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct LocalScan {
    registry: Registry,
    file: PathBuf,
    own_path: PathBuf,
    // Held only to copy values in and out.
    last: Arc<Mutex<Last>>,
}

#[derive(Debug, Default)]
struct Last {
    changed: Option<SystemTime>,
    agents: BTreeMap<Fingerprint, LocalAgent>,
}

/// Why a socket is not an agent of ours.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("the socket does not answer: {0}")]
    Unreachable(String),
    #[error("the socket belongs to another user")]
    OtherUser,
    #[error("the answer is not that of a Threadline agent: {0}")]
    NotAnAgent(&'static str),
}

impl LocalScan {
    pub(crate) fn new(account: AccountPaths, own_path: PathBuf) -> Self {
        let file = account.registry();
        Self { registry: Registry::new(account), file, own_path, last: Arc::default() }
    }

    /// Whether the registry changed since the last scan.
    pub(crate) fn is_stale(&self) -> bool {
        let modified = modified(&self.file);
        self.lock().changed != modified
    }

    /// Agents proven by the last scan.
    pub(crate) fn known(&self) -> Vec<LocalAgent> {
        self.lock().agents.values().cloned().collect()
    }

    /// Asks every running agent of the registry but ourselves.
    pub(crate) async fn scan(&self, us: Fingerprint, now: i64) -> Vec<LocalAgent> {
        let changed = modified(&self.file);
        let registry = self.registry.clone();
        let entries = tokio::task::spawn_blocking(move || registry.read()).await;
        let entries = match entries {
            Ok(Ok(entries)) => entries,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the agent registry cannot be read");
                return self.known();
            }
            Err(_) => return self.known(),
        };
        let others = entries
            .into_iter()
            .filter(|e| e.status == AgentStatus::Running && e.path != self.own_path)
            .take(MAX_ASKED);
        let asked = others.map(|entry| async move {
            let asked = tokio::time::timeout(TIMEOUT, probe(&entry.socket, now)).await;
            match asked.unwrap_or_else(|_| Err(ProbeError::Unreachable("no answer within 5 s".into()))) {
                Ok(agent) => {
                    Some(LocalAgent { path: entry.path, registered: entry.name, port: entry.port, ..agent })
                }
                Err(error) => {
                    tracing::debug!(agent = entry.name, %error, "not counted as an agent of this account");
                    None
                }
            }
        });
        let found: Vec<LocalAgent> =
            join_all(asked).await.into_iter().flatten().filter(|a| a.key.fingerprint() != us).collect();
        let mut last = self.lock();
        last.changed = changed;
        last.agents = found.iter().map(|a| (a.key.fingerprint(), a.clone())).collect();
        found
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

#[derive(Deserialize)]
struct Health {
    protocol: String,
    agent: String,
    #[serde(default)]
    capabilities: Vec<String>,
    #[serde(default)]
    framework: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    fingerprint: Fingerprint,
    public_key: String,
    timestamp: String,
    signature: String,
}

/// Asks one socket: same user, an agent, and in possession of its key.
pub(crate) async fn probe(socket: &Path, now: i64) -> Result<LocalAgent, ProbeError> {
    let stream = connect(socket).await?;
    let health: Health = read(call(stream, Method::GET, "/threadline/health", None).await?)?;
    if health.protocol != "threadline" {
        return Err(ProbeError::NotAnAgent("another protocol"));
    }
    let nonce = hex::encode(rand::random::<[u8; 32]>());
    let body = json!({"nonce": nonce}).to_string();
    let stream = connect(socket).await?;
    let answer: Answer = read(call(stream, Method::POST, "/threadline/challenge", Some(body)).await?)?;
    let key = check_answer(&answer, &nonce, now)?;
    Ok(LocalAgent {
        key,
        name: text::name(&health.agent),
        capabilities: health.capabilities.iter().map(|c| text::name(c)).take(32).collect(),
        framework: text::name(&health.framework),
        path: PathBuf::new(),
        registered: String::new(),
        port: 0,
    })
}

fn check_answer(answer: &Answer, nonce: &str, now: i64) -> Result<PublicIdentity, ProbeError> {
    let decode = |text: &str| {
        if text.len() == 128 { hex::decode(text).ok() } else { STANDARD.decode(text).ok() }
    };
    let key = decode_key(&answer.public_key).ok_or(ProbeError::NotAnAgent("no usable key"))?;
    if key.fingerprint() != answer.fingerprint {
        return Err(ProbeError::NotAnAgent("fingerprint and key disagree"));
    }
    let at = threadline::time::parse_iso(&answer.timestamp).ok_or(ProbeError::NotAnAgent("no time"))?;
    if (now - at).abs() > MAX_SKEW_MS {
        return Err(ProbeError::NotAnAgent("an old answer"));
    }
    let challenge = DiscoveryChallenge::from_parts(nonce, &answer.timestamp)
        .ok_or(ProbeError::NotAnAgent("no challenge"))?;
    let signature = decode(&answer.signature).unwrap_or_default();
    if !challenge.verifies(&key, &signature) {
        return Err(ProbeError::NotAnAgent("the signature does not verify"));
    }
    Ok(key)
}

/// Base64, or 64 hex digits as other installs write it.
fn decode_key(text: &str) -> Option<PublicIdentity> {
    let bytes = if text.len() == 64 { hex::decode(text).ok() } else { STANDARD.decode(text).ok() };
    PublicIdentity::from_bytes(&bytes?).ok()
}

async fn connect(socket: &Path) -> Result<UnixStream, ProbeError> {
    let unreachable = |e: std::io::Error| ProbeError::Unreachable(e.to_string());
    let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
    let peer = stream.peer_cred().map_err(unreachable)?;
    if peer.uid() != rustix::process::getuid().as_raw() {
        return Err(ProbeError::OtherUser);
    }
    Ok(stream)
}

async fn call(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Option<String>,
) -> Result<Bytes, ProbeError> {
    let unreachable = |e: hyper::Error| ProbeError::Unreachable(e.to_string());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let request = request
        .body(Full::new(Bytes::from(body.unwrap_or_default())))
        .map_err(|e| ProbeError::Unreachable(e.to_string()))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(unreachable)?;
        if !response.status().is_success() {
            return Err(ProbeError::NotAnAgent("it refuses the question"));
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        Ok(body.map_err(|e| ProbeError::Unreachable(e.to_string()))?.to_bytes())
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(unreachable(error)),
        },
    }
}

fn read<T: serde::de::DeserializeOwned>(bytes: Bytes) -> Result<T, ProbeError> {
    serde_json::from_slice(&bytes).map_err(|_| ProbeError::NotAnAgent("unexpected JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use threadline::identity::{Identity, Purpose};

    fn answer(identity: &Identity, nonce: &str, at: i64) -> Answer {
        let challenge = DiscoveryChallenge::new(nonce, at).expect("nonce");
        Answer {
            fingerprint: identity.fingerprint(),
            public_key: STANDARD.encode(identity.public().as_bytes()),
            timestamp: challenge.timestamp().to_owned(),
            signature: STANDARD.encode(identity.sign(&Purpose::DiscoveryChallenge(&challenge))),
        }
    }

    #[test]
    fn only_a_fresh_signature_over_our_nonce_counts() {
        let (one, two) = (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]));
        let nonce = "ab".repeat(32);
        let now = 1_768_478_400_000;
        assert_eq!(check_answer(&answer(&one, &nonce, now), &nonce, now).expect("good"), *one.public());
        assert!(check_answer(&answer(&one, &"cd".repeat(32), now), &nonce, now).is_err(), "other nonce");
        assert!(check_answer(&answer(&one, &nonce, now - 121_000), &nonce, now).is_err(), "old");
        let mut swapped = answer(&one, &nonce, now);
        swapped.public_key = STANDARD.encode(two.public().as_bytes());
        assert!(check_answer(&swapped, &nonce, now).is_err(), "other key");
        swapped.fingerprint = two.fingerprint();
        assert!(check_answer(&swapped, &nonce, now).is_err(), "other identity");
    }
}
