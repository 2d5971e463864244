//! Trust levels, blocks, pauses and nicknames, carried out: record first, then audit, event and notice.

use serde_json::{Value, json};
use threadline::audit::Action;
use threadline::identity::PublicIdentity;
use threadline::service::{Caller, ServiceError};
use threadline::time::iso_ms;
use threadline::trust::{Profile, Requester, TrustDecision, TrustSource, decide};
use threadline::{Fingerprint, TrustLevel, text};
use threadline_net::store::{ApprovalDraft, ApprovalKind};

use crate::core::{Core, internal, record_failed};
use crate::records::{Control, ControlStatus, Nickname, NicknameSource};

const DAY_MS: i64 = 86_400_000;

/// What became of a wish to change a level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TrustChange {
    pub(crate) previous: TrustLevel,
    pub(crate) level: TrustLevel,
    /// Set while the owner has to confirm.
    pub(crate) approval: Option<String>,
    pub(crate) source: TrustSource,
}

impl Core {
    /// Sets or asks for a level, as the caller may.
    pub(crate) async fn set_level(
        &self,
        caller: &Caller,
        peer: Fingerprint,
        wanted: TrustLevel,
        reason: Option<&str>,
    ) -> Result<TrustChange, ServiceError> {
        let name = self.name_of(&peer).await;
        let profile = self.profile(&peer).unwrap_or_else(|| Profile::new(peer, &name, self.now()));
        let requester = match caller {
            Caller::Owner => Requester::Owner,
            Caller::Session(session) => {
                Requester::Session { tainted: session.tainted, owner_bound: session.bound.is_none() }
            }
            // Neither is the owner, and both may only lower.
            Caller::Local | Caller::Network(_) => Requester::Session { tainted: true, owner_bound: false },
        };
        let previous = self.level(&peer);
        let actor = actor_of(caller);
        match decide(&profile, wanted, requester, self.config().session_grant_max) {
            TrustDecision::Apply { source, notify_owner } => {
                self.apply_level(peer, &name, wanted, source.clone(), &actor, reason).await?;
                if notify_owner {
                    let text = format!("{actor} set {name} ({}) to {wanted}", peer.short());
                    self.notify(format!("trust:{peer}:{wanted}"), text, false);
                }
                Ok(TrustChange { previous, level: wanted, approval: None, source })
            }
            TrustDecision::Unchanged => {
                Ok(TrustChange { previous, level: previous, approval: None, source: profile.source })
            }
            TrustDecision::AskOwner => {
                let id = self.ask_elevation(peer, &name, wanted, &actor, reason).await?;
                Ok(TrustChange {
                    previous,
                    level: previous,
                    approval: Some(id),
                    source: TrustSource::SessionRequest,
                })
            }
            TrustDecision::Refused => Err(ServiceError::new(
                "not-allowed-from-this-session",
                format!("{name} cannot be raised to {wanted} this way; the owner can do it"),
            )),
        }
    }

    /// Writes a level, durably, before anything else happens.
    pub(crate) async fn apply_level(
        &self,
        peer: Fingerprint,
        name: &str,
        level: TrustLevel,
        source: TrustSource,
        actor: &str,
        reason: Option<&str>,
    ) -> Result<(), ServiceError> {
        let now = self.now();
        let (agent, its_source) = (name.to_owned(), source.clone());
        let key = self.store.pinned_key(peer).await.map_err(|e| internal(&e))?.map(|pin| pin.key);
        let changed = self.profiles.change(move |profiles| {
            let profile = profiles.profiles.entry(peer).or_insert_with(|| Profile::new(peer, &agent, now));
            let from = profile.level;
            profile.set_level(level, its_source, now);
            profile.public_key = key.as_ref().map(public_key_text).or(profile.public_key.take());
            profiles.updated_at = iso_ms(now);
            from
        });
        let from = changed.await.map_err(|e| record_failed(&e))?;
        let action = if level >= from { Action::TrustUpgrade } else { Action::TrustDowngrade };
        let details = json!({"from": from, "to": level, "source": source, "reason": reason});
        self.audit.record(action, &peer.to_string(), actor, details.clone()).await;
        self.events.publish("trust-change", json!({"peer": peer, "change": details}));
        if level == TrustLevel::Untrusted && from > level {
            self.end_sessions_of(&peer, "trust revoked").await;
        }
        self.ingest_wake.notify_one();
        self.dispatch_wake.notify_one();
        Ok(())
    }

    /// Makes a peer of this account, proven on its own socket, verified.
    pub(crate) async fn trust_local(&self, key: &PublicIdentity, name: &str) -> bool {
        let peer = key.fingerprint();
        let profile = self.profile(&peer).unwrap_or_else(|| Profile::new(peer, name, self.now()));
        let verdict = decide(&profile, TrustLevel::Verified, Requester::OsVerified, TrustLevel::Untrusted);
        let TrustDecision::Apply { source, .. } = verdict else { return false };
        let applied = self.apply_level(peer, name, TrustLevel::Verified, source, "system", None).await;
        applied.is_ok()
    }

    async fn ask_elevation(
        &self,
        peer: Fingerprint,
        name: &str,
        level: TrustLevel,
        actor: &str,
        reason: Option<&str>,
    ) -> Result<String, ServiceError> {
        let now = self.now();
        let id = uuid::Uuid::now_v7().to_string();
        let history = self.profile(&peer).map(|p| p.history);
        let draft = ApprovalDraft {
            id: id.clone(),
            kind: ApprovalKind::TrustElevation,
            peer,
            message_id: None,
            thread_id: None,
            subject: format!("Raise {name} to {level}"),
            preview: reason.unwrap_or_default().to_owned(),
            details: json!({"level": level, "askedBy": actor, "history": history}),
            expires_at: now + DAY_MS,
        };
        self.store.ask(draft, Self::queue_limits(), now).await.map_err(|e| approval_error(&e))?;
        self.audit.record(Action::TrustRequest, &peer.to_string(), actor, json!({"level": level})).await;
        self.notify("threadline-approvals", "A trust level waits for your decision", false);
        Ok(id)
    }

