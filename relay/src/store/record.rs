//! What stands in the log of the queue, byte for byte. Integers are little-endian.
//!
//! A segment is a header and batches; a batch is what one group of operations wrote, with one checksum, so that of a
//! write that was cut off nothing is read:
//!
//! ```text
//! segment  "tlqueue1" id:u32 synced:u32 boot:[16] crc:u32
//! batch    "TLQB" len:u32 crc:u32 records
//! mail     4 seq:u64 recipient:[16] sender:[16] stored:i64 expires:i64 content:u64 mark:u8 id_len:u8 len:u32
//!            id nonce:[24] body and tag, by AES-256-GCM; mark: 1 of a stranger, 2 control mail
//! mail     1 as 4, with a SHA-256 instead of content, by XChaCha20-Poly1305; only read
//! settled  2 at:i64 count:u32 (seq:u64 recipient:[16] key:u64 content:u64)*     content 0: not to be remembered
//! recent   3 count:u32 (at:u32 key:u64 content:u64)*
//! ```
//!
//! Mail and what settles it stand in one log; what is still remembered of it when its segment goes stands in another.

use threadline::{Fingerprint, MessageId};

use super::body::{BodyCipher, NONCE, Sealer, TAG};

/// Bytes of a segment header.
pub const SEGMENT_HEADER: usize = 36;
/// Bytes of a batch header.
pub const BATCH_HEADER: usize = 12;
const SEGMENT_MAGIC: &[u8; 8] = b"tlqueue1";
const BATCH_MAGIC: &[u8; 4] = b"TLQB";
/// Bytes of a mail record before the id.
const MAIL_HEADER: usize = 71;
/// The same with a SHA-256.
const MAIL_HEADER_1: usize = 95;
/// Numbers are given one by one and never come near this.
const MOST_SEQ: u64 = 1 << 62;
const SETTLED_ENTRY: usize = 40;
const RECENT_ENTRY: usize = 20;

const MAIL_1: u8 = 1;
const SETTLED: u8 = 2;
const RECENT: u8 = 3;
const MAIL: u8 = 4;

const STRANGER: u8 = 1;
const CONTROL: u8 = 2;

/// The first bytes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Its number.
    pub id: u32,
    /// Whether each batch with mail was synced before it was answered.
    pub synced: bool,
    /// Which start of the operating system wrote it.
    pub boot: [u8; 16],
}

impl SegmentHeader {
    /// Its bytes.
    pub fn to_bytes(self) -> [u8; SEGMENT_HEADER] {
        let mut bytes = [0; SEGMENT_HEADER];
        bytes[..8].copy_from_slice(SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&self.id.to_le_bytes());
        bytes[12..16].copy_from_slice(&u32::from(self.synced).to_le_bytes());
        bytes[16..32].copy_from_slice(&self.boot);
        let crc = crc32fast::hash(&bytes[..32]);
        bytes[32..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads them.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; SEGMENT_HEADER] = bytes.first_chunk()?;
        let mut rest = Reader(bytes);
        (rest.take::<8>()? == *SEGMENT_MAGIC).then_some(())?;
        let (id, synced, boot) = (rest.u32()?, rest.u32()? != 0, rest.take()?);
        (rest.u32()? == crc32fast::hash(&bytes[..32])).then_some(Self { id, synced, boot })
    }
}

/// Fills in the header of a batch that was built behind [`BATCH_HEADER`] empty bytes.
pub fn seal_batch(batch: &mut [u8]) {
    let Some((header, records)) = batch.split_first_chunk_mut::<BATCH_HEADER>() else { return };
    header[..4].copy_from_slice(BATCH_MAGIC);
    header[4..8].copy_from_slice(&(records.len() as u32).to_le_bytes());
    header[8..].copy_from_slice(&crc32fast::hash(records).to_le_bytes());
}

/// The records of the whole, undamaged batch at the start of `bytes`.
pub fn open_batch(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = Reader(bytes);
    (rest.take::<4>()? == *BATCH_MAGIC).then_some(())?;
    let (len, crc) = (rest.u32()?, rest.u32()?);
    let records = rest.0.get(..len as usize)?;
    (crc32fast::hash(records) == crc).then_some(records)
}

