//! Tool calls of sessions that serve a peer (`threadline-agent.md` §4.5).

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use threadline::audit::Action;
use threadline::firewall::{Binding, Target, Verdict, decide, is_secret_name, path_of};
use threadline::service::ServiceError;
use threadline_net::store::LedgerRow;

use crate::core::{Core, conversation_of, internal};

/// The hook waits 200 ms for an answer.
const NOTED_WITHIN: Duration = Duration::from_millis(120);

/// Entries of a folder that are looked at before a search in it is allowed.
const MAX_ENTRIES: usize = 10_000;

/// Answer to the hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Authorization {
    /// `allow` or `deny`.
    pub decision: &'static str,
    /// One sentence.
    pub reason: String,
}

impl Core {
    /// Decides about one tool call of a session. Sessions that serve nobody are none of this room's business.
    pub(crate) async fn authorize(
        &self,
        session: &str,
        tool: &str,
        input: &Value,
    ) -> Result<Authorization, ServiceError> {
        let Some(row) = self.ledger_row(session).await? else {
            return Ok(Authorization {
                decision: "deny",
                reason: "the session serves no thread of this node".into(),
            });
        };
        let mut roots = self.roots().await;
        // The session room leaves messages there that are too long to be given whole.
        let inputs = self.state_dir.join("run/tmp").join(session);
        roots.extend(self.canonical(&inputs.to_string_lossy()).await);
        let binding = Binding {
            peer: row.key.peer,
            thread: row.key.thread.clone(),
            level: self.level(&row.key.peer),
            roots,
            granted_tools: Vec::new(),
            autonomous_deny: Vec::new(),
        };
        let canonical = match path_of(tool, input) {
            Some(path) => self.canonical(path).await,
            None => None,
        };
        let holds_secrets = match &canonical {
            Some(path) if tool == "Grep" => holds_secrets(path.into()).await,
            _ => false,
        };
        let target = canonical.as_deref().map(|path| Target { path, holds_secrets });
        match decide(&binding, tool, input, target) {
            Verdict::Allow => Ok(Authorization { decision: "allow", reason: String::new() }),
            Verdict::Narrow(reason) => Ok(Authorization { decision: "deny", reason }),
            Verdict::Deny(reason) => {
                self.violation(session, &row, tool).await;
                Ok(Authorization { decision: "deny", reason })
            }
        }
    }

    /// The session's row; a session may act a moment before its start is noted.
    async fn ledger_row(&self, session: &str) -> Result<Option<LedgerRow>, ServiceError> {
        let deadline = tokio::time::Instant::now() + NOTED_WITHIN;
        loop {
            let row = self.store.spawn_of_session(session).await.map_err(|e| internal(&e))?;
            if row.is_some() || tokio::time::Instant::now() >= deadline {
                return Ok(row);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn violation(&self, session: &str, row: &LedgerRow, tool: &str) {
        let tool = threadline::text::name(tool);
        let details = json!({"tool": tool, "threadId": row.key.thread});
        let actor = format!("session:{session}");
        self.audit.record(Action::FirewallDeny, &row.key.peer.to_string(), &actor, details).await;
        self.events.publish("firewall-denied", json!({"sessionId": session, "tool": tool}));
        let over = {
            let mut violations = self.violations.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // Sessions are few; what ended long ago is dropped when the table grows.
            if violations.len() > 1_000 {
                violations.clear();
            }
            violations.entry(session.to_owned()).or_default().record()
        };
        if !over {
            return;
        }
        let conversation = conversation_of(&row.key);
        if let Some(live) = self.sessions.live(&conversation)
            && live.id.to_string() == session
        {
            // The texts that led here go to no further session; the dispatcher reports their messages as failed.
            self.sessions.retract(&conversation, "firewall violations").await;
            self.sessions.end(&live.id, "firewall violations").await;
        }
        let name = self.name_of(&row.key.peer).await;
        let text = format!(
            "The session for {name}, thread {}, was closed: it tried tools that it may not use",
            row.key.thread
        );
        self.notify(format!("firewall:{}:{}", row.key.peer, row.key.thread), text, true);
    }

    /// Folders that a peer's session may read, as they really are on disk.
    async fn roots(&self) -> Vec<String> {
        let mut roots = Vec::new();
        for path in &self.config().sessions.allowed_paths {
            if let Some(root) = self.canonical(path).await {
                roots.push(root);
            }
        }
        roots
    }

    /// The path below the project with every link followed; `None` for what does not exist.
    async fn canonical(&self, path: &str) -> Option<String> {
        let path = Path::new(path);
        let absolute: PathBuf = if path.is_absolute() { path.to_owned() } else { self.project().join(path) };
        let real = tokio::fs::canonicalize(absolute).await.ok()?;
        real.to_str().map(str::to_owned)
    }

    fn project(&self) -> &Path {
        self.state_dir.parent().unwrap_or(Path::new("/"))
    }
}

/// Whether a search at `path` could read a file that is never read; so too where that cannot be said.
async fn holds_secrets(path: PathBuf) -> bool {
    tokio::task::spawn_blocking(move || path.is_dir() && find_secret(path).unwrap_or(true))
        .await
        .unwrap_or(true)
}

/// Whether a name below the folder is secret. Links are not followed, as a search does not follow them. Fails with
/// `None` for a folder that cannot be read or is too large to be looked through.
fn find_secret(folder: PathBuf) -> Option<bool> {
    let (mut folders, mut seen) = (vec![folder], 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).ok()? {
            let entry = entry.ok()?;
            seen += 1;
            if seen > MAX_ENTRIES {
                return None;
            }
            if is_secret_name(&entry.file_name().to_string_lossy()) {
                return Some(true);
            }
            if entry.file_type().ok()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Some(false)
}
