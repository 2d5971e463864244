//! Invitations: issued by the owner, redeemed by strangers, and those of others that the owner accepts
//! (`threadline-agent.md` §5).

use serde_json::{Value, json};
use threadline::audit::Action;
use threadline::inbound::Incoming;
use threadline::invitation::{Invitation, InvitationError, RedeemRefusal, Redemption, Wish};
use threadline::service::{Caller, ServiceError};
use threadline::time::iso_ms;
use threadline::trust::TrustSource;
use threadline::v1::envelope::Authentication;
use threadline::v1::local::AgentName;
use threadline::{Fingerprint, ThreadKey, TrustLevel, text};
use threadline_net::Control;
use threadline_net::store::{IssuedInvitation, KnownPeer, StoreError};

use crate::core::{Core, internal};
use crate::ingest::Unready;
use crate::trust::{actor_of, require_owner};

/// Thread id of messages about invitations; no conversation is made of it.
const THREAD: &str = "invitation";

impl Core {
    /// `POST /threadline/invitations`: the owner only. The shared form is shown once.
    pub(crate) async fn issue_invitation(&self, caller: &Caller, wish: Wish) -> Result<Value, ServiceError> {
        require_owner(caller, "inviting an agent")?;
        let now = self.now();
        let relay = wish.relay.clone().or_else(|| self.config().relay_url.clone());
        let wish = Wish { relay, ..wish };
        let invitation =
            Invitation::issue(&self.identity, wish, now, &mut rand::rng()).map_err(|e| not_usable(&e))?;
        self.store.invitation_issued(&invitation, now).await.map_err(|e| internal(&e))?;
        let subject = invitation.recipient.map_or_else(|| "anyone".into(), |r| r.to_string());
        let details = json!({"tokenId": short(&invitation.token_id), "expiry": invitation.expiry,
            "maxUses": invitation.max_uses});
        self.audit.record(Action::InvitationCreate, &subject, &actor_of(caller), details).await;
        Ok(json!({
            "tokenId": invitation.token_id,
            "token": invitation.to_shared(),
            "link": format!("threadline://invite/{}", invitation.to_shared()),
            "expiry": invitation.expiry,
            "maxUses": invitation.max_uses,
            "recipient": invitation.recipient,
            "label": invitation.label,
        }))
    }

    /// `GET /threadline/invitations`
    pub(crate) async fn invitations(&self) -> Result<Value, ServiceError> {
        let now = self.now();
        let issued = self.store.invitations().await.map_err(|e| internal(&e))?;
        let joins = self.store.joins().await.map_err(|e| internal(&e))?;
        let mut accepted = Vec::with_capacity(joins.len());
        for join in joins {
            accepted.push(json!({
                "tokenId": join.token_id,
                "issuer": join.issuer,
                "name": self.name_of(&join.issuer).await,
                "status": join.state,
                "code": join.code,
                "attempts": join.attempts,
            }));
        }
        let issued: Vec<Value> = issued.iter().map(|row| shown(row, now)).collect();
        Ok(json!({"count": issued.len(), "invitations": issued, "accepted": accepted}))
    }

    /// `DELETE /threadline/invitations/:id`: redeemers keep their level unless `also_trust`.
    pub(crate) async fn revoke_invitation(
        &self,
        caller: &Caller,
        id: &str,
        also_trust: bool,
    ) -> Result<Value, ServiceError> {
        let now = self.now();
        let revoked = self.store.revoke_invitation(id, now).await.map_err(|e| internal(&e))?;
        let Some(row) = revoked.filter(|_| !id.is_empty()) else {
            let text = format!("no single invitation begins with {id:?}");
            return Err(ServiceError::new("invitation-not-found", text));
        };
        let details = json!({"tokenId": short(&row.token_id), "alsoTrust": also_trust});
        self.audit.record(Action::InvitationRevoke, "anyone", &actor_of(caller), details).await;
        if also_trust {
            for peer in &row.redeemed_by {
                self.set_level(caller, *peer, TrustLevel::Untrusted, Some("invitation revoked")).await?;
            }
        }
        let mut answer = shown(&row, now);
        answer["trustRevoked"] = json!(also_trust);
        Ok(answer)
    }

