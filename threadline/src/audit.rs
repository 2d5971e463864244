//! Hash chain of trust decisions, `trust-audit-chain.jsonl`, and its signed anchors (`threadline-agent.md` §4.6).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::identity::{AnchorStatement, Identity, PublicIdentity, Purpose};
use crate::jcs;
use crate::time::iso_ms;

/// Entries between two anchors.
pub const ANCHOR_EVERY: u64 = 256;

/// What is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// A level rose.
    TrustUpgrade,
    /// A level fell.
    TrustDowngrade,
    /// A level fell by inactivity.
    TrustDecay,
    /// A session asked for a level.
    TrustRequest,
    /// A text looked like an injection.
    InjectionDetected,
    /// The firewall denied a call.
    FirewallDeny,
    /// A peer was blocked.
    Block,
    /// A block was removed.
    Unblock,
    /// The owner decided an approval.
    ApprovalDecided,
    /// The owner decided about something in quarantine.
    QuarantineDecided,
    /// The owner issued an invitation.
    InvitationCreate,
    /// A peer redeemed one, or was refused.
    InvitationRedeem,
    /// The owner revoked one.
    InvitationRevoke,
    /// The chain was damaged and goes on from here.
    ChainRepair,
}

/// One line of the chain. Members of `action` that later versions know are read as text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// ISO 8601.
    pub timestamp: String,
    /// [`Action`] as text.
    pub action: String,
    /// Whom it concerns.
    pub subject: String,
    /// Fingerprint, `user`, `system` or `session:<id>`.
    pub actor: String,
    /// Facts, never bodies.
    pub details: Map<String, Value>,
    /// Hash of the entry before; empty in the first.
    pub previous_hash: String,
    /// 64 hex digits.
    pub hash: String,
}

/// Where the chain stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head {
    /// Entries so far.
    pub count: u64,
    /// Hash of the last one; empty at the start.
    pub last_hash: String,
}

impl Head {
    /// Makes the next entry and moves the head. Write it, synced, before acting on it.
    pub fn append(
        &mut self,
        action: Action,
        subject: &str,
        actor: &str,
        details: Map<String, Value>,
        now_ms: i64,
    ) -> Entry {
        let action = serde_json::to_value(action).ok().and_then(|v| v.as_str().map(str::to_owned));
        let mut entry = Entry {
            timestamp: iso_ms(now_ms),
            action: action.expect("an action serialises as text"),
            subject: subject.to_owned(),
            actor: actor.to_owned(),
            details,
            previous_hash: self.last_hash.clone(),
            hash: String::new(),
        };
        entry.hash = entry.computed_hash();
        self.count += 1;
        self.last_hash.clone_from(&entry.hash);
        entry
    }

    /// Whether an anchor is due after the latest entry.
    pub const fn anchor_due(&self) -> bool {
        self.count > 0 && self.count.is_multiple_of(ANCHOR_EVERY)
    }

    /// Signs the state of the chain.
    pub fn anchor(&self, identity: &Identity, now_ms: i64) -> Anchor {
        let statement =
            AnchorStatement { count: self.count, last_hash: self.last_hash.clone(), at: iso_ms(now_ms) };
        let signature = hex::encode(identity.sign(&Purpose::AuditAnchor(&statement)));
        Anchor { statement, signature }
    }
}

impl Entry {
    /// The line to append, with its newline.
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_string(self).expect("texts and JSON serialise");
        line.push('\n');
        line
    }

    fn computed_hash(&self) -> String {
        let details = jcs::to_string(&Value::Object(self.details.clone()));
        let parts =
            [&self.timestamp, &self.action, &self.subject, &self.actor, &details, &self.previous_hash];
        hex::encode(Sha256::digest(parts.map(String::as_str).join("|")))
    }
}

/// One line of `trust-audit-anchors.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// What is signed.
    #[serde(flatten)]
    pub statement: AnchorStatement,
    /// Hex.
    pub signature: String,
}

/// What is wrong with a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Break {
    /// Line, from 1.
    pub broken_at: u64,
    /// What is wrong there.
    pub error: String,
}

/// Result of reading a whole chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Where to go on.
    pub head: Head,
    /// The first break, if any. A chain with a break goes on after a `chain-repair` entry that names it.
    pub broken: Option<Break>,
    /// Bytes of a torn last line, to be cut off and recorded with [`torn_details`].
    pub torn: Option<Vec<u8>>,
    /// Anchors that were checked.
    pub anchors_checked: u64,
}

impl Report {
    /// Whether chain and anchors hold.
    pub const fn is_valid(&self) -> bool {
        self.broken.is_none()
    }
}

/// Details of the `chain-repair` entry for a torn last line.
pub fn torn_details(torn: &[u8]) -> Map<String, Value> {
    let mut details = Map::new();
    details.insert("tornBytes".into(), json!(torn.len()));
    details.insert("sha256".into(), json!(hex::encode(Sha256::digest(torn))));
    details
}

