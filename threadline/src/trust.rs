//! Trust levels: what each allows, who may change them, and how they fade (`threadline-agent.md` §4.1 to §4.3).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::time::{iso_ms, parse_iso};
use crate::{Fingerprint, TrustLevel};

const DAY_MS: i64 = 86_400_000;
/// The owner hears of a coming decay this long before, ms.
pub const DECAY_NOTICE_MS: i64 = 7 * DAY_MS;

/// What a peer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Are you there.
    Ping,
    /// How are you.
    Health,
    /// A message of a conversation.
    Message,
    /// A question.
    Query,
    /// Work to be done.
    TaskRequest,
    /// Data of the owner.
    DataShare,
    /// Starting a program.
    Spawn,
    /// Passing work on.
    Delegate,
}

impl Operation {
    /// The operation that a payload type asks for. Types that this build does not know are conversation.
    pub fn of_kind(kind: Option<&str>) -> Self {
        match kind {
            Some("ping") => Self::Ping,
            Some("health") => Self::Health,
            Some("query") => Self::Query,
            Some("request_task") => Self::TaskRequest,
            _ => Self::Message,
        }
    }

    /// The lowest level whose baseline contains this operation.
    pub const fn needs(self) -> TrustLevel {
        match self {
            Self::Ping | Self::Health => TrustLevel::Untrusted,
            Self::Message | Self::Query => TrustLevel::Verified,
            Self::TaskRequest | Self::DataShare => TrustLevel::Trusted,
            Self::Spawn | Self::Delegate => TrustLevel::Autonomous,
        }
    }
}

/// Whether the baseline of `level` contains `operation`. Computed here and never stored.
pub fn allows(level: TrustLevel, operation: Operation) -> bool {
    level >= operation.needs()
}

/// Where a level came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrustSource {
    /// The owner, proven for the request.
    UserGranted,
    /// The owner compared the safety number, for this very key.
    MutualVerified,
    /// A paired machine of the same agent.
    PairedMachineGranted,
    /// A redeemed invitation.
    Invitation,
    /// A process of this account on this host.
    OsVerified,
    /// DNS.
    DomainVerified,
    /// A directory.
    DirectoryVerified,
    /// First message under the policy `auto`.
    FirstContactAuto,
    /// A session asked, within its limit.
    SessionRequest,
    /// Nobody decided yet.
    SetupDefault,
    /// The node itself; only ever lowers.
    System,
    /// A word of another version.
    #[serde(untagged)]
    Other(String),
}

/// What was seen of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct History {
    /// Messages stored from it.
    pub messages_received: u64,
    /// Of these, answered.
    pub messages_responded: u64,
    /// Exchanges that ended well.
    pub successful_interactions: u64,
    /// Exchanges that failed.
    pub failed_interactions: u64,
    /// ISO 8601.
    pub last_interaction: Option<String>,
    /// Good exchanges since the last failure.
    pub streak_since_incident: u64,
}

/// One peer in `trust-profiles.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    /// Display name: a label, never a key.
    #[serde(default)]
    pub agent: String,
    /// Address.
    pub fingerprint: Fingerprint,
    /// Full key, for reading; the pin is elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// How much the owner relies on it.
    pub level: TrustLevel,
    /// Who said so.
    pub source: TrustSource,
    /// What was seen of it.
    #[serde(default)]
    pub history: History,
    /// Operations that the owner took away.
    #[serde(default)]
    pub blocked_operations: Vec<Operation>,
    /// Whether inactivity never lowers it.
    #[serde(default)]
    pub decay_exempt: bool,
    /// ISO 8601: since when the level holds.
    pub level_since: String,
    /// ISO 8601.
    pub created_at: String,
    /// ISO 8601.
    pub updated_at: String,
    /// Members of other versions, kept.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// `trust-profiles.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profiles {
    /// By address.
    #[serde(default)]
    pub profiles: BTreeMap<Fingerprint, Profile>,
    /// ISO 8601.
    #[serde(default)]
    pub updated_at: String,
}

impl Profile {
    /// A peer that nobody decided about.
    pub fn new(fingerprint: Fingerprint, agent: &str, now_ms: i64) -> Self {
        let now = iso_ms(now_ms);
        Self {
            agent: agent.to_owned(),
            fingerprint,
            public_key: None,
            level: TrustLevel::Untrusted,
            source: TrustSource::SetupDefault,
            history: History::default(),
            blocked_operations: Vec::new(),
            decay_exempt: false,
            level_since: now.clone(),
            created_at: now.clone(),
            updated_at: now,
            other: Map::new(),
        }
    }

    /// Whether the peer may ask for `operation`.
    pub fn permits(&self, operation: Operation) -> bool {
        allows(self.level, operation) && !self.blocked_operations.contains(&operation)
    }

