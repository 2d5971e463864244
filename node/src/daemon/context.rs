//! Texts that hooks inject into sessions, gathered from the rooms that know them.

use std::sync::OnceLock;

use chrono::Local;
use instar_api::{ApiError, BootContext, Problem, Rooms, TurnContext};
use instar_identity::{Identity, Listener};
use instar_sessions::record::SessionRecord;
use serde_json::{Value, json};

/// Answers `/context/boot` and `/context/turn`.
pub(crate) struct Contexts {
    identity: Identity,
    rooms: OnceLock<Rooms>,
}

impl Contexts {
    pub(crate) fn new(identity: Identity) -> Self {
        Self { identity, rooms: OnceLock::new() }
    }

    /// Gives it the rooms once they are open.
    pub(crate) fn attach(&self, rooms: &Rooms) {
        let _ = self.rooms.set(rooms.clone());
    }

    pub(crate) async fn boot(&self, request: BootContext) -> Result<Value, ApiError> {
        let session = self.session(request.session.as_deref());
        let sections = match request.part.as_str() {
            "identity" => {
                let serves_peer = session.as_ref().is_some_and(|s| s.peer.is_some());
                self.identity.boot(Listener { serves_peer, compact: request.compact }, Local::now()).await
            }
            "conversation" => {
                let conversation = session.filter(|s| s.bound).map(|s| s.conversation);
                let history = match (&conversation, self.rooms.get()) {
                    (Some(key), Some(rooms)) => rooms.mesh.boot_context(key).await,
                    _ => None,
                };
                instar_identity::conversation(conversation.map(String::from), history, request.compact)
            }
            other => {
                let problem = format!("{other:?} is not a part: identity or conversation");
                return Err(ApiError::invalid(vec![Problem::new("part", problem)]));
            }
        };
        Ok(json!(sections))
    }

    pub(crate) fn turn(&self, request: &TurnContext) -> Value {
        let session = self.session(request.session.as_deref());
        let conversation = session.filter(|s| s.bound).map(|s| String::from(s.conversation));
        json!(instar_identity::turn(Local::now(), conversation.as_deref(), []))
    }

    fn session(&self, id: Option<&str>) -> Option<SessionRecord> {
        self.rooms.get()?.sessions.get(id?.parse().ok()?)
    }
}
