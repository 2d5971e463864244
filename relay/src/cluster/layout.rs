//! Names and settings of what lies in the engine (`relay.md` §15.2, §15.3).

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use threadline::Fingerprint;

use crate::store::{RelayName, Slot};

/// Mail lies in this many streams.
pub(super) const SHARDS: u8 = 16;
/// Longest life of anything in a mail stream; what a message says of itself ends it earlier.
const LONGEST: Duration = Duration::from_hours(720);
/// A message published again within this time is stored once.
const DUPLICATES: Duration = Duration::from_mins(5);
/// Largest stored message: an envelope, its seal and headers.
const MAX_MESSAGE: i32 = 300_000;

/// How the streams are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Copies of each stream.
    pub replicas: usize,
    /// Messages of one sender that wait for one recipient.
    pub per_pair: i64,
    /// Bytes of a mail stream.
    pub stream_bytes: i64,
}

/// The stream of a recipient.
pub(super) fn shard(recipient: &Fingerprint) -> u8 {
    recipient.as_bytes()[0] >> 4
}

/// Name of a mail stream.
pub(super) fn mail_stream(shard: u8) -> String {
    format!("TLQ_{shard:x}")
}

/// Where mail from `sender` for `recipient` lies; control mail has a subject and so a limit of its own.
pub(super) fn mail_subject(recipient: &Fingerprint, sender: &Fingerprint, control: bool) -> String {
    format!("tlq.{:x}.{recipient}.{sender}{}", shard(recipient), if control { ".c" } else { "" })
}

/// Where all mail for `recipient` lies.
pub(super) fn mailbox_subject(recipient: &Fingerprint) -> String {
    format!("tlq.{:x}.{recipient}.>", shard(recipient))
}

/// Recipient and sender of a subject, and whether it is one of control mail.
pub(super) fn parties(subject: &str) -> Option<(Fingerprint, Fingerprint, bool)> {
    let mut parts = subject.strip_prefix("tlq.")?.split('.').skip(1);
    let (recipient, sender) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let control = match parts.next() {
        None => false,
        Some("c") => true,
        Some(_) => return None,
    };
    parts.next().is_none().then_some((recipient, sender, control))
}

/// Where a relay with a session of `recipient` hears of mail.
pub(super) fn wake_subject(recipient: &Fingerprint) -> String {
    format!("tl.wake.{recipient}")
}

/// Where a relay with a session of `sender` hears what became of its messages.
pub(super) fn event_subject(sender: &Fingerprint) -> String {
    format!("tl.evt.{sender}")
}

/// Where a relay hears what others say to it alone.
pub(super) fn relay_subject(relay: RelayName) -> String {
    format!("tl.relay.{}", hex::encode(relay))
}

/// The relay of a key in the bucket of relays.
pub(super) fn relay_name(key: &str) -> Option<RelayName> {
    let mut name = RelayName::default();
    hex::decode_to_slice(key, &mut name).ok()?;
    Some(name)
}

/// Number of a message: in all streams one of its own, and in order for each recipient.
pub(super) fn number(position: u64, shard: u8) -> u64 {
    position * u64::from(SHARDS) + u64::from(shard)
}

/// Position in its stream of the message with a number.
pub(super) fn position(number: u64) -> u64 {
    number / u64::from(SHARDS)
}

/// First position whose number is above `after`.
pub(super) fn first_after(after: u64, shard: u8) -> u64 {
    (after + u64::from(SHARDS) - u64::from(shard)) / u64::from(SHARDS)
}

/// Where the claim of a session lies in its bucket.
pub(super) fn claim_key(address: &Fingerprint, slot: Slot) -> String {
    match slot {
        None => format!("{address}.v1"),
        Some(device) => format!("{address}.{}", hex::encode(device)),
    }
}

/// Whose claim lies under a key.
pub(super) fn claimant(key: &str) -> Option<(Fingerprint, Slot)> {
    let (address, slot) = key.split_once('.')?;
    let address = address.parse().ok()?;
    if slot == "v1" {
        return Some((address, None));
    }
    let mut device = [0; 16];
    hex::decode_to_slice(slot, &mut device).ok()?;
    Some((address, Some(device)))
}

