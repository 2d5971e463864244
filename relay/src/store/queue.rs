//! `queue.db`: accepted messages until they are confirmed or expire.

use std::sync::Arc;

use instar_durable::Migration;
use rusqlite::{Connection, OptionalExtension as _, params};
use threadline::{Fingerprint, MessageId};

use super::{BodyCipher, signed, unsigned};

/// Schema of `queue.db`.
pub const MIGRATIONS: &[Migration] = &[Migration {
    sql: "
CREATE TABLE msg(
    seq INTEGER PRIMARY KEY AUTOINCREMENT, rcpt BLOB NOT NULL, sender BLOB NOT NULL, id TEXT NOT NULL,
    body BLOB NOT NULL, size INTEGER NOT NULL, stranger INTEGER NOT NULL, stored_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL, tries INTEGER NOT NULL DEFAULT 0, hash BLOB NOT NULL,
    UNIQUE(sender, rcpt, id)) STRICT;
CREATE INDEX msg_rcpt ON msg(rcpt, seq);
CREATE INDEX msg_expires ON msg(expires_at);
CREATE TABLE qstat(
    rcpt BLOB PRIMARY KEY, n INTEGER NOT NULL, bytes INTEGER NOT NULL,
    strangers INTEGER NOT NULL, strangers_bytes INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE pair(
    sender BLOB NOT NULL, rcpt BLOB NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY(sender, rcpt)) STRICT, WITHOUT ROWID;
CREATE TABLE recent(
    sender BLOB NOT NULL, rcpt BLOB NOT NULL, id TEXT NOT NULL, hash BLOB NOT NULL, at INTEGER NOT NULL,
    PRIMARY KEY(sender, rcpt, id)) STRICT, WITHOUT ROWID;
CREATE INDEX recent_at ON recent(at);
CREATE TABLE corr(
    owner BLOB NOT NULL, peer BLOB NOT NULL, last_at INTEGER NOT NULL,
    PRIMARY KEY(owner, peer)) STRICT, WITHOUT ROWID;
CREATE TABLE known(addr BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
",
}];

/// Milliseconds a confirmed message is remembered, so that a repeat gets the same answer.
const RECENT_MS: i64 = 5 * 60_000;
/// Milliseconds after which somebody one wrote to is no correspondent any more.
const CORRESPONDENT_MS: i64 = 30 * 86_400_000;

/// Limits of custody (`relay.md` §7.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueRules {
    /// The configured limits.
    pub queue: crate::config::Queue,
}

/// A message to take into custody.
#[derive(Debug, Clone)]
pub struct Accept {
    /// Number of the message, higher than every earlier one.
    pub seq: u64,
    /// Who sent it.
    pub sender: Fingerprint,
    /// Who shall get it.
    pub recipient: Fingerprint,
    /// Id, unique per sender and recipient.
    pub id: MessageId,
    /// SHA-256 of the envelope as received.
    pub hash: [u8; 32],
    /// The envelope as received.
    pub body: Arc<str>,
    /// Now, in Unix milliseconds.
    pub now_ms: i64,
    /// When it is given up, in Unix milliseconds.
    pub expires_ms: i64,
}

/// What became of a message that was seen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Never seen, or forgotten.
    Unknown,
    /// In custody until the given Unix millisecond.
    Queued {
        /// Its number.
        seq: u64,
        /// When it is given up.
        expires_ms: i64,
    },
    /// Confirmed by the recipient.
    Delivered,
    /// The id is taken by other bytes.
    OtherBytes,
}

/// Which limit of custody refuses a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueFull {
    /// Messages of one sender for one recipient.
    Sender,
    /// Messages for one recipient, or the share of strangers in them.
    Recipient,
    /// Bytes for one recipient.
    Bytes,
}

/// The outcome of [`QueueOp::Accept`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// Stored.
    Stored {
        /// Whether the recipient wrote to the sender in the last 30 days.
        reply: bool,
        /// Whether nothing else was waiting for the recipient.
        first: bool,
    },
    /// Seen before; nothing was changed. Never [`Standing::Unknown`].
    Repeat(Standing),
    /// A limit refuses it.
    Full(QueueFull),
}

