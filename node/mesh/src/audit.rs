//! The trust audit chain on disk (`threadline-agent.md` §4.6).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use instar_durable::{JsonlError, JsonlFile};
use serde_json::{Map, Value, json};
use threadline::audit::{Action, Anchor, Entry, Head, Report, torn_details, verify};
use threadline::identity::{Identity, PublicIdentity};

/// The chain and its anchors; one writer.
#[derive(Debug)]
pub(crate) struct AuditLog {
    chain: PathBuf,
    anchors: PathBuf,
    identity: Arc<Identity>,
    // Taken on a blocking thread only; held over one synced append.
    writer: Arc<Mutex<Writer>>,
    /// Set when the chain was found broken at start.
    pub(crate) broken: Option<String>,
}

#[derive(Debug)]
struct Writer {
    chain: JsonlFile,
    anchors: JsonlFile,
    head: Head,
}

/// Why the chain cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuditError {
    #[error(transparent)]
    Jsonl(#[from] JsonlError),
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
}

impl AuditLog {
    /// Verifies the whole chain and opens it. A torn last line is cut off and noted; any other break is noted and
    /// visible. Blocks.
    pub(crate) fn open(dir: &Path, identity: Arc<Identity>, now: i64) -> Result<Self, AuditError> {
        let chain = dir.join("trust-audit-chain.jsonl");
        let anchors = dir.join("trust-audit-anchors.jsonl");
        let report = read_and_verify(&chain, &anchors, identity.public())?;
        let chain_file = JsonlFile::open(&chain)?;
        let mut writer = Writer { chain: chain_file, anchors: JsonlFile::open(&anchors)?, head: report.head };
        let mut repair = Map::new();
        if let Some(torn) = &report.torn {
            repair = torn_details(torn);
        }
        let broken = report.broken.map(|b| format!("entry {}: {}", b.broken_at, b.error));
        if let Some(broken) = &broken {
            repair.insert("broken".into(), json!(broken));
        }
        if !repair.is_empty() {
            writer.append(&identity, Action::ChainRepair, "chain", "system", repair, now)?;
        }
        Ok(Self { chain, anchors, identity, writer: Arc::new(Mutex::new(writer)), broken })
    }

    /// Appends one entry, synced. A failure is logged: the change that it describes is already in force.
    pub(crate) async fn record(&self, action: Action, subject: &str, actor: &str, details: Value) {
        let Value::Object(details) = details else {
            return self.append(action, subject, actor, Map::new()).await;
        };
        self.append(action, subject, actor, details).await;
    }

    async fn append(&self, action: Action, subject: &str, actor: &str, details: Map<String, Value>) {
        let (writer, identity) = (Arc::clone(&self.writer), Arc::clone(&self.identity));
        let (subject, actor) = (subject.to_owned(), actor.to_owned());
        let job = tokio::task::spawn_blocking(move || {
            let now = instar_state::time::now_ms();
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            writer.append(&identity, action, &subject, &actor, details, now)
        });
        match job.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "an audit entry was not written"),
            Err(error) => tracing::error!(%error, "an audit entry was not written"),
        }
    }

    /// Signs the head, at shutdown.
    pub(crate) async fn anchor(&self) {
        let (writer, identity) = (Arc::clone(&self.writer), Arc::clone(&self.identity));
        let job = tokio::task::spawn_blocking(move || {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            if writer.head.count == 0 {
                return Ok(());
            }
            let anchor = writer.head.anchor(&identity, instar_state::time::now_ms());
            writer.anchors.append_durable(&anchor)
        });
        if let Ok(Err(error)) = job.await {
            tracing::error!(%error, "the audit anchor was not written");
        }
    }

    /// Reads the chain from disk and verifies it.
    pub(crate) async fn verify(&self) -> Result<Report, AuditError> {
        let (chain, anchors) = (self.chain.clone(), self.anchors.clone());
        let key = *self.identity.public();
        let job = tokio::task::spawn_blocking(move || read_and_verify(&chain, &anchors, &key));
        job.await.unwrap_or_else(|e| {
            Err(AuditError::Read { path: self.chain.clone(), source: std::io::Error::other(e) })
        })
    }

    /// The newest entries that match, newest first.
    pub(crate) async fn entries(
        &self,
        limit: usize,
        action: Option<String>,
        subject: Option<String>,
    ) -> Result<Vec<Entry>, AuditError> {
        let chain = self.chain.clone();
        let path = self.chain.clone();
        let job = tokio::task::spawn_blocking(move || {
            let matches = |e: &Entry| {
                action.as_ref().is_none_or(|a| e.action == *a)
                    && subject.as_ref().is_none_or(|s| e.subject == *s)
            };
            let mut found: Vec<Entry> = JsonlFile::lines(&chain)?
                .filter_map(|line| serde_json::from_str(&line.ok()?).ok())
                .filter(matches)
                .collect();
            found.reverse();
            found.truncate(limit);
            Ok(found)
        });
        job.await.unwrap_or_else(|e| Err(AuditError::Read { path, source: std::io::Error::other(e) }))
    }
}

impl Writer {
    fn append(
        &mut self,
        identity: &Identity,
        action: Action,
        subject: &str,
        actor: &str,
        details: Map<String, Value>,
        now: i64,
    ) -> Result<(), JsonlError> {
        let mut head = self.head.clone();
        let entry = head.append(action, subject, actor, details, now);
        self.chain.append_durable(&entry)?;
        self.head = head;
        if self.head.anchor_due() {
            self.anchors.append_durable(&self.head.anchor(identity, now))?;
        }
        Ok(())
    }
}

fn read_and_verify(chain: &Path, anchors: &Path, key: &PublicIdentity) -> Result<Report, AuditError> {
    let read = |path: &Path| match std::fs::read(path) {
        Ok(bytes) => Ok(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(AuditError::Read { path: path.to_owned(), source }),
    };
    let signed: Vec<Anchor> =
        read(anchors)?.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    Ok(verify(&read(chain)?, &signed, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Arc<Identity> {
        Arc::new(Identity::from_seed(&[1; 32]))
    }

    #[tokio::test]
    async fn a_torn_line_is_repaired_and_a_changed_one_is_seen() {
        let dir = tempfile::tempdir().expect("dir");
        let log = AuditLog::open(dir.path(), identity(), 0).expect("open");
        for n in 0..3 {
            log.record(Action::Block, "peer", "user", json!({"n": n})).await;
        }
        log.anchor().await;
        assert!(log.verify().await.expect("verify").is_valid());
        drop(log);

        let chain = dir.path().join("trust-audit-chain.jsonl");
        let good = std::fs::read_to_string(&chain).expect("read");
        std::fs::write(&chain, format!("{good}{{\"torn")).expect("write");
        let log = AuditLog::open(dir.path(), identity(), 0).expect("open");
        assert!(log.broken.is_none());
        assert_eq!(log.entries(9, Some("chain-repair".into()), None).await.expect("entries").len(), 1);
        assert!(log.verify().await.expect("verify").is_valid());
        drop(log);

        std::fs::write(&chain, good.replace("\"n\":1", "\"n\":9")).expect("write");
        let log = AuditLog::open(dir.path(), identity(), 0).expect("open");
        assert!(log.broken.as_deref().is_some_and(|b| b.starts_with("entry 2")), "{:?}", log.broken);
        assert!(!log.verify().await.expect("verify").is_valid());
    }
}
