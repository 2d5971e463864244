//! Keys and pasted text for the terminal, interrupts for either transport.

use std::time::Duration;

use ulid::Ulid;

use super::Actor;
use crate::error::SessionError;
use crate::link::Link;
use crate::record::{Activity, Transport};
use crate::supervisor::protocol::Request;
use crate::tmux::Tmux;

impl Actor {
    pub(super) async fn interrupt(&mut self) -> Result<(), SessionError> {
        let busy = self.shared.record(self.id).is_some_and(|r| r.activity == Activity::Busy);
        if !busy {
            return Err(SessionError::NotBusy);
        }
        if self.transport == Transport::Tmux {
            self.press("Escape").await?;
            // An interrupted turn ends without a report.
            self.shared.set_activity(self.id, Activity::Idle);
            self.look = true;
            return Ok(());
        }
        self.interrupts += 1;
        let line = self.shared.runtime.interrupt_line(&format!("instar-interrupt-{}", self.interrupts));
        let link = self.link.as_mut().ok_or(SessionError::NotBusy)?;
        link.request(&Request::Write { line }).await.map_err(|e| SessionError::Failed(e.to_string()))
    }

    pub(super) async fn type_text(
        &mut self,
        ulid: Ulid,
        text: &str,
        clear: usize,
    ) -> Result<(), SessionError> {
        let failed = |error: crate::tmux::TmuxError| SessionError::Failed(error.to_string());
        let tmux = self.tmux()?;
        let Some(Link::Pane { pane, .. }) = &self.link else {
            return Err(SessionError::Failed("no pane".into()));
        };
        for _ in 0..clear.min(40) * 2 {
            tmux.key(pane, "C-u").await.map_err(failed)?;
        }
        tmux.paste(pane, &ulid.to_string(), text).await.map_err(failed)?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        tmux.key(pane, "Enter").await.map_err(failed)
    }

    pub(super) async fn press(&mut self, key: &str) -> Result<(), SessionError> {
        let tmux = self.tmux()?;
        let Some(Link::Pane { pane, .. }) = &self.link else {
            return Err(SessionError::Unsupported("a session over stdio has no keyboard".into()));
        };
        tmux.key(pane, key).await.map_err(|e| SessionError::Failed(e.to_string()))
    }

    pub(super) fn tmux(&self) -> Result<Tmux, SessionError> {
        self.shared
            .tmux()
            .ok_or_else(|| SessionError::RuntimeMissing(crate::tmux::TmuxError::Missing.to_string()))
    }

    pub(super) fn tmux_name(&self) -> String {
        self.shared.record(self.id).and_then(|r| r.tmux_session).unwrap_or_default()
    }
}