/// A message in custody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Number of the message.
    pub seq: u64,
    /// Who sent it.
    pub sender: Fingerprint,
    /// Its id.
    pub id: MessageId,
    /// The envelope.
    pub body: Arc<str>,
    /// When it is given up, in Unix milliseconds.
    pub expires_ms: i64,
}

/// A message that left custody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departed {
    /// Who sent it.
    pub sender: Fingerprint,
    /// Who should have got it.
    pub recipient: Fingerprint,
    /// Its id.
    pub id: MessageId,
    /// When it was stored, in Unix milliseconds.
    pub stored_ms: i64,
    /// Bytes of its envelope.
    pub size: u64,
    /// Whether nothing else is waiting for the recipient.
    pub last: bool,
}

/// Operations on the queue.
#[derive(Debug, Clone)]
pub enum QueueOp {
    /// Takes a message into custody if it is new and the limits allow.
    Accept(Accept),
    /// What is known of a message, and whether it would be a reply.
    Standing {
        /// Who sent it.
        sender: Fingerprint,
        /// Who should get it.
        recipient: Fingerprint,
        /// Its id.
        id: MessageId,
        /// SHA-256 of its envelope.
        hash: [u8; 32],
        /// Now, in Unix milliseconds.
        now_ms: i64,
    },
    /// An agent logged in: mail for it is no longer mail for an unknown.
    Arrived {
        /// Its address.
        recipient: Fingerprint,
    },
    /// Reads waiting messages in order of acceptance.
    Backlog {
        /// Whose.
        recipient: Fingerprint,
        /// Only messages with a higher number.
        after: u64,
        /// Now, in Unix milliseconds; expired ones are left out.
        now_ms: i64,
        /// Most messages.
        limit: u32,
        /// Most bytes (at least one message is returned).
        bytes: u64,
    },
    /// The recipient confirmed: the messages leave custody.
    Confirm {
        /// Numbers.
        seqs: Vec<u64>,
        /// Now, in Unix milliseconds.
        now_ms: i64,
    },
    /// Offered without confirmation; they will be offered again.
    Returned {
        /// Numbers.
        seqs: Vec<u64>,
    },
    /// Removes expired messages and old memories.
    Expire {
        /// Now, in Unix milliseconds.
        now_ms: i64,
        /// Most messages.
        limit: u32,
    },
}

impl QueueOp {
    /// Bytes of mail that the operation stores.
    pub fn weight(&self) -> usize {
        if let Self::Accept(message) = self { message.body.len() } else { 0 }
    }

    /// Whether the operation only reads and may overtake writes, so that it works on a full disk.
    pub fn is_read(&self) -> bool {
        matches!(self, Self::Backlog { .. })
    }
}

/// Answers of the queue, in the order of [`QueueOp`].
#[derive(Debug, Clone)]
pub enum QueueAnswer {
    /// To [`QueueOp::Accept`].
    Accepted(Accepted),
    /// To [`QueueOp::Standing`].
    Standing {
        /// What is known.
        standing: Standing,
        /// Whether the recipient wrote to the sender in the last 30 days.
        reply: bool,
    },
    /// To [`QueueOp::Arrived`] and [`QueueOp::Returned`].
    Done,
    /// To [`QueueOp::Backlog`].
    Backlog {
        /// The messages.
        rows: Vec<Row>,
        /// Whether more are waiting behind them.
        more: bool,
    },
    /// To [`QueueOp::Confirm`]: those that were still in custody.
    Confirmed(Vec<Departed>),
    /// To [`QueueOp::Expire`].
    Expired(Vec<Departed>),
}

/// Totals of the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueTotals {
    /// Recipients with waiting mail.
    pub recipients: u64,
    /// Waiting messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Highest number ever given out.