    /// Blocks: everything of the peer is dropped, its level falls.
    pub(crate) async fn block(
        &self,
        caller: &Caller,
        peer: Fingerprint,
        reason: Option<String>,
    ) -> Result<(), ServiceError> {
        let actor = actor_of(caller);
        self.set_control(peer, Some(ControlStatus::Blocked), reason.clone()).await?;
        self.audit.record(Action::Block, &peer.to_string(), &actor, json!({"reason": reason})).await;
        if self.level(&peer) > TrustLevel::Untrusted {
            let name = self.name_of(&peer).await;
            let source =
                if *caller == Caller::Owner { TrustSource::UserGranted } else { TrustSource::System };
            self.apply_level(peer, &name, TrustLevel::Untrusted, source, &actor, Some("blocked")).await?;
        }
        self.end_sessions_of(&peer, "peer blocked").await;
        Ok(())
    }

    /// Removes a block or a pause; the level stays as it is.
    pub(crate) async fn release_control(
        &self,
        caller: &Caller,
        peer: Fingerprint,
        was: ControlStatus,
    ) -> Result<(), ServiceError> {
        let held = self.controls.get().agents.get(&peer).is_some_and(|c| c.status == was);
        if !held {
            return Ok(());
        }
        if was == ControlStatus::Blocked {
            require_owner(caller, "unblocking an agent")?;
        }
        self.set_control(peer, None, None).await?;
        if was == ControlStatus::Blocked {
            self.audit.record(Action::Unblock, &peer.to_string(), &actor_of(caller), Value::Null).await;
        }
        self.release_paused(peer).await
    }

    pub(crate) async fn set_control(
        &self,
        peer: Fingerprint,
        status: Option<ControlStatus>,
        reason: Option<String>,
    ) -> Result<(), ServiceError> {
        let since = iso_ms(self.now());
        let changed = self.controls.change(move |controls| match status {
            Some(status) => {
                controls.agents.insert(peer, Control { status, since, reason });
            }
            None => {
                controls.agents.remove(&peer);
            }
        });
        changed.await.map_err(|e| record_failed(&e))
    }

    pub(crate) async fn pause_all(&self, paused: bool) -> Result<(), ServiceError> {
        let changed = self.controls.change(move |controls| controls.all.paused = paused);
        changed.await.map_err(|e| record_failed(&e))?;
        if !paused {
            let peers: Vec<_> = self.store.known_held_peers().await.map_err(|e| internal(&e))?;
            for peer in peers {
                self.release_paused(peer).await?;
            }
        }
        Ok(())
    }

    /// Messages that only a pause held go on.
    async fn release_paused(&self, peer: Fingerprint) -> Result<(), ServiceError> {
        self.store.release_paused(peer).await.map_err(|e| internal(&e))?;
        self.dispatch_wake.notify_one();
        Ok(())
    }

    pub(crate) async fn set_nickname(
        &self,
        peer: Fingerprint,
        nickname: Option<String>,
    ) -> Result<Value, ServiceError> {
        let nickname = nickname.map(|n| text::name(&n)).filter(|n| !n.is_empty());
        let updated_at = iso_ms(self.now());
        let given = nickname.clone();
        let changed = self.nicknames.change(move |file| match given {
            Some(nickname) => {
                let entry = Nickname { name: nickname, source: NicknameSource::User, updated_at };
                file.nicknames.insert(peer, entry);
            }
            None => {
                file.nicknames.remove(&peer);
            }
        });
        changed.await.map_err(|e| record_failed(&e))?;
        Ok(json!({"fingerprint": peer, "nickname": nickname}))
    }

    /// Ends every session that serves the peer.
    pub(crate) async fn end_sessions_of(&self, peer: &Fingerprint, reason: &str) {
        let Ok(open) = self.store.open_spawns().await else { return };
        for row in open.into_iter().filter(|row| row.key.peer == *peer) {
            if let Some(live) = self.sessions.live(&crate::core::conversation_of(&row.key)) {
                self.sessions.end(&live.id, reason).await;
            }
        }
    }
}

/// Who acts, for the audit chain.
pub(crate) fn actor_of(caller: &Caller) -> String {
    match caller {
        Caller::Owner => "user".into(),
        Caller::Local => "local".into(),
        Caller::Session(session) => format!("session:{}", session.id),
        Caller::Network(network) => format!("token:{}", network.token_id),
    }
}

/// Refuses everyone but the owner.
pub(crate) fn require_owner(caller: &Caller, what: &str) -> Result<(), ServiceError> {
    match caller {
        Caller::Owner => Ok(()),
        _ => Err(ServiceError::new("owner-required", format!("{what} needs the owner's confirmation"))),
    }
}

pub(crate) fn approval_error(error: &threadline_net::store::StoreError) -> ServiceError {
    match error {
        threadline_net::store::StoreError::ApprovalQueueFull { .. } => {
            ServiceError::retry("approval-queue-full", format!("{error}; decide some first"), None)
        }
        other => internal(other),
    }
}

fn public_key_text(key: &PublicIdentity) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(key.as_bytes())
}
