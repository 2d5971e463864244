//! Who is there: this machine, the relay, and what is remembered (`discovery-interop.md` §2).

use std::collections::HashSet;

use serde_json::{Map, Value, json};
use threadline::resolve::takes_a_name;
use threadline::service::{AgentsRequest, Caller, DiscoverRequest, DiscoverScope, ServiceError};
use threadline::time::iso_ms;
use threadline::v1::client::KnownAgent;
use threadline::v1::frames::DiscoverFilter;
use threadline::{Fingerprint, text};
use threadline_net::store::KnownPeer;

use crate::core::{Core, internal};

/// Age at which what was heard about an agent of this machine is asked again, ms.
const LOCAL_FRESH_MS: i64 = 60_000;

impl Core {
    /// Asks the agents of this account and takes over what they proved.
    pub(crate) async fn scan_local(&self) -> Vec<KnownPeer> {
        let now = self.now();
        let found = self.local.scan(self.us, now).await;
        self.remember_local(&found).await;
        let mut peers = Vec::with_capacity(found.len());
        for agent in found {
            let peer = agent.key.fingerprint();
            if let Err(error) = self.pin(&peer, agent.key, "local").await {
                tracing::error!(%error, "a key was not pinned");
                continue;
            }
            let known = KnownPeer {
                fingerprint: peer,
                name: agent.name.clone(),
                capabilities: agent.capabilities.clone(),
                framework: agent.framework.clone(),
                status: "online".into(),
                first_seen: now,
                last_seen: now,
                machine: Some("local".into()),
                sources: vec!["local".into()],
            };
            if let Err(error) = self.store.merge_known(vec![known.clone()]).await {
                tracing::error!(%error, "an agent was not noted");
            }
            self.trust_local(&agent.key, &agent.name).await;
            peers.push(known);
        }
        peers
    }

    /// Takes over what the relay told.
    pub(crate) async fn merge_agents(&self, agents: &[KnownAgent]) {
        let now = self.now();
        let heard = agents.iter().filter(|a| a.fingerprint != self.us).map(|agent| KnownPeer {
            fingerprint: agent.fingerprint,
            name: text::name(&agent.name),
            capabilities: agent.capabilities.iter().map(|c| text::name(c)).take(32).collect(),
            framework: agent.framework.as_deref().map_or_else(|| "unknown".into(), text::name),
            status: if agent.online || self.sealed.is_there(&agent.fingerprint) {
                "online"
            } else {
                "offline"
            }
            .into(),
            first_seen: now,
            last_seen: agent
                .last_seen
                .as_deref()
                .filter(|_| !agent.online)
                .and_then(threadline::time::parse_iso)
                .unwrap_or(now),
            machine: None,
            sources: vec!["relay".into()],
        });
        if let Err(error) = self.store.merge_known(heard.collect()).await {
            tracing::error!(%error, "agents of the relay were not noted");
        }
    }

