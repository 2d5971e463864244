//! From the start of the runtime to its readiness.

use std::sync::Arc;

use instar_durable::write_atomic;
use tokio::time::Instant;

use super::Actor;
use crate::dialogs::{self, Dialog, Step};
use crate::ending;
use crate::record::{Activity, Status, Transport};

impl Actor {
    /// Answers known questions while the runtime boots, and says so when it does not get ready.
    pub(super) async fn boot_tick(&mut self) {
        let starting = self.shared.record(self.id).is_some_and(|r| r.status == Status::Starting);
        if !starting || self.ending_since.is_some() {
            return;
        }
        let late = Instant::now() >= self.boot_deadline;
        let mut screen = String::new();
        if self.transport == Transport::Tmux {
            let Ok(tmux) = self.tmux() else { return };
            screen = tmux.capture(&self.tmux_name(), 0, false).await.unwrap_or_default();
            let own = self.own_dialogs().await;
            match dialogs::step(own.iter().chain(self.shared.runtime.dialogs()), &screen) {
                Step::Nothing => {}
                Step::Key { dialog, key } => {
                    tracing::info!(session = %self.id, dialog, key, "startup question answered");
                    let _ = self.press(&key).await;
                }
                Step::Ask { dialog } => {
                    let text = format!(
                        "Session {} asks a question at its start ({dialog}) that only you may answer: \
                         instar session attach {}",
                        self.id,
                        self.tmux_name()
                    );
                    self.shared.notice(format!("startup_question:{}", self.id), text, true);
                    self.shared.set_activity(self.id, Activity::WaitingInput);
                }
            }
        }
        if late && !self.boot_told {
            self.boot_told = true;
            self.not_ready(&screen).await;
        }
    }

    /// The owner's own answers, as they were when the session started.
    async fn own_dialogs(&mut self) -> Arc<[Dialog]> {
        if let Some(own) = &self.own_dialogs {
            return Arc::clone(own);
        }
        let path = self.shared.deps.paths.data().join("startup-dialogs.json");
        let framework = self.shared.runtime.framework();
        let file = path.clone();
        let read = tokio::task::spawn_blocking(move || dialogs::read(&file, framework)).await;
        let own: Arc<[Dialog]> = match read.unwrap_or_else(|e| Err(e.to_string())) {
            Ok(own) => own.into(),
            Err(problem) => {
                let text = format!("{} is not used: {problem}.", path.display());
                self.shared.notice("startup_dialogs_unreadable", text, false);
                Arc::default()
            }
        };
        self.own_dialogs = Some(Arc::clone(&own));
        own
    }

    pub(super) async fn not_ready(&mut self, screen: &str) {
        let seen = if screen.is_empty() { self.remarks.join("\n") } else { screen.to_owned() };
        let path = self.files.startup_screen();
        let redacted = instar_redact::redact(&seen).into_owned();
        let _ = write_atomic(&path, redacted.as_bytes(), 0o600);
        let text = format!(
            "Session {} did not get ready in time. What it showed is in {}.",
            self.id,
            path.display()
        );
        self.shared.notice("session_not_ready", text, true);
        ending::intend(&self.shared, self.id, Status::Failed, "the runtime did not get ready");
        self.end().await;
    }
}
