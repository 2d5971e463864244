//! Devices of identities that speak v2: certificates and lists, lease fences, prekeys, address records. What is stored
//! here was verified before (`threadline-wire.md` §4.2); nothing is given out that is not in the tables.

use rusqlite::{Connection, OptionalExtension as _, params};
use threadline::Fingerprint;
use threadline::v2::frames::{DeviceKeys, SignedBytes};
use threadline::v2::objects::{DeviceList, Signed};
use threadline::v2::{Bin, Blob, DeviceId};

use super::search;

/// One-time keys kept per device.
const KEPT: usize = 100;
/// The last ones are for correspondents of their owner.
const FOR_CORRESPONDENTS: u32 = 25;
/// A lease epoch rises by no more than this at a time.
const LEASE_STEP: u64 = 1_000;

/// Tables in which rows of an identity are, by its key.
pub const TABLES: [&str; 4] = ["device_lists", "devices", "one_time_keys", "address_records"];

/// A certificate or list as it was signed, with its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// Bytes and signature.
    pub signed: SignedBytes,
    /// `seq` in them.
    pub seq: u64,
}

/// A device of a key, and the list that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// The identity.
    pub key: [u8; 32],
    /// The device.
    pub device: DeviceId,
    /// Its certificate.
    pub cert: Numbered,
    /// The list.
    pub list: Numbered,
    /// Devices in the list.
    pub listed: Vec<DeviceId>,
}

/// A one-time or fallback key whose signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// Its number.
    pub key_id: u64,
    /// Bytes and signature.
    pub signed: SignedBytes,
    /// Unix milliseconds.
    pub not_after: u64,
}

/// Operations on devices.
#[derive(Debug, Clone)]
pub enum DeviceOp {
    /// When an identity was first here, if it was.
    Age {
        /// Its key.
        key: [u8; 32],
    },
    /// A device logs in; nothing is stored of identities that the login refused.
    Greet {
        /// Who.
        facts: Box<DeviceFacts>,
        /// Lease epoch, where the device wants to be the active one.
        lease: Option<u64>,
        /// Whether logins by v1 are to be refused.
        no_v1: bool,
        /// Whether others are not to know it.
        private: bool,
    },
    /// A session wants another lease epoch.
    Lease {
        /// Whose.
        key: [u8; 32],
        /// The epoch.
        epoch: u64,
    },
    /// A device leaves keys.
    PutKeys {
        /// Who.
        facts: Box<DeviceFacts>,
        /// One-time keys.
        one_time: Vec<StoredKey>,
        /// Fallback key.
        fallback: Option<StoredKey>,
        /// Now, in Unix milliseconds.
        now_ms: i64,
    },
    /// Somebody wants to start sessions with the devices of an address.
    ClaimKeys {
        /// First 16 bytes of the key, or all of it.
        to: Vec<u8>,
        /// Whether the owner wrote to the one who asks.
        correspondent: bool,
        /// Whether one-time keys may be given out at all.
        one_time: bool,
        /// Now, in Unix milliseconds.
        now_ms: i64,
    },
    /// What is known of somebody.
    Find {
        /// First 16 bytes of the key, or all of it.
        to: Vec<u8>,
        /// Now, in Unix milliseconds.
        now_ms: i64,
    },
    /// Leaves an address record.
    Address {
        /// Whose.
        key: [u8; 32],
        /// The record.
        record: Box<Numbered>,
        /// Unix milliseconds.
        expires_ms: u64,
    },
    /// Searches the directory.
    Search(Box<search::Search>, i64),
}

impl DeviceOp {
    /// Whose devices it is about; `None` for what concerns no devices.
    pub fn identity(&self) -> Option<Fingerprint> {
        let bytes: &[u8] = match self {
            Self::Greet { facts, .. } | Self::PutKeys { facts, .. } => &facts.key,
            Self::Lease { key, .. } | Self::Address { key, .. } => key,
            Self::ClaimKeys { to, .. } | Self::Find { to, .. } => to,
            Self::Age { .. } | Self::Search(..) => return None,
        };
        bytes.first_chunk().map(|address| Fingerprint::from_bytes(*address))
    }
}

/// Whether a lease epoch holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// It is the highest.
    Holds,
    /// There is a higher one.
    Stale,
    /// It rises by more than a step.
    TooFar,
}