/// Where the next undamaged batch begins, at or behind the start of `bytes`.
pub fn find_batch(bytes: &[u8]) -> Option<usize> {
    let candidates = bytes.windows(BATCH_MAGIC.len()).enumerate().filter(|(_, at)| *at == BATCH_MAGIC);
    candidates
        .map(|(at, _)| at)
        .find(|at| open_batch(&bytes[*at..]).is_some_and(|records| !records.is_empty()))
}

/// A message in custody without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// Number of the message.
    pub seq: u64,
    /// Who shall get it.
    pub recipient: Fingerprint,
    /// Who sent it.
    pub sender: Fingerprint,
    /// When it was stored, in Unix milliseconds.
    pub stored_ms: i64,
    /// When it is given up, in Unix milliseconds.
    pub expires_ms: i64,
    /// What is compared of the envelope: 63 bits, never 0.
    pub content: u64,
    /// Whether the sender was no correspondent of the recipient.
    pub stranger: bool,
    /// Whether it is control mail, which has an allowance of its own.
    pub control: bool,
    /// Id given by the sender.
    pub id: MessageId,
    /// Bytes of the envelope.
    pub size: u32,
}

/// A message that left custody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// Number of the message.
    pub seq: u64,
    /// Whose it was.
    pub recipient: Fingerprint,
    /// Key of its place in the index.
    pub key: u64,
    /// What is compared of its envelope, or 0 when a repeat may be taken again.
    pub content: u64,
}

/// A message that was confirmed a short while ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recent {
    /// When, in Unix seconds.
    pub at_s: u32,
    /// Key of its place in the index.
    pub key: u64,
    /// What is compared of its envelope.
    pub content: u64,
}

/// One record.
#[derive(Debug, Clone, PartialEq)]
pub enum Record<'a> {
    /// A message and its sealed body.
    Mail(Mail, &'a [u8]),
    /// Messages that left custody at this Unix millisecond.
    Settled(i64, Vec<Settled>),
    /// Memories of a segment that is gone.
    Recent(Vec<Recent>),
}

/// Appends a mail record; its header is authenticated with the body.
pub(crate) fn write_mail(mail: &Mail, body: &[u8], sealer: &mut Sealer, out: &mut Vec<u8>) {
    let start = out.len();
    out.reserve(MAIL_HEADER + mail.id.as_str().len() + NONCE + body.len() + TAG);
    out.push(MAIL);
    out.extend(mail.seq.to_le_bytes());
    out.extend(mail.recipient.as_bytes());
    out.extend(mail.sender.as_bytes());
    out.extend(mail.stored_ms.to_le_bytes());
    out.extend(mail.expires_ms.to_le_bytes());
    out.extend(mail.content.to_le_bytes());
    out.push((u8::from(mail.stranger) * STRANGER) | (u8::from(mail.control) * CONTROL));
    let id = mail.id.as_str().as_bytes();
    // Ids have at most 128 bytes (`MessageId`).
    out.push(id.len() as u8);
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(id);
    sealer.seal(start, body, out);
}

/// Bytes of the mail record that begins with these, once there are enough to tell.
pub fn mail_length(bytes: &[u8]) -> Option<usize> {
    let header = match *bytes.first()? {
        MAIL => bytes.get(..MAIL_HEADER)?,
        MAIL_1 => bytes.get(..MAIL_HEADER_1)?,
        _ => return None,
    };
    let &[.., id, a, b, c, d] = header else { return None };
    let body = u32::from_le_bytes([a, b, c, d]) as usize;
    Some(header.len() + usize::from(id) + NONCE + body + TAG)
}

/// Appends a record of messages that left custody.
pub fn write_settled(at_ms: i64, entries: &[Settled], out: &mut Vec<u8>) {
    out.push(SETTLED);
    out.extend(at_ms.to_le_bytes());
    out.extend((entries.len() as u32).to_le_bytes());
    for entry in entries {
        out.extend(entry.seq.to_le_bytes());
        out.extend(entry.recipient.as_bytes());
        out.extend(entry.key.to_le_bytes());
        out.extend(entry.content.to_le_bytes());
    }
}