pub fn last_seq(connection: &Connection) -> rusqlite::Result<u64> {
    let seq = connection
        .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'msg'", [], |row| row.get::<_, i64>(0))
        .optional()?;
    Ok(seq.map_or(0, unsigned))
}

/// Sums the counters of all recipients.
pub fn totals(connection: &Connection) -> rusqlite::Result<QueueTotals> {
    connection.query_row(
        "SELECT count(*), coalesce(sum(n),0), coalesce(sum(bytes),0) FROM qstat",
        [],
        |row| {
            Ok(QueueTotals {
                recipients: unsigned(row.get(0)?),
                messages: unsigned(row.get(1)?),
                bytes: unsigned(row.get(2)?),
            })
        },
    )
}

/// Runs one operation inside the caller's transaction.
pub fn apply(
    c: &Connection,
    op: &QueueOp,
    rules: &QueueRules,
    cipher: &BodyCipher,
) -> rusqlite::Result<QueueAnswer> {
    match op {
        QueueOp::Accept(message) => accept(c, message, rules, cipher).map(QueueAnswer::Accepted),
        QueueOp::Standing { sender, recipient, id, hash, now_ms } => Ok(QueueAnswer::Standing {
            standing: standing(c, sender, recipient, id, hash)?,
            reply: is_correspondent(c, recipient, sender, *now_ms)?,
        }),
        QueueOp::Arrived { recipient } => {
            c.prepare_cached("INSERT OR IGNORE INTO known(addr) VALUES (?1)")?
                .execute([recipient.as_bytes()])?;
            Ok(QueueAnswer::Done)
        }
        QueueOp::Backlog { recipient, after, now_ms, limit, bytes } => {
            backlog(c, recipient, *after, *now_ms, *limit, *bytes, cipher)
        }
        QueueOp::Confirm { seqs, now_ms } => confirm(c, seqs, *now_ms).map(QueueAnswer::Confirmed),
        QueueOp::Returned { seqs } => {
            let mut update = c.prepare_cached("UPDATE msg SET tries = tries + 1 WHERE seq = ?1")?;
            for seq in seqs {
                update.execute([signed(*seq)])?;
            }
            Ok(QueueAnswer::Done)
        }
        QueueOp::Expire { now_ms, limit } => expire(c, *now_ms, *limit).map(QueueAnswer::Expired),
    }
}

fn accept(
    c: &Connection,
    message: &Accept,
    rules: &QueueRules,
    cipher: &BodyCipher,
) -> rusqlite::Result<Accepted> {
    let Accept { sender, recipient, id, .. } = message;
    let standing = standing(c, sender, recipient, id, &message.hash)?;
    if standing != Standing::Unknown {
        return Ok(Accepted::Repeat(standing));
    }
    let reply = is_correspondent(c, recipient, sender, message.now_ms)?;
    let size = message.body.len() as u64;
    if let Some(full) = overflow(c, message, rules, reply, size)? {
        return Ok(Accepted::Full(full));
    }
    let stranger = i64::from(!reply);
    c.prepare_cached(
        "INSERT INTO msg(seq, rcpt, sender, id, body, size, stranger, stored_at, expires_at, hash)
         VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10)",
    )?
    .execute(params![
        signed(message.seq),
        recipient.as_bytes(),
        sender.as_bytes(),
        id.as_str(),
        cipher.seal(message.seq, message.body.as_bytes()),
        signed(size),
        stranger,
        message.now_ms,
        message.expires_ms,
        message.hash,
    ])?;
    let depth: i64 = c
        .prepare_cached(
            "INSERT INTO qstat(rcpt, n, bytes, strangers, strangers_bytes) VALUES (?1, 1, ?2, ?3, ?3 * ?2)
         ON CONFLICT(rcpt) DO UPDATE SET n = n + 1, bytes = bytes + ?2, strangers = strangers + ?3,
         strangers_bytes = strangers_bytes + ?3 * ?2 RETURNING n",
        )?
        .query_row(params![recipient.as_bytes(), signed(size), stranger], |row| row.get(0))?;
    c.prepare_cached(
        "INSERT INTO pair(sender, rcpt, n) VALUES (?1, ?2, 1) ON CONFLICT(sender, rcpt) DO UPDATE SET n = n + 1",
    )?
    .execute(params![sender.as_bytes(), recipient.as_bytes()])?;
    c.prepare_cached(
        "INSERT INTO corr(owner, peer, last_at) VALUES (?1, ?2, ?3)
         ON CONFLICT(owner, peer) DO UPDATE SET last_at = max(last_at, ?3)",
    )?
    .execute(params![sender.as_bytes(), recipient.as_bytes(), message.now_ms])?;
    Ok(Accepted::Stored { reply, first: depth == 1 })
}

