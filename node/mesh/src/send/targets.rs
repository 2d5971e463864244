//! Whom a name or address means, and what that agent speaks.

use std::collections::HashSet;

use serde_json::{Value, json};
use threadline::identity::PublicIdentity;
use threadline::resolve::{Candidate, Resolution, resolve};
use threadline::service::{ResolvedAgent, ServiceError};
use threadline::v1::frames::DiscoverFilter;
use threadline::{Fingerprint, TrustLevel, text};
use threadline_net::store::StoreError;

use crate::core::{Core, internal};

impl Core {
    /// The key to seal to: pinned, and the peer says that it reads sealed messages, or wrote one. What a relay says of its
    /// abilities later takes nothing away.
    pub(super) async fn seals_to(&self, peer: &Fingerprint) -> Result<Option<PublicIdentity>, StoreError> {
        let key = self.key_of(peer).await?;
        let seals = self.speaks(peer, "tl-e2e").await? || self.store.has_sealed(*peer).await?;
        Ok(key.filter(|_| seals))
    }

    pub(crate) async fn speaks(&self, peer: &Fingerprint, tag: &str) -> Result<bool, StoreError> {
        let known = self.store.known_peer(*peer).await?;
        Ok(known.is_some_and(|k| k.capabilities.iter().any(|c| c == tag)))
    }

    /// From what was typed to one agent.
    pub(crate) async fn resolve_target(&self, target: &str) -> Result<ResolvedAgent, ServiceError> {
        let mut discovered = false;
        loop {
            let candidates = self.candidates().await?;
            match resolve(target, &candidates, discovered) {
                Resolution::Found { fingerprint, .. } => {
                    let name = self.name_of(&fingerprint).await;
                    return Ok(ResolvedAgent { name, fingerprint });
                }
                Resolution::Ambiguous(candidates) => {
                    let list: Vec<Value> = candidates
                        .iter()
                        .map(
                            |c| json!({"name": c.name, "fingerprint": c.fingerprint, "address": c.address()}),
                        )
                        .collect();
                    return Err(ServiceError::new(
                        "ambiguous-agent",
                        format!("{target:?} fits {} agents; use one of the addresses", list.len()),
                    )
                    .with_details(json!({"candidates": list})));
                }
                Resolution::Discover(name) => {
                    discovered = true;
                    self.scan_local().await;
                    let filter = DiscoverFilter { name: Some(name), ..DiscoverFilter::default() };
                    if let Ok(found) = self.link.discover(Some(filter)).await {
                        self.merge_agents(&found).await;
                    }
                }
                Resolution::NotFound(closest) => {
                    let hint = if closest.is_empty() {
                        String::new()
                    } else {
                        format!("; did you mean {}?", closest.join(", "))
                    };
                    return Err(ServiceError::new(
                        "agent-not-found",
                        format!("no agent is known as {target:?}{hint}"),
                    )
                    .with_details(json!({"closest": closest})));
                }
            }
        }
    }

    /// Everyone who can be meant by a name.
    pub(crate) async fn candidates(&self) -> Result<Vec<Candidate>, ServiceError> {
        let known = self.store.known_peers().await.map_err(|e| internal(&e))?;
        let written_to = self.store.written_to().await.map_err(|e| internal(&e))?;
        let nicknames = self.nicknames.get();
        let profiles = self.profiles.get();
        let candidate = |peer: Fingerprint, name: &str, online: Option<bool>| {
            let trusted =
                profiles.profiles.get(&peer).filter(|profile| profile.level > TrustLevel::Untrusted);
            // Who is trusted keeps the name that it had then.
            let trusted_as =
                trusted.map(|profile| text::name(&profile.agent)).filter(|name| !name.is_empty());
            Candidate {
                fingerprint: peer,
                name: trusted_as.unwrap_or_else(|| name.to_owned()),
                nickname: nicknames.given(&peer).map(str::to_owned),
                online,
                known: true,
                contact: trusted.is_some() || written_to.contains(&peer),
            }
        };
        let mut candidates: Vec<Candidate> =
            known.iter().map(|k| candidate(k.fingerprint, &k.name, Some(k.status == "online"))).collect();
        let heard: HashSet<Fingerprint> = known.iter().map(|k| k.fingerprint).collect();
        let others = profiles.profiles.iter().filter(|(peer, _)| !heard.contains(peer));
        candidates.extend(others.map(|(peer, profile)| candidate(*peer, &text::name(&profile.agent), None)));
        Ok(candidates)
    }
}