/// Appends a record of memories.
pub fn write_recent(entries: &[Recent], out: &mut Vec<u8>) {
    out.push(RECENT);
    out.extend((entries.len() as u32).to_le_bytes());
    for entry in entries {
        out.extend(entry.at_s.to_le_bytes());
        out.extend(entry.key.to_le_bytes());
        out.extend(entry.content.to_le_bytes());
    }
}

/// Reads the record at the start of `bytes`; returns how many bytes it has.
pub fn read(bytes: &[u8]) -> Option<(Record<'_>, usize)> {
    let mut rest = Reader(bytes);
    let record = match rest.u8()? {
        kind @ (MAIL | MAIL_1) => {
            let seq = rest.u64().filter(|seq| *seq <= MOST_SEQ)?;
            let (recipient, sender) = (rest.address()?, rest.address()?);
            let (stored_ms, expires_ms) = (rest.i64()?, rest.i64()?);
            let content = match kind {
                MAIL => rest.u64()?,
                _ => (u64::from_le_bytes(*rest.take::<32>()?.first_chunk()?) >> 1).max(1),
            };
            let mark = rest.u8()?;
            let (stranger, control) = (mark & STRANGER != 0, mark & CONTROL != 0);
            let (id, size) = (usize::from(rest.u8()?), rest.u32()?);
            let id = std::str::from_utf8(rest.slice(id)?).ok()?.parse().ok()?;
            let sealed = rest.slice(NONCE + size as usize + TAG)?;
            Record::Mail(
                Mail { seq, recipient, sender, stored_ms, expires_ms, content, stranger, control, id, size },
                sealed,
            )
        }
        SETTLED => {
            let (at_ms, count) = (rest.i64()?, rest.u32()? as usize);
            let mut entries = Reader(rest.slice(count.checked_mul(SETTLED_ENTRY)?)?);
            let mut settled = Vec::with_capacity(count);
            for _ in 0..count {
                let (seq, recipient) = (entries.u64()?, entries.address()?);
                settled.push(Settled { seq, recipient, key: entries.u64()?, content: entries.u64()? });
            }
            Record::Settled(at_ms, settled)
        }
        RECENT => {
            let count = rest.u32()? as usize;
            let mut entries = Reader(rest.slice(count.checked_mul(RECENT_ENTRY)?)?);
            let mut recent = Vec::with_capacity(count);
            for _ in 0..count {
                recent.push(Recent { at_s: entries.u32()?, key: entries.u64()?, content: entries.u64()? });
            }
            Record::Recent(recent)
        }
        _ => return None,
    };
    Some((record, bytes.len() - rest.0.len()))
}

/// Body of the mail record in `bytes`, unless any byte of it was changed.
pub fn open_body(bytes: &[u8], cipher: &BodyCipher) -> Option<Vec<u8>> {
    let (Record::Mail(_, sealed), length) = read(bytes)? else { return None };
    let header = bytes.get(..length - sealed.len())?;
    if header.first() == Some(&MAIL_1) {
        cipher.open(header, sealed)
    } else {
        cipher.open_logged(header, sealed)
    }
}