fn standing(
    c: &Connection,
    sender: &Fingerprint,
    recipient: &Fingerprint,
    id: &MessageId,
    hash: &[u8; 32],
) -> rusqlite::Result<Standing> {
    let key = params![sender.as_bytes(), recipient.as_bytes(), id.as_str()];
    let stored = c
        .prepare_cached("SELECT hash, expires_at, seq FROM msg WHERE sender=?1 AND rcpt=?2 AND id=?3")?
        .query_row(key, |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?, unsigned(row.get(2)?))))
        .optional()?;
    if let Some((known, expires_ms, seq)) = stored {
        let same = known == hash;
        return Ok(if same { Standing::Queued { seq, expires_ms } } else { Standing::OtherBytes });
    }
    let confirmed = c
        .prepare_cached("SELECT hash FROM recent WHERE sender=?1 AND rcpt=?2 AND id=?3")?
        .query_row(key, |row| row.get::<_, Vec<u8>>(0))
        .optional()?;
    Ok(match confirmed {
        None => Standing::Unknown,
        Some(known) if known == hash => Standing::Delivered,
        Some(_) => Standing::OtherBytes,
    })
}

fn is_correspondent(
    c: &Connection,
    owner: &Fingerprint,
    peer: &Fingerprint,
    now_ms: i64,
) -> rusqlite::Result<bool> {
    c.prepare_cached("SELECT 1 FROM corr WHERE owner=?1 AND peer=?2 AND last_at > ?3")?.exists(params![
        owner.as_bytes(),
        peer.as_bytes(),
        now_ms - CORRESPONDENT_MS
    ])
}

fn overflow(
    c: &Connection,
    message: &Accept,
    rules: &QueueRules,
    correspondent: bool,
    size: u64,
) -> rusqlite::Result<Option<QueueFull>> {
    let rules = &rules.queue;
    let rcpt = message.recipient.as_bytes();
    let pair = c
        .prepare_cached("SELECT n FROM pair WHERE sender=?1 AND rcpt=?2")?
        .query_row(params![message.sender.as_bytes(), rcpt], |row| row.get(0))
        .optional()?
        .map_or(0, unsigned);
    let (n, bytes, strangers, strangers_bytes) = c
        .prepare_cached("SELECT n, bytes, strangers, strangers_bytes FROM qstat WHERE rcpt=?1")?
        .query_row([rcpt], |row| {
            Ok((unsigned(row.get(0)?), unsigned(row.get(1)?), unsigned(row.get(2)?), unsigned(row.get(3)?)))
        })
        .optional()?
        .unwrap_or_default();
    let known = c.prepare_cached("SELECT 1 FROM known WHERE addr=?1")?.exists([rcpt])?;
    let most = if known { rules.per_recipient } else { rules.unknown_recipient.min(rules.per_recipient) };
    if pair >= u64::from(rules.per_pair) {
        return Ok(Some(QueueFull::Sender));
    }
    if n >= u64::from(most) {
        return Ok(Some(QueueFull::Recipient));
    }
    if bytes + size > rules.bytes_per_recipient {
        return Ok(Some(QueueFull::Bytes));
    }
    if correspondent {
        return Ok(None);
    }
    let each = pair >= u64::from(rules.stranger_each);
    let share = strangers >= u64::from(rules.strangers) || strangers_bytes + size > rules.strangers_bytes;
    Ok((each || share).then_some(QueueFull::Recipient))
}