    /// `POST /threadline/invitations/accept`: the owner agrees to connect with the issuer, who becomes verified; then the
    /// token is redeemed in the background until it is answered or expires.
    pub(crate) async fn accept_invitation(
        &self,
        caller: &Caller,
        token: &str,
    ) -> Result<Value, ServiceError> {
        require_owner(caller, "connecting with the issuer of an invitation")?;
        let now = self.now();
        let invitation = Invitation::from_shared(token).map_err(|e| not_usable(&e))?;
        let key = invitation.check(&self.us, now).map_err(|e| not_usable(&e))?;
        let issuer = invitation.issuer;
        if issuer == self.us {
            return Err(ServiceError::new("self-target", "this is an invitation of your own"));
        }
        if self.pin(&issuer, key, "invitation").await.map_err(|e| internal(&e))? != Some(key) {
            let text = "another key is known under the issuer's address; nothing was accepted";
            return Err(ServiceError::new("fingerprint-conflict", text));
        }
        // A token with a key beside it comes from a node that reads sealed messages.
        self.heard_of(issuer, "invitation").await.map_err(|e| internal(&e))?;
        if self.level(&issuer) < TrustLevel::Verified {
            let (name, source) = (self.known_name(issuer).await, TrustSource::Invitation);
            self.apply_level(issuer, &name, TrustLevel::Verified, source, "user", None).await?;
        }
        let join = self.store.join(&invitation, now).await.map_err(|e| internal(&e))?;
        self.redeem_due().await;
        let ours = self.config().relay_url.clone();
        let note = match &invitation.relay {
            Some(relay) if ours.as_ref() != Some(relay) => Some(format!(
                "the issuer may be found at {}; this agent is not connected there",
                text::cut(relay, 200, "…")
            )),
            _ => None,
        };
        Ok(json!({
            "issuer": issuer,
            "displayFingerprint": key.display_fingerprint(),
            "label": invitation.label,
            "level": self.level(&issuer),
            "status": join.state,
            "expiry": invitation.expiry,
            "note": note,
        }))
    }

    /// Sends the redemptions that are due.
    pub(crate) async fn redeem_due(&self) {
        let due = match self.store.due_joins(self.now()).await {
            Ok(due) => due,
            Err(error) => return tracing::error!(%error, "accepted invitations cannot be read"),
        };
        for join in due {
            let Ok(invitation) = Invitation::from_shared(&join.token) else { continue };
            let redemption = Control::Redeem(Box::new(Redemption::new(&self.identity, invitation)));
            if let Err(error) = self.queue_control(&about(join.issuer), redemption).await {
                tracing::error!(%error, "a redemption was not queued");
            }
        }
    }

    /// A peer redeems an invitation of ours.
    pub(crate) async fn redeemed(&self, incoming: &Incoming, key: &ThreadKey) -> Result<(), Unready> {
        let peer = key.peer;
        let sender = self.store.pinned_key(peer).await?.map(|pin| pin.key);
        let redemption = incoming.content.metadata.as_ref().map(Redemption::from_metadata);
        let (Authentication::E2e, Some(sender), Some(Ok(redemption))) =
            (incoming.authentication, sender, redemption)
        else {
            // Whoever only claims to be somebody learns nothing about our tokens.
            tracing::info!(peer = %peer.short(), "a redemption without proof of its sender was dropped");
            return Ok(());
        };
        let token_id = redemption.invitation.token_id.clone();
        let unwanted = self.controls.get().is_blocked(&peer)
            || self.profile(&peer).is_some_and(|profile| profile.lowered_by_owner());
        let issuer = *self.identity.public();
        let judged = self.store.redeem(redemption, issuer, sender, unwanted, self.now()).await?;
        let outcome = match judged {
            Ok(_) => {
                self.heard_of(peer, "message").await?;
                self.raise_redeemer(peer).await.map_err(Unready::Service)?;
                Ok(self.level(&peer))
            }
            Err(refusal) => Err(refusal),
        };
        let details =
            json!({"tokenId": short(&token_id), "refused": outcome.err().map(RedeemRefusal::as_str)});
        self.audit.record(Action::InvitationRedeem, &peer.to_string(), &peer.to_string(), details).await;
        let name = AgentName::parse(&self.agent_name);
        let answer = Control::InvitationResult { token_id, outcome, name };
        if let Err(error) = self.queue_control(&about(peer), answer).await {
            tracing::warn!(%error, "a redemption was not answered; the invitee asks again");
        }
        Ok(())
    }