/// Reads and checks the whole chain against the anchors of `key`.
pub fn verify(chain: &[u8], anchors: &[Anchor], key: &PublicIdentity) -> Report {
    let mut report = Report::default();
    let (lines, tail) = chain.split_at(chain.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1));
    let mut hashes = Vec::new();
    for (number, line) in (1..).zip(lines.split_inclusive(|b| *b == b'\n')) {
        if let Ok(entry) = serde_json::from_slice::<Entry>(line) {
            report.check(number, &entry);
            report.head = Head { count: number, last_hash: entry.hash.clone() };
            hashes.push(entry.hash);
        } else {
            report.break_at(number, "the line is not an entry");
            report.head.count = number;
            hashes.push(String::new());
        }
    }
    if !tail.is_empty() {
        report.torn = Some(tail.to_vec());
    }
    for anchor in anchors {
        report.check_anchor(anchor, &hashes, key);
    }
    report
}

impl Report {
    fn check(&mut self, number: u64, entry: &Entry) {
        if entry.computed_hash() != entry.hash {
            self.break_at(number, "the entry does not have its hash");
        } else if entry.previous_hash != self.head.last_hash {
            self.break_at(number, "the entry does not follow the one before");
        }
    }

    fn check_anchor(&mut self, anchor: &Anchor, hashes: &[String], key: &PublicIdentity) {
        self.anchors_checked += 1;
        let count = anchor.statement.count;
        let at = usize::try_from(count).ok().and_then(|n| hashes.get(n.checked_sub(1)?));
        let signature = hex::decode(&anchor.signature).unwrap_or_default();
        if !anchor.statement.verifies(key, &signature) {
            self.break_at(count, "the signature of an anchor does not verify");
        } else if at != Some(&anchor.statement.last_hash) {
            self.break_at(count, "the chain does not contain what an anchor signed");
        }
    }

    fn break_at(&mut self, broken_at: u64, error: &str) {
        if self.broken.is_none() {
            self.broken = Some(Break { broken_at, error: error.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identity() -> Identity {
        Identity::from_seed(&[1; 32])
    }

    fn chain(entries: u64) -> (Vec<u8>, Head) {
        let mut head = Head::default();
        let mut bytes = Vec::new();
        for n in 0..entries {
            let mut details = Map::new();
            details.insert("z".into(), json!(n));
            details.insert("a".into(), json!("level"));
            bytes.extend(
                head.append(Action::TrustUpgrade, "bob", "user", details, 1_768_478_400_000)
                    .to_line()
                    .bytes(),
            );
        }
        (bytes, head)
    }

    #[test]
    fn the_hash_is_over_the_joined_parts() {
        let mut head = Head::default();
        let entry = head.append(Action::Block, "s", "user", Map::new(), 1_768_478_400_000);
        let text = "2026-01-15T12:00:00.000Z|block|s|user|{}|";
        assert_eq!(entry.hash, hex::encode(Sha256::digest(text)));
        let next = head.append(Action::Unblock, "s", "user", Map::new(), 1_768_478_400_000);
        assert_eq!((next.previous_hash, head.count), (entry.hash, 2));
    }

    #[test]
    fn any_change_of_any_line_is_found() {
        let (bytes, head) = chain(5);
        let key = *identity().public();
        let good = verify(&bytes, &[head.anchor(&identity(), 0)], &key);
        assert!(good.is_valid() && good.head == head && good.anchors_checked == 1);
        let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
        for skip in 0..4 {
            let cut: Vec<u8> =
                lines.iter().enumerate().filter(|(i, _)| *i != skip).flat_map(|(_, l)| l.to_vec()).collect();
            assert!(!verify(&cut, &[], &key).is_valid(), "line {skip} removed");
        }
        let text = String::from_utf8(bytes.clone()).expect("text");
        let edited = text.replacen("\"z\":3", "\"z\":4", 1);
        assert_eq!(verify(edited.as_bytes(), &[], &key).broken.expect("broken").broken_at, 4);
        let (replaced, _) = chain(4);
        assert!(
            !verify(&replaced, &[head.anchor(&identity(), 0)], &key).is_valid(),
            "a whole new chain breaks the anchor"
        );
        let forged = head.anchor(&Identity::from_seed(&[2; 32]), 0);
        assert!(!verify(&bytes, &[forged], &key).is_valid());
    }

    #[test]
    fn a_torn_last_line_is_cut_and_recorded() {
        let (bytes, _) = chain(3);
        let torn = &bytes[..bytes.len() - 10];
        let report = verify(torn, &[], identity().public());
        assert!(report.is_valid());
        assert_eq!(report.head.count, 2);
        let tail = report.torn.expect("torn");
        assert!(torn.ends_with(&tail));
        assert_eq!(torn_details(&tail)["tornBytes"], json!(tail.len()));
    }

    #[test]
    fn anchors_come_every_256_entries() {
        let due: Vec<u64> =
            (0..600).filter(|n| Head { count: *n, last_hash: String::new() }.anchor_due()).collect();
        assert_eq!(due, [256, 512]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            verify(&bytes, &[], identity().public());
        }

        #[test]
        fn flipped_bytes_are_found(at in 0usize..600, bit in 0u8..7) {
            let (mut bytes, head) = chain(4);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let report = verify(&bytes, &[head.anchor(&identity(), 0)], identity().public());
            prop_assert!(!report.is_valid() || report.torn.is_some());
        }
    }
}
