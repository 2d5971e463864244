//! Inputs that waited so long that their sender may not want them any more: the owner is asked
//! (`agent-core.md` §6.10).

use std::sync::Arc;

use instar_state::journal::InboxRow;
use instar_state::ports::InputState;
use instar_state::time::now_ms;
use serde::{Deserialize, Serialize};
use serde_json::json;
use ulid::Ulid;

use crate::error::SessionError;
use crate::record::{Priority, SessionKind};
use crate::sessions::Sessions;
use crate::shared::{Shared, lock};
use crate::spawn::SpawnRequest;

/// What the owner says about an overdue input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverdueDecision {
    /// It goes to a session.
    Run,
    /// It is not wanted any more.
    Drop,
}

impl Sessions {
    /// Inputs of persons and of the node that waited for six hours, oldest first, at most 200.
    pub async fn overdue(&self) -> Result<Vec<InboxRow>, SessionError> {
        Ok(self.shared.deps.journal.overdue(now_ms()).await?)
    }

    /// Carries out what the owner said about an overdue input. One that shall run gets a session if its conversation
    /// has none.
    pub async fn decide_overdue(&self, ulid: &str, decision: OverdueDecision) -> Result<(), SessionError> {
        let unknown = || SessionError::NotOverdue(ulid.to_owned());
        let id = Ulid::from_string(ulid).map_err(|_| unknown())?;
        let row = self.overdue().await?.into_iter().find(|row| row.ulid == id).ok_or_else(unknown)?;
        let journal = &self.shared.deps.journal;
        if decision == OverdueDecision::Drop {
            journal.expire_one(id, now_ms()).await?;
            self.shared.announce("input-state", json!({"ulid": ulid, "state": InputState::Expired}));
            return Ok(());
        }
        journal.release(id, now_ms()).await?;
        let conversation = row.input.conversation;
        let live = Shared::live_of(&self.shared.inner(), &conversation).is_some();
        if live {
            self.shared.wake(&conversation);
            return Ok(());
        }
        let last = self.list().into_iter().find(|record| record.conversation == conversation);
        let request = match last {
            Some(record) => self.next_of(&record)?,
            None => SpawnRequest {
                conversation: Some(conversation.clone()),
                priority: Priority::Human,
                ..SpawnRequest::new(conversation.to_string(), SessionKind::Conversation)
            },
        };
        self.spawn_or_wait(request).await.map(|_| ())
    }
}

impl Shared {
    /// Tells the owner once of each input that became overdue.
    pub(crate) async fn ask_about_overdue(self: &Arc<Self>) {
        let overdue = match self.deps.journal.overdue(now_ms()).await {
            Ok(overdue) => overdue,
            Err(error) => return tracing::error!(%error, "overdue inputs were not read"),
        };
        let overdue: Vec<Ulid> = overdue.iter().map(|row| row.ulid).collect();
        let fresh = {
            let mut told = lock(&self.overdue_told);
            let fresh = overdue.iter().any(|ulid| !told.contains(ulid));
            told.clone_from(&overdue);
            fresh
        };
        if fresh {
            let text = format!(
                "{} messages waited for more than 6 hours and are not given to a session unasked. `instar session \
                 overdue` shows them; --run ULID or --drop ULID decides.",
                overdue.len()
            );
            self.notice("inputs_overdue", text, true);
        }
    }
}