    /// `threadline_discover`
    pub(crate) async fn discover(
        &self,
        caller: &Caller,
        request: DiscoverRequest,
    ) -> Result<Value, ServiceError> {
        let limit = usize::try_from(request.limit.unwrap_or(50)).unwrap_or(50);
        let mut sources = vec!["local"];
        let mut stale = None;
        let local: Vec<Fingerprint> = self.scan_local().await.into_iter().map(|p| p.fingerprint).collect();
        if request.scope == DiscoverScope::Network {
            let filter = request.capability.clone().map(|capability| DiscoverFilter {
                capability: Some(capability),
                ..DiscoverFilter::default()
            });
            let (linked, sealed) = tokio::join!(
                self.link.discover(filter),
                self.search_sealed(request.capability.as_deref(), limit)
            );
            match linked {
                Ok(agents) => {
                    self.merge_agents(&agents).await;
                    sources.push("relay");
                }
                Err(_) if sealed => sources.push("relay"),
                Err(error) => {
                    sources.push("cache");
                    stale = Some(error.to_string());
                }
            }
        }
        let known = self.store.known_peers().await.map_err(|e| internal(&e))?;
        let wanted = |peer: &KnownPeer| {
            let in_scope = match request.scope {
                DiscoverScope::Local => local.contains(&peer.fingerprint),
                DiscoverScope::Network => true,
            };
            in_scope
                && request.capability.as_deref().is_none_or(|c| has_capability(&peer.capabilities, c))
                && request.query.as_deref().is_none_or(|q| matches_words(peer, q))
        };
        let impostors = self.impostors().await?;
        let agents: Vec<Value> = known
            .iter()
            .filter(|peer| wanted(peer))
            .take(limit)
            .map(|peer| self.agent_entry(caller, peer, true, &impostors))
            .collect();
        let mut result = json!({
            "scope": request.scope,
            "count": agents.len(),
            "source": sources,
            "agents": agents,
        });
        if let Some(reason) = stale {
            result["staleReason"] = json!(reason);
        }
        if agents.is_empty() {
            result["hint"] = json!(match request.scope {
                DiscoverScope::Local =>
                    "No other agent of this account is running. Try scope \"network\" for the relay.",
                DiscoverScope::Network =>
                    "Nobody is visible. Unlisted agents are found by their fingerprint only.",
            });
        }
        Ok(result)
    }

    /// `threadline_agents`
    pub(crate) async fn agents(
        &self,
        caller: &Caller,
        request: &AgentsRequest,
    ) -> Result<Value, ServiceError> {
        if self.local.is_stale() {
            self.scan_local().await;
        }
        let known = self.store.known_peers().await.map_err(|e| internal(&e))?;
        let threads = self.store.active_threads().await.map_err(|e| internal(&e))?;
        let pending = self.store.delivery_health(self.now()).await.map_err(|e| internal(&e))?;
        let is_bound = |peer: &Fingerprint| match caller {
            Caller::Network(network) => network.peer.is_none_or(|p| p == *peer),
            Caller::Session(session) => session.bound.as_ref().is_none_or(|b| b.peer == *peer),
            Caller::Owner | Caller::Local => true,
        };
        let impostors = self.impostors().await?;
        let agents: Vec<Value> = known
            .iter()
            .filter(|p| is_bound(&p.fingerprint) && (request.include_offline || self.is_online(p)))
            .map(|peer| {
                let mut entry = self.agent_entry(caller, peer, false, &impostors);
                let active = threads.iter().find(|(fp, _)| *fp == peer.fingerprint).map_or(0, |(_, n)| *n);
                entry["activeThreads"] = json!(active);
                let waiting = pending.iter().find(|h| h.fingerprint == peer.fingerprint);
                entry["pendingDeliveries"] = json!(waiting.map_or(0, |h| h.pending_count));
                entry["blocked"] = json!(self.controls.get().is_blocked(&peer.fingerprint));
                let last = self.profile(&peer.fingerprint).and_then(|p| p.history.last_interaction);
                if let Some(last) = last {
                    entry["lastInteraction"] = json!(last);
                }
                entry
            })
            .collect();
        Ok(json!({"count": agents.len(), "includeOffline": request.include_offline, "agents": agents}))
    }

    fn is_online(&self, peer: &KnownPeer) -> bool {
        self.sealed.is_there(&peer.fingerprint)
            || peer.status == "online"
                && (peer.sources.iter().any(|s| s == "relay")
                    || peer.last_seen + 2 * LOCAL_FRESH_MS > self.now())
    }

    /// Agents that are called as an agent is that this one knows.
    async fn impostors(&self) -> Result<HashSet<Fingerprint>, ServiceError> {
        let all = self.candidates().await?;
        Ok(all.iter().filter(|agent| takes_a_name(agent, &all)).map(|agent| agent.fingerprint).collect())
    }