    /// Sets a level that [`decide`] or a lowering allowed.
    pub fn set_level(&mut self, level: TrustLevel, source: TrustSource, now_ms: i64) {
        let now = iso_ms(now_ms);
        if level != self.level {
            self.level_since.clone_from(&now);
        }
        self.level = level;
        self.source = source;
        self.updated_at = now;
    }

    /// Whether the owner put this peer to untrusted, so that nothing automatic raises it.
    pub fn lowered_by_owner(&self) -> bool {
        self.level == TrustLevel::Untrusted && self.source == TrustSource::UserGranted
    }

    fn idle_since(&self) -> Option<i64> {
        let last = self.history.last_interaction.as_deref().and_then(parse_iso);
        parse_iso(&self.level_since).max(last)
    }

    /// When inactivity lowers the level by one step, Unix ms.
    pub fn decays_at(&self) -> Option<i64> {
        if self.decay_exempt {
            return None;
        }
        let days = match self.level {
            TrustLevel::Untrusted => return None,
            TrustLevel::Verified => 180,
            TrustLevel::Trusted | TrustLevel::Autonomous => 90,
        };
        self.idle_since()?.checked_add(days * DAY_MS)
    }

    /// The level after decay at `now_ms`, if it is due: one step at a time.
    pub fn decayed(&self, now_ms: i64) -> Option<TrustLevel> {
        (self.decays_at()? <= now_ms).then_some(match self.level {
            TrustLevel::Autonomous => TrustLevel::Trusted,
            TrustLevel::Trusted => TrustLevel::Verified,
            TrustLevel::Verified | TrustLevel::Untrusted => TrustLevel::Untrusted,
        })
    }

    /// Whether the owner should hear now that a decay comes within 7 days.
    pub fn decay_notice_due(&self, now_ms: i64) -> bool {
        self.decays_at().is_some_and(|at| at - DECAY_NOTICE_MS <= now_ms && now_ms < at)
    }
}

/// Who asks for another level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requester {
    /// The owner, proven for this request.
    Owner,
    /// The node found that the peer is a process of this account on this host.
    OsVerified,
    /// A session, through `threadline_trust`.
    Session {
        /// Whether a peer's text ever reached it.
        tainted: bool,
        /// Whether it is bound to the owner's own conversation.
        owner_bound: bool,
    },
    /// The node, for a reason of §4.3.
    System,
}

/// What becomes of a wished level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustDecision {
    /// Set it, with this source; `notify_owner` when a session did it.
    Apply {
        /// Source to record.
        source: TrustSource,
        /// Whether the owner is told.
        notify_owner: bool,
    },
    /// Nothing changes.
    Unchanged,
    /// An approval of kind `trust-elevation` is made.
    AskOwner,
    /// Not possible from here.
    Refused,
}