fn backlog(
    c: &Connection,
    recipient: &Fingerprint,
    after: u64,
    now_ms: i64,
    limit: u32,
    bytes: u64,
    cipher: &BodyCipher,
) -> rusqlite::Result<QueueAnswer> {
    let mut select = c.prepare_cached(
        "SELECT seq, sender, id, body, expires_at FROM msg WHERE rcpt=?1 AND seq>?2 AND expires_at>?3
         ORDER BY seq LIMIT ?4",
    )?;
    let mut found =
        select.query(params![recipient.as_bytes(), signed(after), now_ms, i64::from(limit) + 1])?;
    let (mut rows, mut total) = (Vec::new(), 0u64);
    while let Some(row) = found.next()? {
        if rows.len() >= limit as usize || total >= bytes {
            return Ok(QueueAnswer::Backlog { rows, more: true });
        }
        let seq = unsigned(row.get(0)?);
        let sealed: Vec<u8> = row.get(3)?;
        let body = cipher.open(seq, &sealed).and_then(|body| String::from_utf8(body).ok());
        let id = row.get::<_, String>(2)?.parse::<MessageId>();
        let (Some(body), Ok(id)) = (body, id) else {
            // The bytes cannot be given to anybody; the row stays for whoever can repair the key.
            tracing::error!(seq, "a stored message cannot be opened with queue.key; it is skipped");
            continue;
        };
        total += body.len() as u64;
        let sender = Fingerprint::from_bytes(row.get(1)?);
        rows.push(Row { seq, sender, id, body: body.into(), expires_ms: row.get(4)? });
    }
    Ok(QueueAnswer::Backlog { rows, more: false })
}

struct Removed {
    what: Departed,
    hash: Vec<u8>,
}

fn remove(c: &Connection, seq: u64) -> rusqlite::Result<Option<Removed>> {
    let removed = c
        .prepare_cached(
            "DELETE FROM msg WHERE seq=?1 RETURNING sender, rcpt, id, hash, size, stranger, stored_at",
        )?
        .query_row([signed(seq)], |row| {
            let id = row.get::<_, String>(2)?;
            let id = id.parse::<MessageId>().map_err(|_| rusqlite::Error::InvalidQuery)?;
            let what = Departed {
                sender: Fingerprint::from_bytes(row.get(0)?),
                recipient: Fingerprint::from_bytes(row.get(1)?),
                id,
                stored_ms: row.get(6)?,
                size: unsigned(row.get(4)?),
                last: false,
            };
            let hash = row.get(3)?;
            Ok((Removed { what, hash }, row.get::<_, i64>(5)?))
        })
        .optional()?;
    let Some((mut removed, stranger)) = removed else { return Ok(None) };
    let (sender, rcpt) = (removed.what.sender.as_bytes(), removed.what.recipient.as_bytes());
    c.prepare_cached(
        "UPDATE qstat SET n = n - 1, bytes = bytes - ?2, strangers = strangers - ?3,
         strangers_bytes = strangers_bytes - ?3 * ?2 WHERE rcpt = ?1",
    )?
    .execute(params![rcpt, signed(removed.what.size), stranger])?;
    let last = c.prepare_cached("DELETE FROM qstat WHERE rcpt = ?1 AND n <= 0")?.execute([rcpt])? > 0;
    c.prepare_cached("UPDATE pair SET n = n - 1 WHERE sender = ?1 AND rcpt = ?2")?
        .execute(params![sender, rcpt])?;
    c.prepare_cached("DELETE FROM pair WHERE sender = ?1 AND rcpt = ?2 AND n <= 0")?
        .execute(params![sender, rcpt])?;
    removed.what.last = last;
    Ok(Some(removed))
}