/// Answers about devices.
#[derive(Debug, Clone)]
pub enum DeviceAnswer {
    /// To [`DeviceOp::Age`]: first login in Unix milliseconds, and whether work was proven.
    Age(Option<(i64, bool)>),
    /// To [`DeviceOp::Greet`].
    Greeted(Greeted),
    /// To [`DeviceOp::Lease`]: the highest epoch and what became of the one that was asked for.
    Leased(u64, Lease),
    /// To [`DeviceOp::PutKeys`]: one-time keys there and the highest number ever.
    Kept {
        /// One-time keys there.
        have: u16,
        /// Highest number ever taken.
        mark: u64,
    },
    /// To [`DeviceOp::ClaimKeys`]: one key per device, and the list.
    Bundle(Option<(Vec<DeviceKeys>, SignedBytes)>),
    /// To [`DeviceOp::Find`].
    Found(Option<Box<Known>>),
    /// To [`DeviceOp::Address`] and operations on identities that are unknown.
    Done,
    /// To [`DeviceOp::Search`].
    Page(search::Page),
}

/// What the tables say to a device that logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeted {
    /// Whether a newer list does not name it, or names it as removed.
    pub removed: bool,
    /// Highest number of a certificate and of a prekey.
    pub mark: (u64, u64),
    /// Highest lease epoch.
    pub lease: u64,
    /// What became of the one that was asked for.
    pub granted: Lease,
}

/// What is known of an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its key.
    pub key: [u8; 32],
    /// Name in the directory, where it is shown.
    pub name: String,
    /// Certificates of listed devices.
    pub certs: Vec<SignedBytes>,
    /// Its list.
    pub list: Option<SignedBytes>,
    /// Its address record.
    pub address: Option<SignedBytes>,
    /// Whether others are not to know it.
    pub private: bool,
}

/// Runs one operation inside the caller's transaction.
pub fn apply(c: &Connection, op: &DeviceOp) -> rusqlite::Result<DeviceAnswer> {
    match op {
        DeviceOp::Age { key } => age(c, key).map(DeviceAnswer::Age),
        DeviceOp::Greet { facts, lease, no_v1, private } => {
            greet(c, facts, *lease, *no_v1, *private).map(DeviceAnswer::Greeted)
        }
        DeviceOp::Lease { key, epoch } => {
            let stored = lease_of(c, key)?;
            let granted = judge(stored, *epoch);
            let highest = if granted == Lease::Holds { *epoch } else { stored };
            keep_lease(c, key, highest)?;
            Ok(DeviceAnswer::Leased(highest, granted))
        }
        DeviceOp::PutKeys { facts, one_time, fallback, now_ms } => {
            put(c, facts, one_time, fallback.as_ref(), *now_ms)
        }
        DeviceOp::ClaimKeys { to, correspondent, one_time, now_ms } => {
            claim(c, to, *correspondent, *one_time, *now_ms).map(DeviceAnswer::Bundle)
        }
        DeviceOp::Find { to, now_ms } => {
            find(c, to, *now_ms).map(|known| DeviceAnswer::Found(known.map(Box::new)))
        }
        DeviceOp::Address { key, record, expires_ms } => {
            c.prepare_cached(
                "INSERT INTO address_records(public_key, record, sig, seq, expires_at) VALUES (?1,?2,?3,?4,?5)
                 ON CONFLICT(public_key) DO UPDATE SET record=?2, sig=?3, seq=?4, expires_at=?5 WHERE seq < ?4",
            )?
            .execute(params![key, record.signed.0.0, record.signed.1.0, signed(record.seq), signed(*expires_ms)])?;
            Ok(DeviceAnswer::Done)
        }
        DeviceOp::Search(query, now_ms) => search::search(c, query, *now_ms).map(DeviceAnswer::Page),
    }
}

/// Whether an identity wants no logins by v1.
pub fn refuses_v1(c: &Connection, key: &[u8; 32]) -> rusqlite::Result<bool> {
    c.prepare_cached("SELECT 1 FROM device_lists WHERE public_key=?1 AND no_v1=1")?.exists([key])
}

/// Removes everything that was stored of an identity.
pub fn erase(c: &Connection, key: &[u8; 32]) -> rusqlite::Result<()> {
    for table in TABLES {
        c.execute(&format!("DELETE FROM {table} WHERE public_key=?1"), [key])?;
    }
    Ok(())
}