/// Decides about the wish to set `profile` to `wanted`. `session_grant_max` is `threadline.trust.sessionGrantMax`.
pub fn decide(
    profile: &Profile,
    wanted: TrustLevel,
    requester: Requester,
    session_grant_max: TrustLevel,
) -> TrustDecision {
    let raises = wanted > profile.level;
    let apply = |source, notify_owner| TrustDecision::Apply { source, notify_owner };
    match requester {
        Requester::Owner => apply(TrustSource::UserGranted, false),
        _ if wanted == profile.level => TrustDecision::Unchanged,
        Requester::System if raises => TrustDecision::Refused,
        Requester::System => apply(TrustSource::System, true),
        Requester::OsVerified if !raises => TrustDecision::Unchanged,
        Requester::OsVerified if wanted > TrustLevel::Verified || profile.lowered_by_owner() => {
            TrustDecision::Refused
        }
        Requester::OsVerified => apply(TrustSource::OsVerified, false),
        Requester::Session { .. } if !raises => apply(TrustSource::SessionRequest, true),
        Requester::Session { tainted: false, owner_bound: true } if wanted <= session_grant_max => {
            apply(TrustSource::SessionRequest, true)
        }
        Requester::Session { .. } => TrustDecision::AskOwner,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TrustLevel::{Autonomous, Trusted, Untrusted, Verified};

    const T0: i64 = 1_768_478_400_000;

    fn profile(level: TrustLevel) -> Profile {
        let mut profile = Profile::new("0".repeat(32).parse().expect("fp"), "bob", T0);
        profile.set_level(level, TrustSource::Invitation, T0);
        profile
    }

    #[test]
    fn baselines() {
        use Operation::{DataShare, Delegate, Health, Message, Ping, Query, Spawn, TaskRequest};
        let all = [Ping, Health, Message, Query, TaskRequest, DataShare, Spawn, Delegate];
        for (level, count) in [(Untrusted, 2), (Verified, 4), (Trusted, 6), (Autonomous, 8)] {
            let allowed: Vec<_> = all.into_iter().filter(|op| allows(level, *op)).collect();
            assert_eq!(allowed, all[..count], "{level}");
        }
        let mut peer = profile(Trusted);
        peer.blocked_operations.push(Message);
        assert!(!peer.permits(Message) && peer.permits(Query) && !peer.permits(Spawn));
        assert_eq!(Operation::of_kind(Some("a2a-message")), Message);
    }

    #[test]
    fn who_may_change_a_level() {
        let session = |tainted, owner_bound| Requester::Session { tainted, owner_bound };
        let yes = |source, notify_owner| TrustDecision::Apply { source, notify_owner };
        let cases = [
            (Untrusted, Autonomous, Requester::Owner, yes(TrustSource::UserGranted, false)),
            (Autonomous, Untrusted, Requester::Owner, yes(TrustSource::UserGranted, false)),
            (Untrusted, Verified, Requester::OsVerified, yes(TrustSource::OsVerified, false)),
            (Untrusted, Trusted, Requester::OsVerified, TrustDecision::Refused),
            (Trusted, Verified, Requester::OsVerified, TrustDecision::Unchanged),
            (Untrusted, Verified, Requester::System, TrustDecision::Refused),
            (Trusted, Untrusted, Requester::System, yes(TrustSource::System, true)),
            (Trusted, Untrusted, session(true, false), yes(TrustSource::SessionRequest, true)),
            (Verified, Verified, session(true, false), TrustDecision::Unchanged),
            (Untrusted, Verified, session(false, true), yes(TrustSource::SessionRequest, true)),
            (Untrusted, Verified, session(true, true), TrustDecision::AskOwner),
            (Untrusted, Verified, session(false, false), TrustDecision::AskOwner),
            (Untrusted, Trusted, session(false, true), TrustDecision::AskOwner),
        ];
        for (from, to, who, expected) in cases {
            assert_eq!(decide(&profile(from), to, who, Verified), expected, "{from} to {to} by {who:?}");
        }
        let mut lowered = profile(Verified);
        lowered.set_level(Untrusted, TrustSource::UserGranted, T0);
        assert_eq!(decide(&lowered, Verified, Requester::OsVerified, Verified), TrustDecision::Refused);
        assert_eq!(
            decide(&profile(Untrusted), Trusted, session(false, true), Trusted),
            yes(TrustSource::SessionRequest, true)
        );
    }

    #[test]
    fn inactivity_lowers_one_step_at_a_time() {
        for (level, days, next) in
            [(Autonomous, 90, Trusted), (Trusted, 90, Verified), (Verified, 180, Untrusted)]
        {
            let peer = profile(level);
            let due = T0 + days * DAY_MS;
            assert_eq!(peer.decayed(due - 1), None);
            assert_eq!(peer.decayed(due), Some(next));
            assert!(!peer.decay_notice_due(due - DECAY_NOTICE_MS - 1));
            assert!(peer.decay_notice_due(due - DECAY_NOTICE_MS) && !peer.decay_notice_due(due));
        }
        assert_eq!(profile(Untrusted).decays_at(), None);
        let mut peer = profile(Trusted);
        peer.history.last_interaction = Some(iso_ms(T0 + DAY_MS));
        assert_eq!(peer.decays_at(), Some(T0 + 91 * DAY_MS));
        peer.set_level(Verified, TrustSource::System, T0 + 91 * DAY_MS);
        assert_eq!(peer.decayed(T0 + 92 * DAY_MS), None, "the new level starts its own time");
        peer.decay_exempt = true;
        assert_eq!(peer.decays_at(), None);
    }

    #[test]
    fn the_file_keeps_what_other_versions_wrote() {
        let text = r#"{"profiles":{"00000000000000000000000000000000":{"agent":"bob","fingerprint":"00000000000000000000000000000000",
            "level":"verified","source":"carrier-pigeon","levelSince":"x","createdAt":"x","updatedAt":"x","allowed":["ping"]}},"updatedAt":"x"}"#;
        let profiles: Profiles = serde_json::from_str(text).expect("reads");
        let back: Value = serde_json::to_value(&profiles).expect("writes");
        let peer = &back["profiles"]["00000000000000000000000000000000"];
        assert_eq!(peer["source"], "carrier-pigeon");
        assert_eq!(peer["allowed"], serde_json::json!(["ping"]));
        assert!(
            serde_json::from_str::<Profiles>(r#"{"profiles":{"bob":{}}}"#).is_err(),
            "names are not keys"
        );
    }
}