fn confirm(c: &Connection, seqs: &[u64], now_ms: i64) -> rusqlite::Result<Vec<Departed>> {
    let mut confirmed = Vec::with_capacity(seqs.len());
    for seq in seqs {
        let Some(removed) = remove(c, *seq)? else { continue };
        let Departed { sender, recipient, id, .. } = &removed.what;
        c.prepare_cached(
            "INSERT OR REPLACE INTO recent(sender, rcpt, id, hash, at) VALUES (?1,?2,?3,?4,?5)",
        )?
        .execute(params![
            sender.as_bytes(),
            recipient.as_bytes(),
            id.as_str(),
            removed.hash,
            now_ms
        ])?;
        confirmed.push(removed.what);
    }
    Ok(confirmed)
}

fn expire(c: &Connection, now_ms: i64, limit: u32) -> rusqlite::Result<Vec<Departed>> {
    let due: Vec<i64> = c
        .prepare_cached("SELECT seq FROM msg WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2")?
        .query_map(params![now_ms, limit], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut expired = Vec::with_capacity(due.len());
    for seq in due {
        expired.extend(remove(c, unsigned(seq))?.map(|removed| removed.what));
    }
    c.prepare_cached("DELETE FROM recent WHERE at <= ?1")?.execute([now_ms - RECENT_MS])?;
    c.prepare_cached("DELETE FROM corr WHERE last_at <= ?1")?.execute([now_ms - CORRESPONDENT_MS])?;
    Ok(expired)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RelayConfig;

    const NOW: i64 = 1_768_478_400_000;

    struct Bench {
        c: Connection,
        rules: QueueRules,
        cipher: BodyCipher,
        seq: u64,
    }

    impl Bench {
        fn new() -> Self {
            let c = Connection::open_in_memory().expect("memory");
            c.execute_batch(MIGRATIONS[0].sql).expect("schema");
            let rules = QueueRules { queue: RelayConfig::default().queue };
            Self { c, rules, cipher: BodyCipher::new(&[0; 32]), seq: 0 }
        }

        fn run(&self, op: &QueueOp) -> QueueAnswer {
            apply(&self.c, op, &self.rules, &self.cipher).expect("sql")
        }

        fn send_body(&mut self, from: u8, to: u8, id: &str, body: &str) -> Accepted {
            self.seq += 1;
            let message = Accept {
                seq: self.seq,
                sender: addr(from),
                recipient: addr(to),
                id: id.parse().expect("id"),
                hash: [body.len() as u8; 32],
                body: body.into(),
                now_ms: NOW,
                expires_ms: NOW + 1000,
            };
            let QueueAnswer::Accepted(outcome) = self.run(&QueueOp::Accept(message)) else {
                panic!("accept")
            };
            outcome
        }

        fn send(&mut self, from: u8, to: u8, id: &str) -> Accepted {
            self.send_body(from, to, id, "{}")
        }

        fn arrive(&self, who: u8) {
            self.run(&QueueOp::Arrived { recipient: addr(who) });
        }

        fn totals(&self) -> QueueTotals {
            totals(&self.c).expect("totals")
        }
    }

    fn stored(outcome: Accepted) -> bool {
        matches!(outcome, Accepted::Stored { reply: false, .. })
    }

    fn addr(n: u8) -> Fingerprint {
        Fingerprint::from_bytes([n; 16])
    }

    #[test]
    fn a_repeat_gets_the_answer_it_had_and_other_bytes_are_refused() {
        let mut bench = Bench::new();
        assert!(stored(bench.send(1, 2, "a")));
        assert_eq!(
            bench.send(1, 2, "a"),
            Accepted::Repeat(Standing::Queued { seq: 1, expires_ms: NOW + 1000 })
        );
        assert_eq!(bench.send_body(1, 2, "a", "{   }"), Accepted::Repeat(Standing::OtherBytes));
        assert!(stored(bench.send(1, 3, "a")), "ids are per pair");
        bench.run(&QueueOp::Confirm { seqs: vec![1, 1, 99], now_ms: NOW });
        assert_eq!(bench.send(1, 2, "a"), Accepted::Repeat(Standing::Delivered));
        bench.run(&QueueOp::Expire { now_ms: NOW + RECENT_MS, limit: 10 });
        assert!(stored(bench.send(1, 2, "a")), "forgotten after five minutes");
    }

    #[test]
    fn a_stranger_has_ten_and_all_strangers_share_a_hundred() {
        let mut bench = Bench::new();
        bench.arrive(200);
        for n in 0..10 {
            assert!(matches!(bench.send(1, 200, &format!("m{n}")), Accepted::Stored { .. }));
        }
        assert_eq!(bench.send(1, 200, "m10"), Accepted::Full(QueueFull::Recipient));
        for sender in 2..=10 {
            for n in 0..10 {
                assert!(matches!(bench.send(sender, 200, &format!("m{n}")), Accepted::Stored { .. }));
            }
        }
        assert_eq!(
            bench.send(11, 200, "m0"),
            Accepted::Full(QueueFull::Recipient),
            "strangers' share is used up"
        );
        bench.arrive(50);
        assert!(stored(bench.send(200, 50, "hello")));
        for n in 0..100 {
            assert!(
                matches!(bench.send(50, 200, &format!("m{n}")), Accepted::Stored { reply: true, .. }),
                "{n}"
            );
        }
        assert_eq!(bench.send(50, 200, "m100"), Accepted::Full(QueueFull::Sender));
    }

    #[test]
    fn a_recipient_never_seen_gets_twenty() {
        let mut bench = Bench::new();
        for sender in 1..=2 {
            for n in 0..10 {
                assert!(matches!(bench.send(sender, 9, &format!("m{n}")), Accepted::Stored { .. }));
            }
        }
        assert_eq!(bench.send(3, 9, "m"), Accepted::Full(QueueFull::Recipient));
        bench.arrive(9);
        assert!(matches!(bench.send(3, 9, "m"), Accepted::Stored { .. }));
    }

    #[test]
    fn bytes_are_counted_and_given_back() {
        let mut bench = Bench::new();
        bench.rules.queue.bytes_per_recipient = 10;
        assert!(matches!(bench.send_body(1, 2, "a", "123456"), Accepted::Stored { .. }));
        assert_eq!(bench.send_body(1, 2, "b", "12345"), Accepted::Full(QueueFull::Bytes));
        assert_eq!(bench.totals(), QueueTotals { recipients: 1, messages: 1, bytes: 6 });
        bench.run(&QueueOp::Confirm { seqs: vec![1], now_ms: NOW });
        assert_eq!(bench.totals(), QueueTotals::default());
        assert!(matches!(bench.send_body(1, 2, "b", "12345"), Accepted::Stored { .. }));
    }

    #[test]
    fn the_backlog_comes_in_order_and_in_portions() {
        let mut bench = Bench::new();
        for n in 0..5 {
            bench.send(n, 9, "a");
        }
        let read = |after, limit, bytes| {
            let op = QueueOp::Backlog { recipient: addr(9), after, now_ms: NOW, limit, bytes };
            let QueueAnswer::Backlog { rows, more } = bench.run(&op) else { panic!("backlog") };
            (rows.iter().map(|r| r.seq).collect::<Vec<_>>(), more)
        };
        assert_eq!(read(0, 3, 1000), (vec![1, 2, 3], true));
        assert_eq!(read(3, 3, 1000), (vec![4, 5], false));
        assert_eq!(read(0, 9, 1), (vec![1], true), "one message passes whatever its size");
    }

    #[test]
    fn expired_messages_are_reported_once() {
        let mut bench = Bench::new();
        bench.send(1, 2, "a");
        bench.send(1, 2, "b");
        let sweep = |now_ms, limit| {
            let QueueAnswer::Expired(list) = bench.run(&QueueOp::Expire { now_ms, limit }) else {
                panic!("expire")
            };
            list.len()
        };
        assert_eq!(sweep(NOW + 999, 10), 0);
        assert_eq!(sweep(NOW + 1000, 1), 1);
        assert_eq!(sweep(NOW + 1000, 10), 1);
        assert_eq!(bench.totals(), QueueTotals::default());
    }
}