/// Settings of a mail stream.
pub(super) fn mail_config(shard: u8, rules: &Rules) -> Config {
    Config {
        name: mail_stream(shard),
        subjects: vec![format!("tlq.{shard:x}.>")],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: rules.replicas,
        discard: DiscardPolicy::New,
        discard_new_per_subject: true,
        max_messages_per_subject: rules.per_pair,
        max_bytes: rules.stream_bytes,
        max_age: LONGEST,
        max_message_size: MAX_MESSAGE,
        duplicate_window: DUPLICATES,
        allow_direct: true,
        ..Config::default()
    }
}

/// A bucket of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bucket {
    /// Its name.
    pub name: &'static str,
    /// Whether it is kept on disk.
    pub on_disk: bool,
    /// How long a value lives; zero for ever.
    pub life: Duration,
}

/// Which relay has the session of an agent.
pub(super) const PRESENCE: Bucket =
    Bucket { name: "TL_PRESENCE", on_disk: false, life: Duration::from_secs(90) };
/// Which relays are there.
pub(super) const NODES: Bucket = Bucket { name: "TL_NODE", on_disk: false, life: Duration::from_secs(15) };
/// Who was ever here.
pub(super) const SEEN: Bucket = Bucket { name: "TL_SEEN", on_disk: true, life: Duration::ZERO };
/// Who is banned.
pub(super) const BANS: Bucket = Bucket { name: "TL_BAN", on_disk: true, life: Duration::ZERO };
/// The directory.
pub(super) const DIRECTORY: Bucket = Bucket { name: "TL_REG", on_disk: true, life: Duration::ZERO };
/// Who wrote to whom in the last 30 days.
pub(super) const CORRESPONDENTS: Bucket = Bucket { name: "TL_CORR", on_disk: true, life: LONGEST };
/// Devices, keys and leases of an identity.
pub(super) const DEVICES: Bucket = Bucket { name: "TL_DEV", on_disk: true, life: Duration::ZERO };
/// Every bucket.
pub(super) const BUCKETS: [Bucket; 7] = [PRESENCE, NODES, SEEN, BANS, DIRECTORY, CORRESPONDENTS, DEVICES];

/// Settings of the stream under a bucket; the client's own call for it fails against old servers.
pub(super) fn bucket_config(bucket: &Bucket, replicas: usize) -> Config {
    Config {
        name: format!("KV_{}", bucket.name),
        subjects: vec![format!("$KV.{}.>", bucket.name)],
        retention: RetentionPolicy::Limits,
        storage: if bucket.on_disk { StorageType::File } else { StorageType::Memory },
        num_replicas: replicas,
        discard: DiscardPolicy::New,
        max_messages_per_subject: 1,
        max_bytes: -1,
        max_age: bucket.life,
        duplicate_window: if bucket.life.is_zero() { DUPLICATES } else { bucket.life.min(DUPLICATES) },
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_are_in_order_and_read_back(at in 1u64..1 << 40, shard in 0u8..16, step in 0u64..40) {
            let this = number(at, shard);
            prop_assert_eq!(position(this), at);
            prop_assert!(number(at + 1, shard) > this);
            let first = first_after(this.saturating_sub(step), shard);
            prop_assert!(number(first, shard) > this.saturating_sub(step));
            prop_assert!(first == 0 || number(first - 1, shard) <= this.saturating_sub(step));
        }

        #[test]
        fn subjects_read_back(to in any::<[u8; 16]>(), from in any::<[u8; 16]>(), control: bool) {
            let (to, from) = (Fingerprint::from_bytes(to), Fingerprint::from_bytes(from));
            prop_assert_eq!(parties(&mail_subject(&to, &from, control)), Some((to, from, control)));
        }

        #[test]
        fn keys_of_claims_read_back(who in any::<[u8; 16]>(), slot in any::<Option<[u8; 16]>>(), junk in ".{0,80}") {
            let who = Fingerprint::from_bytes(who);
            prop_assert_eq!(claimant(&claim_key(&who, slot)), Some((who, slot)));
            prop_assert_eq!(claimant(&junk), None);
        }
    }
}