    /// Levels of redeemers that a crash kept from being raised.
    pub(crate) async fn raise_redeemers(&self) {
        let open = match self.store.unraised_redemptions().await {
            Ok(open) => open,
            Err(error) => return tracing::error!(%error, "redemptions cannot be read"),
        };
        for peer in open {
            if let Err(error) = self.raise_redeemer(peer).await {
                tracing::error!(%error, "the level of a redeemer was not raised");
            }
        }
    }

    async fn raise_redeemer(&self, peer: Fingerprint) -> Result<(), ServiceError> {
        let lowered = self.profile(&peer).is_some_and(|profile| profile.lowered_by_owner());
        if self.level(&peer) < TrustLevel::Verified && !lowered {
            let (known, source) = (self.known_name(peer).await, TrustSource::Invitation);
            self.apply_level(peer, &known, TrustLevel::Verified, source, "system", None).await?;
            let name = self.name_of(&peer).await;
            let text = format!("{name} ({}) redeemed your invitation and is verified now", peer.short());
            self.notify(format!("invitation-redeemed:{peer}"), text, false);
        }
        self.store.redemption_raised(peer).await.map_err(|e| internal(&e))
    }

    /// The issuer answered our redemption.
    pub(crate) async fn redemption_answered(&self, incoming: &Incoming) -> Result<(), Unready> {
        let issuer = incoming.header.from;
        let (Authentication::E2e, Some(fields)) = (incoming.authentication, &incoming.content.metadata)
        else {
            return Ok(());
        };
        let word = |member: &str| fields.get(member).and_then(Value::as_str).map(|w| text::cut(w, 64, ""));
        let code = match fields.get("ok").and_then(Value::as_bool) {
            Some(true) => None,
            _ => Some(word("code").unwrap_or_else(|| "refused".into())),
        };
        let Some(join) = self.store.join_answered(issuer, word("tokenId"), code).await? else {
            return Ok(());
        };
        if let Some(name) = word("name").map(|name| text::name(&name)).filter(|_| join.code.is_none()) {
            let known = KnownPeer { name, ..self.acquaintance(issuer, "invitation") };
            self.store.merge_known(vec![known]).await?;
        }
        let name = self.name_of(&issuer).await;
        let text = match &join.code {
            None => format!("{name} ({}) accepted you: you can write to each other now", issuer.short()),
            Some(code) => format!("{name} ({}) refused its invitation: {code}", issuer.short()),
        };
        self.notify(format!("invitation-answered:{}", join.token_id), text, false);
        self.events.publish("invitation-answered", json!({"peer": issuer, "status": join.state}));
        Ok(())
    }

    /// Its own name for itself, empty where it said none: a profile keeps no made-up name.
    async fn known_name(&self, peer: Fingerprint) -> String {
        let known = self.store.known_peer(peer).await.ok().flatten();
        known.map(|known| known.name).unwrap_or_default()
    }

    /// Notes a peer that reads sealed messages.
    async fn heard_of(&self, peer: Fingerprint, source: &str) -> Result<(), StoreError> {
        self.store.merge_known(vec![self.acquaintance(peer, source)]).await
    }

    fn acquaintance(&self, peer: Fingerprint, source: &str) -> KnownPeer {
        let now = self.now();
        KnownPeer {
            fingerprint: peer,
            name: String::new(),
            capabilities: vec!["tl-e2e".into()],
            framework: "unknown".into(),
            status: String::new(),
            first_seen: now,
            last_seen: now,
            machine: None,
            sources: vec![source.into()],
        }
    }
}

fn about(peer: Fingerprint) -> ThreadKey {
    ThreadKey { peer, thread: THREAD.parse().expect("a word is a thread id") }
}

fn not_usable(error: &InvitationError) -> ServiceError {
    ServiceError::new("invitation-invalid", error.to_string())
}

/// Enough of a token id to tell it apart in a log.
fn short(token_id: &str) -> String {
    token_id.chars().take(8).collect()
}

fn shown(row: &IssuedInvitation, now: i64) -> Value {
    let mut value = json!(row);
    value["status"] = json!(row.status(now));
    for member in ["expiresAt", "createdAt", "revokedAt"] {
        if let Some(at) = value[member].as_i64() {
            value[member] = json!(iso_ms(at));
        }
    }
    value
}