/// The unread rest of some bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let (slice, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(slice)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*chunk)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.take().map(i64::from_le_bytes)
    }

    fn address(&mut self) -> Option<Fingerprint> {
        self.take().map(Fingerprint::from_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mail(seq: u64, id: &str, body: &[u8]) -> Mail {
        Mail {
            seq,
            recipient: Fingerprint::from_bytes([2; 16]),
            sender: Fingerprint::from_bytes([1; 16]),
            stored_ms: 5,
            expires_ms: 6,
            content: 7,
            stranger: true,
            control: seq.is_multiple_of(2),
            id: id.parse().expect("id"),
            size: body.len() as u32,
        }
    }

    #[test]
    fn a_body_opens_only_behind_its_own_header() {
        let cipher = BodyCipher::new(&[1; 32]);
        let mut out = Vec::new();
        let header = mail(7, "m1", b"hello");
        write_mail(&header, b"hello", &mut cipher.sealer(), &mut out);
        assert_eq!(mail_length(&out), Some(out.len()));
        assert!(!out.windows(5).any(|w| w == b"hello"));
        assert_eq!(open_body(&out, &cipher).as_deref(), Some(&b"hello"[..]));
        for at in 0..out.len() {
            let mut changed = out.clone();
            changed[at] ^= 1;
            assert_eq!(open_body(&changed, &cipher), None, "byte {at}");
        }
    }

    #[test]
    fn mail_of_an_earlier_form_is_read() {
        let cipher = BodyCipher::new(&[1; 32]);
        let mut out = Vec::new();
        write_mail(&mail(7, "m1", b""), b"", &mut cipher.sealer(), &mut out);
        let content = 57;
        assert_eq!(out[content..content + 8], 7_u64.to_le_bytes());
        let mut old = vec![MAIL_1];
        old.extend_from_slice(&out[1..content]);
        old.extend([2; 32]);
        old.extend_from_slice(&out[content + 8..MAIL_HEADER]);
        old.extend_from_slice(b"m1");
        cipher.seal(0, b"", &mut old);
        let Some((Record::Mail(read, _), length)) = read(&old) else { panic!("mail") };
        assert_eq!(read, Mail { content: 0x0202_0202_0202_0202 >> 1, ..mail(7, "m1", b"") });
        assert_eq!((Some(length), length), (mail_length(&old), old.len()));
        assert_eq!(open_body(&old, &cipher).as_deref(), Some(&b""[..]));
    }

    fn batch(seqs: &[u64]) -> Vec<u8> {
        let mut out = vec![0; BATCH_HEADER];
        for seq in seqs {
            write_mail(&mail(*seq, "m", b"x"), b"x", &mut BodyCipher::new(&[1; 32]).sealer(), &mut out);
        }
        seal_batch(&mut out);
        out
    }

    proptest! {
        #[test]
        fn records_come_back_as_they_were_written(
            at in any::<i64>(),
            entries in proptest::collection::vec((any::<u64>(), any::<[u8; 16]>(), any::<u64>(), any::<u64>()), 0..40),
        ) {
            let settled: Vec<Settled> = entries.iter().map(|(seq, to, key, content)| Settled {
                seq: *seq, recipient: Fingerprint::from_bytes(*to), key: *key, content: *content,
            }).collect();
            let recent: Vec<Recent> = entries.iter().map(|(seq, _, key, content)| Recent {
                at_s: *seq as u32, key: *key, content: *content,
            }).collect();
            let mut out = Vec::new();
            write_settled(at, &settled, &mut out);
            let first = out.len();
            write_recent(&recent, &mut out);
            prop_assert_eq!(read(&out), Some((Record::Settled(at, settled), first)));
            prop_assert_eq!(read(&out[first..]), Some((Record::Recent(recent), out.len() - first)));
        }

        #[test]
        fn a_batch_is_read_whole_or_not_at_all(cut in 0usize..400, flip in 0usize..400) {
            let whole = batch(&[1, 2]);
            prop_assert!(open_batch(&whole).is_some());
            prop_assert_eq!(open_batch(&whole[..cut.min(whole.len() - 1)]), None);
            let mut changed = whole.clone();
            let at = flip % whole.len();
            changed[at] ^= 0x10;
            prop_assert_eq!(open_batch(&changed), None);
            changed.extend_from_slice(&whole);
            prop_assert_eq!(find_batch(&changed), Some(whole.len()));
        }

        #[test]
        fn arbitrary_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u8..5) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = kind; }
            let _ = read(&bytes);
            let _ = mail_length(&bytes);
            let _ = open_body(&bytes, &BodyCipher::new(&[0; 32]));
            let _ = SegmentHeader::read(&bytes);
            let _ = find_batch(&bytes);
        }
    }
}