    fn agent_entry(
        &self,
        caller: &Caller,
        peer: &KnownPeer,
        short: bool,
        impostors: &HashSet<Fingerprint>,
    ) -> Value {
        let name = if peer.name.is_empty() {
            format!("agent {}", peer.fingerprint.short())
        } else {
            peer.name.clone()
        };
        let mut entry = Map::new();
        entry.insert("address".into(), json!(format!("{name}:{}", peer.fingerprint.short())));
        let shown = if impostors.contains(&peer.fingerprint) {
            format!("{name} (not the agent you know: {})", peer.fingerprint.short())
        } else {
            name
        };
        entry.insert("name".into(), json!(shown));
        let fingerprint = if short { peer.fingerprint.short() } else { peer.fingerprint.to_string() };
        entry.insert("fingerprint".into(), json!(fingerprint));
        if let Some(nickname) = self.nicknames.get().nicknames.get(&peer.fingerprint) {
            entry.insert("nickname".into(), json!(nickname.name));
        }
        entry.insert("status".into(), json!(if self.is_online(peer) { "online" } else { "offline" }));
        entry.insert("capabilities".into(), json!(peer.capabilities));
        entry.insert("framework".into(), json!(peer.framework));
        entry.insert("lastSeen".into(), json!(iso_ms(peer.last_seen)));
        if let Some(machine) = &peer.machine {
            entry.insert("machine".into(), json!(machine));
        }
        // How far the owner relies on others is no business of a network client.
        if !matches!(caller, Caller::Network(network)
            if !network.scopes.contains(&threadline::service::Scope::Admin))
        {
            entry.insert("trustLevel".into(), json!(self.level(&peer.fingerprint)));
            if let Some(profile) = self.profile(&peer.fingerprint) {
                entry.insert("trustSource".into(), json!(profile.source));
            }
        }
        Value::Object(entry)
    }

    /// One agent with its profile.
    pub(crate) async fn agent(&self, peer: Fingerprint) -> Result<Value, ServiceError> {
        let known = self.store.known_peer(peer).await.map_err(|e| internal(&e))?;
        let profile = self.profile(&peer);
        if known.is_none() && profile.is_none() {
            return Err(ServiceError::new("agent-not-found", format!("no agent {peer} is known")));
        }
        let pinned = self.store.pinned_key(peer).await.map_err(|e| internal(&e))?;
        let controls = self.controls.get();
        Ok(json!({
            "fingerprint": peer,
            "name": self.name_of(&peer).await,
            "nickname": self.nicknames.get().nicknames.get(&peer).map(|n| n.name.clone()),
            "trustLevel": self.level(&peer),
            "profile": profile,
            "known": known,
            "keyPinned": pinned.is_some(),
            "displayFingerprint": pinned.map(|pin| pin.key.display_fingerprint()),
            "blocked": controls.is_blocked(&peer),
            "paused": controls.is_paused(&peer),
        }))
    }
}

/// Equality on the slug, or a prefix of it up to a hyphen.
fn has_capability(capabilities: &[String], wanted: &str) -> bool {
    let wanted = wanted.to_lowercase();
    capabilities.iter().any(|have| {
        let have = have.to_lowercase();
        have == wanted || have.strip_prefix(&wanted).is_some_and(|rest| rest.starts_with('-'))
    })
}

/// All words in name or capabilities.
fn matches_words(peer: &KnownPeer, query: &str) -> bool {
    let text = format!("{} {}", peer.name, peer.capabilities.join(" ")).to_lowercase();
    query.to_lowercase().split_whitespace().all(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_is_a_slug_or_its_beginning() {
        let have = vec!["code-review".to_owned(), "Chat".to_owned()];
        assert!(has_capability(&have, "code") && has_capability(&have, "chat"));
        assert!(!has_capability(&have, "review") && !has_capability(&["encode".to_owned()], "code"));
    }
}