fn age(c: &Connection, key: &[u8; 32]) -> rusqlite::Result<Option<(i64, bool)>> {
    let row = c
        .prepare_cached("SELECT at, tier_counts FROM first_seen WHERE public_key=?1")?
        .query_row([key], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))
        .optional()?;
    Ok(row.map(|(at, counts)| {
        let counts: super::TierCounts = serde_json::from_str(&counts).unwrap_or_default();
        (at, counts.worked)
    }))
}

fn greet(
    c: &Connection,
    facts: &DeviceFacts,
    lease: Option<u64>,
    no_v1: bool,
    private: bool,
) -> rusqlite::Result<Greeted> {
    let nobody = Greeted { removed: false, mark: (0, 0), lease: 0, granted: Lease::Stale };
    // The login in the same transaction made the row, unless it refused.
    if !c.prepare_cached("SELECT 1 FROM first_seen WHERE public_key=?1")?.exists([facts.key])? {
        return Ok(nobody);
    }
    if !keep_list(c, facts)? {
        return Ok(Greeted { removed: true, ..nobody });
    }
    let mark = keep_device(c, facts)?;
    let stored = lease_of(c, &facts.key)?;
    let granted = lease.map_or(Lease::Stale, |epoch| judge(stored, epoch));
    let highest = lease.filter(|_| granted == Lease::Holds).unwrap_or(stored);
    keep_lease(c, &facts.key, highest)?;
    c.prepare_cached(
        "UPDATE device_lists SET no_v1=?2, private=?3 WHERE public_key=?1 AND (no_v1<>?2 OR private<>?3)",
    )?
    .execute(params![facts.key, no_v1, private])?;
    Ok(Greeted { removed: false, mark, lease: highest, granted })
}

/// Takes a newer list. Returns whether the device is in the one that counts now.
fn keep_list(c: &Connection, facts: &DeviceFacts) -> rusqlite::Result<bool> {
    let stored: Option<(i64, Vec<u8>, [u8; 64])> = c
        .prepare_cached("SELECT seq, list, list_sig FROM device_lists WHERE public_key=?1")?
        .query_row([facts.key], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let seq = signed(facts.list.seq);
    if let Some((known, bytes, signature)) = stored.filter(|(known, ..)| *known >= seq) {
        if known == seq && bytes == facts.list.signed.0.0 {
            return Ok(true);
        }
        let counts = Signed::<DeviceList>::parse(&bytes, &signature);
        return Ok(counts.is_ok_and(|list| list.object().devices.contains(&facts.device)));
    }
    c.prepare_cached(
        "INSERT INTO device_lists(public_key, address, list, list_sig, seq) VALUES (?1,?2,?3,?4,?5)
         ON CONFLICT(public_key) DO UPDATE SET list=?3, list_sig=?4, seq=?5",
    )?
    .execute(params![
        facts.key,
        facts.key.get(..16),
        facts.list.signed.0.0,
        facts.list.signed.1.0,
        seq
    ])?;
    let mut gone = c.prepare_cached("SELECT device FROM devices WHERE public_key=?1")?;
    let devices: Vec<[u8; 16]> = gone.query_map([facts.key], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for device in devices.into_iter().filter(|device| !facts.listed.contains(&Bin(*device))) {
        c.execute("DELETE FROM one_time_keys WHERE public_key=?1 AND device=?2", params![facts.key, device])?;
        c.execute("DELETE FROM devices WHERE public_key=?1 AND device=?2", params![facts.key, device])?;
    }
    Ok(true)
}

/// Takes a newer certificate. Returns the highest numbers of certificate and prekey.
fn keep_device(c: &Connection, facts: &DeviceFacts) -> rusqlite::Result<(u64, u64)> {
    c.prepare_cached(
        "INSERT INTO devices(public_key, device, cert, cert_sig, seq) VALUES (?1,?2,?3,?4,?5)
         ON CONFLICT(public_key, device) DO UPDATE SET cert=?3, cert_sig=?4, seq=?5 WHERE seq < ?5",
    )?
    .execute(params![
        facts.key,
        facts.device.0,
        facts.cert.signed.0.0,
        facts.cert.signed.1.0,
        signed(facts.cert.seq)
    ])?;
    c.prepare_cached("SELECT seq, key_mark FROM devices WHERE public_key=?1 AND device=?2")?
        .query_row(params![facts.key, facts.device.0], |row| {
            Ok((super::unsigned(row.get(0)?), super::unsigned(row.get(1)?)))
        })
}

fn lease_of(c: &Connection, key: &[u8; 32]) -> rusqlite::Result<u64> {
    let stored = c
        .prepare_cached("SELECT lease FROM device_lists WHERE public_key=?1")?
        .query_row([key], |row| row.get(0))
        .optional()?;
    Ok(stored.map_or(0, super::unsigned))
}

fn keep_lease(c: &Connection, key: &[u8; 32], epoch: u64) -> rusqlite::Result<()> {
    c.prepare_cached("UPDATE device_lists SET lease=?2 WHERE public_key=?1 AND lease<?2")?
        .execute(params![key, signed(epoch)])
        .map(drop)
}

fn judge(stored: u64, epoch: u64) -> Lease {
    match epoch.checked_sub(stored) {
        None => Lease::Stale,
        Some(step) if step > LEASE_STEP => Lease::TooFar,
        Some(_) => Lease::Holds,
    }
}

fn put(
    c: &Connection,
    facts: &DeviceFacts,
    one_time: &[StoredKey],
    fallback: Option<&StoredKey>,
    now_ms: i64,
) -> rusqlite::Result<DeviceAnswer> {
    if !keep_list(c, facts)? {
        return Ok(DeviceAnswer::Done);
    }
    let (_, mut mark) = keep_device(c, facts)?;
    let (key, device) = (&facts.key, &facts.device.0);
    c.prepare_cached("DELETE FROM one_time_keys WHERE public_key=?1 AND device=?2 AND not_after<=?3")?
        .execute(params![key, device, now_ms])?;
    let before = mark;
    let mut have = count(c, key, device)? as usize;
    for new in one_time.iter().filter(|new| new.key_id > before) {
        mark = mark.max(new.key_id);
        if have >= KEPT {
            continue;
        }
        let StoredKey { key_id, signed: (bytes, signature), not_after } = new;
        have += c
            .prepare_cached("INSERT OR IGNORE INTO one_time_keys VALUES (?1,?2,?3,?4,?5,?6)")?
            .execute(params![key, device, signed(*key_id), bytes.0, signature.0, signed(*not_after)])?;
    }
    if let Some(StoredKey { key_id, signed: (bytes, signature), not_after }) =
        fallback.filter(|new| new.key_id > before)
    {
        mark = mark.max(*key_id);
        c.prepare_cached(
            "UPDATE devices SET fallback=?3, fallback_sig=?4, fallback_until=?5 WHERE public_key=?1 AND device=?2",
        )?
        .execute(params![key, device, bytes.0, signature.0, signed(*not_after)])?;
    }
    c.prepare_cached("UPDATE devices SET key_mark=?3 WHERE public_key=?1 AND device=?2")?
        .execute(params![key, device, signed(mark)])?;
    Ok(DeviceAnswer::Kept { have: u16::try_from(have).unwrap_or(u16::MAX), mark })
}

fn count(c: &Connection, key: &[u8; 32], device: &[u8; 16]) -> rusqlite::Result<u32> {
    c.prepare_cached("SELECT count(*) FROM one_time_keys WHERE public_key=?1 AND device=?2")?
        .query_row(params![key, device], |row| row.get(0))
}

fn claim(
    c: &Connection,
    to: &[u8],
    correspondent: bool,
    one_time: bool,
    now_ms: i64,
) -> rusqlite::Result<Option<(Vec<DeviceKeys>, SignedBytes)>> {
    let Some((key, list)) = list_of(c, to)? else { return Ok(None) };
    let mut devices = c.prepare_cached(
        "SELECT device, cert, cert_sig, fallback, fallback_sig, fallback_until FROM devices WHERE public_key=?1",
    )?;
    let rows = devices.query_map([key], |row| {
        let device: [u8; 16] = row.get(0)?;
        let cert = (Blob(row.get(1)?), Bin(row.get(2)?));
        let fallback: Option<(Vec<u8>, [u8; 64])> = row.get::<_, Option<_>>(3)?.zip(row.get(4)?);
        Ok((device, cert, fallback.filter(|_| row.get::<_, i64>(5).is_ok_and(|until| until > now_ms))))
    })?;
    let mut bundle = Vec::new();
    for row in rows {
        let (device, (cert, cert_sig), fallback) = row?;
        let there = count(c, &key, &device)?;
        let may = one_time && (correspondent || there > FOR_CORRESPONDENTS);
        let taken: Option<(Vec<u8>, [u8; 64])> = if may {
            c.prepare_cached(
                "DELETE FROM one_time_keys WHERE public_key=?1 AND device=?2 AND key_id=(
                   SELECT min(key_id) FROM one_time_keys WHERE public_key=?1 AND device=?2 AND not_after>?3)
                 RETURNING prekey, sig",
            )?
            .query_row(params![key, device, now_ms], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?
        } else {
            None
        };
        let kind = u8::from(taken.is_none());
        if let Some((prekey, sig)) = taken.or(fallback) {
            bundle.push((cert, cert_sig, Blob(prekey), Bin(sig), kind));
        }
    }
    Ok(Some((bundle, list)))
}

fn list_of(c: &Connection, to: &[u8]) -> rusqlite::Result<Option<([u8; 32], SignedBytes)>> {
    let row = c
        .prepare_cached("SELECT public_key, list, list_sig FROM device_lists WHERE address=?1")?
        .query_row([to.get(..16)], |row| Ok((row.get::<_, [u8; 32]>(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let fits = row.filter(|(key, ..)| to.len() < 32 || key == to);
    Ok(fits.map(|(key, list, sig)| (key, (Blob(list), Bin(sig)))))
}

fn find(c: &Connection, to: &[u8], now_ms: i64) -> rusqlite::Result<Option<Known>> {
    let key = c
        .prepare_cached("SELECT public_key FROM first_seen WHERE address=?1")?
        .query_row([to.get(..16)], |row| row.get::<_, [u8; 32]>(0))
        .optional()?;
    let Some(key) = key.filter(|key| to.len() < 32 || key == to) else { return Ok(None) };
    let entry = search::entry(c, &key)?.filter(|entry| entry.is_visible(now_ms));
    let mut certs = c.prepare_cached("SELECT cert, cert_sig FROM devices WHERE public_key=?1")?;
    let certs = certs
        .query_map([key], |row| Ok((Blob(row.get(0)?), Bin(row.get(1)?))))?
        .collect::<rusqlite::Result<Vec<SignedBytes>>>()?;
    let address = c
        .prepare_cached("SELECT record, sig FROM address_records WHERE public_key=?1 AND expires_at>?2")?
        .query_row(params![key, now_ms], |row| Ok((Blob(row.get(0)?), Bin(row.get(1)?))))
        .optional()?;
    let list = list_of(c, &key)?.map(|(_, list)| list);
    let private =
        c.prepare_cached("SELECT 1 FROM device_lists WHERE public_key=?1 AND private=1")?.exists([key])?;
    let name = entry.map(|entry| entry.name).unwrap_or_default();
    Ok(Some(Known { key, name, certs, list, address, private }))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_768_478_400_000;
    const KEY: [u8; 32] = [7; 32];
    const DEVICE: DeviceId = Bin([1; 16]);

    fn database() -> Connection {
        let c = Connection::open_in_memory().expect("memory");
        for migration in super::super::MIGRATIONS {
            c.execute_batch(migration.sql).expect("schema");
        }
        c.execute(
            "INSERT INTO first_seen(public_key, address, at, source) VALUES (?1,?2,?3,?2)",
            params![KEY, &KEY[..16], NOW],
        )
        .expect("known");
        c
    }

    fn numbered(seq: u64, byte: u8) -> Numbered {
        Numbered { signed: (Blob(vec![byte; 4]), Bin([byte; 64])), seq }
    }

    fn facts(list_seq: u64, cert_seq: u64) -> DeviceFacts {
        DeviceFacts {
            key: KEY,
            device: DEVICE,
            cert: numbered(cert_seq, 1),
            list: numbered(list_seq, 2),
            listed: vec![DEVICE],
        }
    }

    fn greet(c: &Connection, facts: DeviceFacts, lease: Option<u64>) -> Greeted {
        let op = DeviceOp::Greet { facts: Box::new(facts), lease, no_v1: false, private: false };
        let Ok(DeviceAnswer::Greeted(greeted)) = apply(c, &op) else { panic!("greeted") };
        greeted
    }

    fn key(key_id: u64) -> StoredKey {
        StoredKey {
            key_id,
            signed: (Blob(key_id.to_be_bytes().into()), Bin([3; 64])),
            not_after: NOW as u64 + 1_000,
        }
    }

    fn put(c: &Connection, ids: impl IntoIterator<Item = u64>, fallback: Option<u64>) -> (u16, u64) {
        let op = DeviceOp::PutKeys {
            facts: Box::new(facts(1, 1)),
            one_time: ids.into_iter().map(key).collect(),
            fallback: fallback.map(key),
            now_ms: NOW,
        };
        let Ok(DeviceAnswer::Kept { have, mark }) = apply(c, &op) else { panic!("kept") };
        (have, mark)
    }

    fn claim(c: &Connection, correspondent: bool, now_ms: i64) -> Option<(Vec<u8>, u8)> {
        let op = DeviceOp::ClaimKeys { to: KEY.to_vec(), correspondent, one_time: true, now_ms };
        let Ok(DeviceAnswer::Bundle(bundle)) = apply(c, &op) else { panic!("bundle") };
        bundle.and_then(|(mut devices, _)| devices.pop()).map(|(_, _, prekey, _, kind)| (prekey.0, kind))
    }

    #[test]
    fn one_time_keys_are_given_out_once_and_the_last_ones_to_correspondents() {
        let c = database();
        assert_eq!(greet(&c, facts(1, 1), Some(0)).granted, Lease::Holds);
        assert_eq!(put(&c, 1..=27, Some(28)), (27, 28));
        assert_eq!(put(&c, 1..=27, None), (27, 28), "numbers that were seen are skipped");
        for id in 1..=2_u64 {
            assert_eq!(claim(&c, false, NOW), Some((id.to_be_bytes().into(), 0)));
        }
        assert_eq!(claim(&c, false, NOW), Some((28_u64.to_be_bytes().into(), 1)), "the fallback key");
        assert_eq!(claim(&c, true, NOW), Some((3_u64.to_be_bytes().into(), 0)));
        assert_eq!(put(&c, 29..=200, None), (100, 200), "a hundred are kept");
        assert_eq!(claim(&c, true, NOW + 1_000), None, "all are too old");
    }

    #[test]
    fn a_lower_list_or_certificate_changes_nothing_and_the_marks_tell_an_old_copy() {
        let c = database();
        greet(&c, facts(1, 1), None);
        put(&c, [3], None);
        greet(&c, facts(5, 9), None);
        let old = greet(&c, facts(4, 2), None);
        assert!(old.removed, "the stored list is no list, so it names nobody");
        assert_eq!(greet(&c, facts(6, 2), None).mark, (9, 3));
        let others = DeviceFacts { device: Bin([2; 16]), listed: vec![Bin([2; 16])], ..facts(7, 1) };
        greet(&c, others, None);
        assert_eq!(claim(&c, true, NOW), None, "the first device is not in the list any more");
    }

    #[test]
    fn the_lease_only_rises_and_not_too_far() {
        let c = database();
        assert_eq!(greet(&c, facts(1, 1), Some(1_000)).granted, Lease::Holds);
        let stale = greet(&c, facts(1, 1), Some(999));
        assert_eq!((stale.granted, stale.lease), (Lease::Stale, 1_000));
        assert_eq!(greet(&c, facts(1, 1), Some(2_001)).granted, Lease::TooFar);
        let Ok(DeviceAnswer::Leased(2_000, Lease::Holds)) =
            apply(&c, &DeviceOp::Lease { key: KEY, epoch: 2_000 })
        else {
            panic!("a step of a thousand")
        };
    }

    #[test]
    fn nothing_is_stored_of_somebody_who_was_not_let_in() {
        let c = database();
        let stranger = DeviceFacts { key: [8; 32], ..facts(1, 1) };
        greet(&c, stranger, Some(5));
        let found = apply(&c, &DeviceOp::Find { to: vec![8; 32], now_ms: NOW });
        assert!(matches!(found, Ok(DeviceAnswer::Found(None))));
        let count: u32 = c.query_row("SELECT count(*) FROM devices", [], |row| row.get(0)).expect("rows");
        assert_eq!(count, 0);
    }
}
