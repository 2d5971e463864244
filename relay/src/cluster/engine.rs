//! The connection to the engine, and each operation of the queue on it (`relay.md` §15.4).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{Config, DirectGetErrorKind, LastRawMessageErrorKind, State, Stream};
use async_nats::jetstream::{Context, kv};
use async_nats::{Client, ConnectOptions};
use futures::{StreamExt as _, TryStreamExt as _};
use instar_durable::{Database, DatabaseError};
use threadline::Fingerprint;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::lanes::FromEngine;
use super::layout::{self, BUCKETS, Rules, SHARDS};
use super::leader::Changes;
use super::letter::{Letter, content_of};
use super::mailbox::{Mailbox, Removal};
use super::presence::Sessions;
use crate::config;
use crate::metrics::Publishing;
use crate::store::{
    Accept, Accepted, BodyCipher, Departed, Depth, Peers, QueueAnswer, QueueFull, QueueLook, QueueOp,
    QueueTotals, RelayName, Row, Standing, StoreFailed,
};

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// A message is published again and again for this long before it is refused.
pub(super) const GIVE_UP: Duration = Duration::from_secs(5);
/// What was compared with the engine is believed this long.
const BELIEVED: Duration = Duration::from_secs(1);
/// What the engine says when one sender has too much waiting for one recipient; any other refusal is no verdict on the
/// sender.
const PAIR_FULL: &str = "maximum messages per subject exceeded";
/// Requests at a time for one recipient, and at the start.
const AT_ONCE: usize = 8;
/// First version that can be told to sync before it acknowledges.
const STRONG: (u64, u64) = (2, 10);
const STRONG_COPIES: usize = 3;
/// Difference of clocks that is refused at the start, in milliseconds.
pub(super) const SKEW_MS: i64 = 2_000;

/// How to reach the engine.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// URLs of the servers.
    pub servers: Vec<String>,
    /// NKey seed.
    pub nkey: Option<Zeroizing<String>>,
    /// Credentials file.
    pub credentials: Option<PathBuf>,
    /// Certificate authority.
    pub ca: Option<PathBuf>,
    /// Whether an old or small engine will do.
    pub allow_weak: bool,
}

/// Why the engine cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No connection.
    #[error(
        "cannot connect to NATS at {servers}: {detail}. Check cluster.servers and that the server runs with JetStream"
    )]
    Connect {
        /// Where.
        servers: String,
        /// What was said.
        detail: String,
    },
    /// A file of the configuration cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// It would not keep what a relay promises.
    #[error(
        "NATS {version} with {copies} copies of each stream does not survive what the relay promises (`replicated` needs \
         2.10 or later with `sync_interval: always`, and 3 copies). Use such a cluster, or set cluster.allow_weak = true: \
         then acceptance means stored in the engine, not on disk"
    )]
    Weak {
        /// Version of the server.
        version: String,
        /// Copies that are configured or that a stream has.
        copies: usize,
    },
    /// Changes of the directory cannot be noted.
    #[error(transparent)]
    Registry(#[from] DatabaseError),
    /// A stream cannot be made or read.
    #[error("stream {stream} of NATS cannot be used: {detail}")]
    Stream {
        /// Its name.
        stream: String,
        /// What was said.
        detail: String,
    },
    /// The clocks differ.
    #[error(
        "the clock of this machine and that of NATS differ by {ms} ms; set them (at most {SKEW_MS} ms is tolerated)"
    )]
    Skew {
        /// By how much.
        ms: i64,
    },
}

/// A relay's part in the cluster.
pub struct Engine {
    pub(super) client: Client,
    pub(super) context: Context,
    streams: Vec<Stream>,
    pub(super) rules: config::Queue,
    pub(super) cipher: BodyCipher,
    pub(super) peers: Mutex<Peers>,
    /// What this relay knows of everybody, and what changes in it.
    pub(super) registry: Database,
    pub(super) sessions: Sessions,
    buckets: HashMap<&'static str, kv::Store>,
    /// Name of this process among the relays; another one after each start.
    pub(super) node: String,
    /// The same.
    pub(super) name: RelayName,
    pub(super) weak: bool,
    pub(super) told: mpsc::Sender<FromEngine>,
    publishing: Arc<Publishing>,
    pub(super) changes: Changes,
    /// Whether it took a write a short while ago.
    pub(super) open: AtomicBool,
}

impl Engine {
    /// Connects, makes what is missing and refuses an engine that is too weak.
    pub async fn connect(
        options: &Options,
        layout: Rules,
        rules: config::Queue,
        cipher: BodyCipher,
        (peers, registry): (Peers, Database),
        told: mpsc::Sender<FromEngine>,
    ) -> Result<Arc<Self>, EngineError> {
        registry.write(super::replica::prepare).await?;
        let client = connect(options).await?;
        let info = client.server_info();
        let weak = !is_strong(&info.version) || layout.replicas < STRONG_COPIES;
        let refuse = |copies| EngineError::Weak { version: info.version.clone(), copies };
        if weak && !options.allow_weak {
            return Err(refuse(layout.replicas));
        }
        let context = ContextBuilder::new().timeout(PATIENCE).ack_timeout(PATIENCE).build(client.clone());
        // After a server died each may be without a leader for seconds: they are waited for together.
        let configs = (0..SHARDS).map(|shard| layout::mail_config(shard, &layout));
        let made = futures::stream::iter(configs).map(|config| make(&context, config));
        let streams: Vec<Stream> = made.buffered(AT_ONCE).try_collect().await?;
        let few = streams.iter().map(|stream| stream.cached_info().config.num_replicas).min().unwrap_or(0);
        if few < STRONG_COPIES && !options.allow_weak {
            return Err(refuse(few));
        }
        let context_of_all = &context;
        let opened = futures::stream::iter(BUCKETS).map(|bucket| async move {
            make(context_of_all, layout::bucket_config(&bucket, layout.replicas)).await?;
            let store = patiently(bucket.name, || context_of_all.get_key_value(bucket.name)).await?;
            Ok::<_, EngineError>((bucket.name, store))
        });
        let buckets = opened.buffer_unordered(AT_ONCE).try_collect().await?;
        let name = rand::random::<RelayName>();
        let (peers, sessions) = (Mutex::new(peers), Sessions::default());
        let weak = weak || few < STRONG_COPIES;
        let publishing = Arc::default();
        let engine = Self {
            client,
            context,
            streams,
            rules,
            cipher,
            peers,
            registry,
            sessions,
            buckets,
            node: hex::encode(name),
            name,
            weak,
            told,
            publishing,
            changes: Changes::default(),
            open: AtomicBool::new(true),
        };
        engine.check_clock().await?;
        Ok(Arc::new(engine))
    }

    /// Whether acceptance means less than `replicated`.
    pub fn is_weak(&self) -> bool {
        self.weak
    }

    /// What publishing takes.
    pub fn publishing(&self) -> Arc<Publishing> {
        Arc::clone(&self.publishing)
    }

    /// A bucket of keys and values.
    pub(super) fn bucket(&self, bucket: &layout::Bucket) -> &kv::Store {
        &self.buckets[bucket.name]
    }

    /// The last value under a key, from the leader of the bucket.
    pub(super) async fn last_of(&self, bucket: &layout::Bucket, key: &str) -> Result<Last, StoreFailed> {
        let subject = format!("$KV.{}.{key}", bucket.name);
        match self.bucket(bucket).stream.get_last_raw_message_by_subject(&subject).await {
            Ok(stored) => Ok(Last { revision: stored.sequence, stored: Some(stored) }),
            Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => {
                Ok(Last { revision: 0, stored: None })
            }
            Err(error) => Err(failed(&error)),
        }
    }

    pub(super) fn stream(&self, recipient: &Fingerprint) -> &Stream {
        &self.streams[usize::from(layout::shard(recipient))]
    }

    async fn check_clock(&self) -> Result<(), EngineError> {
        let (before, after, there) = patiently(layout::NODES.name, || self.read_clock()).await?;
        let ms = if there < before { there - before } else { (there - after).max(0) };
        if ms.abs() > SKEW_MS { Err(EngineError::Skew { ms }) } else { Ok(()) }
    }

    /// The time before and after a write, and the engine's between them, in Unix milliseconds.
    async fn read_clock(&self) -> Result<(i64, i64, i64), String> {
        let bucket = self.bucket(&layout::NODES);
        let before = now_ms();
        bucket.put(&self.node, "{}".into()).await.map_err(|e| e.to_string())?;
        let after = now_ms();
        let entry = bucket.entry(&self.node).await.map_err(|e| e.to_string())?;
        let there = entry.map(|entry| entry.created.unix_timestamp_nanos() / 1_000_000);
        Ok((before, after, there.and_then(|ms| i64::try_from(ms).ok()).unwrap_or(before)))
    }

    /// Totals over all mail; recipients are counted once per sender that wrote to them.
    pub async fn totals(&self) -> Result<QueueTotals, StoreFailed> {
        sum(&self.states().await).ok_or(StoreFailed)
    }

    /// What lies in each mail stream; `None` where nobody leads it. One that is silent holds up no other.
    pub(super) async fn states(&self) -> Vec<Option<State>> {
        let states = self.streams.iter().map(|stream| async { Some(stream.get_info().await.ok()?.state) });
        futures::future::join_all(states).await
    }

    /// Runs one operation on the mail of one recipient.
    pub(super) async fn apply(
        self: &Arc<Self>,
        mailbox: &mut Mailbox,
        op: &QueueOp,
    ) -> Result<QueueAnswer, StoreFailed> {
        match op {
            QueueOp::Accept(message) => self.accept(mailbox, message).await.map(QueueAnswer::Accepted),
            QueueOp::Standing { sender, recipient, id, body, now_ms } => {
                self.compare(mailbox, recipient).await?;
                let content = content_of(body);
                let standing = self.standing(mailbox, recipient, (sender, id, content), *now_ms).await?;
                let reply = self.peers().is_correspondent(recipient, sender, *now_ms);
                Ok(QueueAnswer::Standing { standing, reply })
            }
            QueueOp::Arrived { recipient, siblings, now_ms } => {
                if self.peers().arrived(*recipient) {
                    self.publish_seen(recipient).await;
                }
                for sibling in siblings {
                    let news = self.peers().wrote(*recipient, *sibling, *now_ms);
                    if news {
                        self.publish_wrote(recipient, sibling, *now_ms).await;
                    }
                }
                Ok(QueueAnswer::Done)
            }
            QueueOp::Online(session) => self.came(session).await.map(|()| QueueAnswer::Done),
            QueueOp::Offline { address, slot } => {
                self.left(address, *slot).await;
                Ok(QueueAnswer::Done)
            }
            QueueOp::Backlog { recipient, after, now_ms, limit, bytes } => {
                self.hold(recipient).await?;
                self.backlog(mailbox, recipient, *after, *now_ms, (*limit as usize, *bytes)).await
            }
            QueueOp::Confirm { recipient, seqs, now_ms } => {
                self.hold(recipient).await?;
                let at: Vec<u64> = seqs.iter().map(|seq| layout::position(*seq)).collect();
                let gone = self.settle(mailbox, recipient, &at, *now_ms, true).await?;
                Ok(QueueAnswer::Confirmed(gone))
            }
            QueueOp::Drop { recipient, now_ms, limit } => {
                self.read_anew(mailbox, recipient).await?;
                let oldest = mailbox.oldest(*limit as usize);
                let gone = self.settle(mailbox, recipient, &oldest, *now_ms, false).await?;
                Ok(QueueAnswer::Dropped(gone))
            }
            QueueOp::Look { of: Some(recipient), .. } => {
                self.compare(mailbox, recipient).await?;
                let (_, messages, bytes) = mailbox.depth();
                let of = Some(Depth { recipient: *recipient, messages, bytes });
                Ok(QueueAnswer::Look(QueueLook { of, ..QueueLook::default() }))
            }
            // Over all mailboxes or none, and not in one of them.
            QueueOp::Expire { .. } | QueueOp::Look { .. } | QueueOp::Devices(_) | QueueOp::Blob(..) => {
                Err(StoreFailed)
            }
        }
    }

    async fn accept(&self, mailbox: &mut Mailbox, message: &Accept) -> Result<Accepted, StoreFailed> {
        let Accept { sender, recipient, id, now_ms, .. } = message;
        self.compare(mailbox, recipient).await?;
        let content = content_of(&message.body);
        let standing = self.standing(mailbox, recipient, (sender, id, content), *now_ms).await?;
        if standing != Standing::Unknown {
            return Ok(Accepted::Repeat(standing));
        }
        let (reply, known) = {
            let peers = self.peers();
            (peers.is_correspondent(recipient, sender, *now_ms), peers.is_known(recipient))
        };
        let size = message.body.len() as u64;
        let full =
            |mailbox: &Mailbox| mailbox.overflow(&self.rules, sender, size, (reply, message.control), known);
        if full(mailbox).is_some() && mailbox.read.is_none_or(|at| at.elapsed() > BELIEVED) {
            // Others may have confirmed some of it.
            self.read_anew(mailbox, recipient).await?;
        }
        if let Some(full) = full(mailbox) {
            return Ok(Accepted::Full(full));
        }
        let letter = Letter::of(message, !reply);
        let at = match self.publish(&letter, &message.body).await? {
            Published::Stored(at) => at,
            Published::Again => {
                mailbox.remember(*sender, letter.id.clone(), letter.content, *now_ms);
                return Ok(Accepted::Repeat(Standing::Delivered));
            }
            Published::Before(at, before) => {
                let seq = layout::number(at, layout::shard(recipient));
                let expires_ms = before.expires_ms;
                mailbox.enter(at, before);
                return Ok(Accepted::Repeat(Standing::Queued { seq, expires_ms }));
            }
            Published::PairFull => return Ok(Accepted::Full(QueueFull::Sender)),
        };
        let first = mailbox.enter(at, letter);
        let news = self.peers().wrote(*sender, *recipient, *now_ms);
        if news {
            self.publish_wrote(sender, recipient, *now_ms).await;
        }
        let seq = layout::number(at, layout::shard(recipient));
        if !self.sessions.reads(recipient) {
            // Who does not hear it looks again within five seconds.
            let _ = self.client.publish(layout::wake_subject(recipient), seq.to_string().into()).await;
        }
        Ok(Accepted::Stored { seq, reply, first })
    }

    pub(super) async fn publish(&self, letter: &Letter, body: &[u8]) -> Result<Published, StoreFailed> {
        let begun = Instant::now();
        let published = self.publish_until(begun + GIVE_UP, letter, body).await;
        self.publishing.done(begun);
        published
    }

    async fn publish_until(
        &self,
        end: Instant,
        letter: &Letter,
        body: &[u8],
    ) -> Result<Published, StoreFailed> {
        let (mut headers, payload) = letter.write(body, &self.cipher);
        let subject = layout::mail_subject(&letter.recipient, &letter.sender, letter.control);
        let payload = bytes(payload);
        let mut anew = 0;
        loop {
            let sent =
                self.context.publish_with_headers(subject.clone(), headers.clone(), payload.clone()).await;
            let acknowledged = match sent {
                Ok(acknowledgement) => acknowledgement.await,
                Err(error) => Err(error),
            };
            match acknowledged {
                Ok(ack) if ack.duplicate => match self.known_as(letter, ack.sequence).await? {
                    Known::Stored(at, before) => return Ok(Published::Before(at, before)),
                    Known::Gone => {
                        tracing::debug!(id = %letter.id, at = ack.sequence, "stored before, and gone");
                        return Ok(Published::Again);
                    }
                    // What it knows it may never have stored: the proposal of a leader that fell. A copy too many is a
                    // repeat to its recipient; one too few is lost.
                    Known::Nowhere if Instant::now() >= end => return Err(StoreFailed),
                    Known::Nowhere => {
                        anew += 1;
                        // A second is enough for what is still on its way.
                        if anew >= 4 {
                            tracing::warn!(
                                at = ack.sequence,
                                "the engine names a message a repeat that it has not; it is stored anew"
                            );
                            letter.write_anew(anew, &mut headers);
                        }
                    }
                },
                Ok(ack) => {
                    tracing::debug!(id = %letter.id, at = ack.sequence, "stored");
                    return Ok(Published::Stored(ack.sequence));
                }
                Err(error) if error.to_string().contains(PAIR_FULL) => return Ok(Published::PairFull),
                // Said by the stream: another try would hear the same.
                Err(error) if error.to_string().contains("exceeded") => return Err(failed(&error)),
                Err(error) if Instant::now() >= end => return Err(failed(&error)),
                Err(error) => tracing::debug!(%error, "a message is published again"),
            }
            self.publishing.again();
            // Perhaps nobody leads the stream at this moment.
            tokio::time::sleep(PATIENCE / 8).await;
        }
    }

    /// What became of a message that the engine says it has. By its position alone nothing is known: of a message that it
    /// has not stored yet it says 0, and where a leader fell, another message may stand there.
    async fn known_as(&self, letter: &Letter, at: u64) -> Result<Known, StoreFailed> {
        if at == 0 {
            return Ok(Known::Nowhere);
        }
        let Some(stored) = self.at(&letter.recipient, at).await? else { return Ok(Known::Gone) };
        let before = Letter::read(&stored);
        Ok(before.filter(|before| before.is_same(letter)).map_or(Known::Nowhere, |b| Known::Stored(at, b)))
    }

    async fn standing(
        &self,
        mailbox: &mut Mailbox,
        recipient: &Fingerprint,
        (sender, id, content): (&Fingerprint, &threadline::MessageId, u64),
        now_ms: i64,
    ) -> Result<Standing, StoreFailed> {
        let (standing, at) = mailbox.standing(sender, id, content);
        let Some(at) = at.filter(|_| !self.sessions.reads(recipient)) else { return Ok(standing) };
        // Another relay may have delivered it.
        if self.at(recipient, at).await?.is_none() {
            tracing::debug!(%id, at, "known here, and gone");
            mailbox.remove(at, now_ms, true);
            return Ok(mailbox.standing(sender, id, content).0);
        }
        Ok(standing)
    }

    /// The message at a position, from whoever leads the stream.
    async fn at(&self, recipient: &Fingerprint, at: u64) -> Result<Option<StreamMessage>, StoreFailed> {
        match self.stream(recipient).get_raw_message(at).await {
            Ok(stored) => Ok(Some(stored)),
            Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => Ok(None),
            Err(error) => Err(self.failed_on(recipient, &error.to_string()).await),
        }
    }

    /// Sees to it that the index is not older than a second, by counting.
    async fn compare(&self, mailbox: &mut Mailbox, recipient: &Fingerprint) -> Result<(), StoreFailed> {
        // Where the session is, the index follows what is read.
        let fresh =
            mailbox.compared.is_some_and(|at| at.elapsed() < BELIEVED || self.sessions.reads(recipient));
        if fresh {
            return Ok(());
        }
        let mut counts: HashMap<Fingerprint, usize> = HashMap::new();
        let subjects = self.stream(recipient).info_with_subjects(layout::mailbox_subject(recipient)).await;
        let mut subjects = subjects.map_err(|e| failed(&e))?;
        while let Some(subject) = subjects.next().await {
            let (subject, count) = subject.map_err(|e| failed(&e))?;
            if let Some((_, sender, _)) = layout::parties(&subject) {
                *counts.entry(sender).or_default() += count;
            }
        }
        if counts != mailbox.counts() {
            self.read_anew(mailbox, recipient).await?;
        }
        mailbox.compared = Some(Instant::now());
        Ok(())
    }

    async fn read_anew(&self, mailbox: &mut Mailbox, recipient: &Fingerprint) -> Result<(), StoreFailed> {
        let mut found = Vec::new();
        let mut from = 1;
        while let Some(stored) = self.next_of_leader(recipient, from).await? {
            from = stored.sequence + 1;
            if let Some(letter) = Letter::read(&stored) {
                found.push((stored.sequence, letter));
            }
        }
        mailbox.clear();
        for (at, letter) in found {
            mailbox.enter(at, letter);
        }
        mailbox.read = Some(Instant::now());
        Ok(())
    }

    /// The next message from some copy of the stream, which may not have the newest.
    async fn next(&self, recipient: &Fingerprint, from: u64) -> Result<Option<StreamMessage>, StoreFailed> {
        let stream = self.stream(recipient);
        match stream.direct_get_next_for_subject(layout::mailbox_subject(recipient), Some(from)).await {
            Ok(stored) => Ok(Some(stored)),
            Err(error) if matches!(error.kind(), DirectGetErrorKind::NotFound) => Ok(None),
            Err(error) => Err(self.failed_on(recipient, &error.to_string()).await),
        }
    }

    async fn next_of_leader(
        &self,
        recipient: &Fingerprint,
        from: u64,
    ) -> Result<Option<StreamMessage>, StoreFailed> {
        let builder = self.stream(recipient).raw_message_builder();
        match builder.next_by_subject(layout::mailbox_subject(recipient)).sequence(from).send().await {
            Ok(stored) => Ok(Some(stored)),
            Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => Ok(None),
            Err(error) => Err(self.failed_on(recipient, &error.to_string()).await),
        }
    }

    async fn backlog(
        &self,
        mailbox: &mut Mailbox,
        recipient: &Fingerprint,
        after: u64,
        now_ms: i64,
        (limit, bytes): (usize, u64),
    ) -> Result<QueueAnswer, StoreFailed> {
        let shard = layout::shard(recipient);
        let (mut rows, mut total) = (Vec::new(), 0);
        let mut from = layout::first_after(after, shard).max(1);
        loop {
            let known = mailbox.last().max(self.sessions.hint(recipient));
            let stored = match self.next(recipient, from).await? {
                Some(stored) => Some(stored),
                // The copy that answered may not have the newest yet.
                None if known >= from || !self.sessions.saw_end(recipient) => {
                    let newest = self.next_of_leader(recipient, from).await?;
                    if newest.is_none() {
                        self.sessions.at_end(recipient);
                    }
                    newest
                }
                None => None,
            };
            let Some(stored) = stored else {
                mailbox.nothing_from(from);
                return Ok(QueueAnswer::Backlog { rows, more: false });
            };
            if rows.len() >= limit || total >= bytes {
                return Ok(QueueAnswer::Backlog { rows, more: true });
            }
            let at = stored.sequence;
            from = at + 1;
            let opened = Letter::read(&stored).filter(|letter| letter.recipient == *recipient);
            let opened =
                opened.and_then(|letter| Some((letter.open(&stored.payload, &self.cipher)?, letter)));
            let Some((body, letter)) = opened else {
                tracing::error!(stream = %layout::mail_stream(shard), at, "a stored message cannot be opened with cluster.secret; it is skipped");
                continue;
            };
            let Letter { sender, stored_ms, expires_ms, .. } = letter;
            let id = letter.id.clone();
            if mailbox.get(at).is_none() {
                mailbox.enter(at, letter);
            }
            if expires_ms > now_ms {
                total += body.len() as u64;
                rows.push(Row {
                    seq: layout::number(at, shard),
                    sender,
                    id,
                    body: body.into(),
                    stored_ms,
                    expires_ms,
                });
            }
        }
    }

    /// Messages leave custody; those that are not in it are passed over.
    pub(super) async fn settle(
        &self,
        mailbox: &mut Mailbox,
        recipient: &Fingerprint,
        positions: &[u64],
        now_ms: i64,
        confirmed: bool,
    ) -> Result<Vec<Departed>, StoreFailed> {
        for at in positions {
            if mailbox.get(*at).is_none()
                && let Some(letter) = self.at(recipient, *at).await?.as_ref().and_then(Letter::read)
                && letter.recipient == *recipient
            {
                mailbox.enter(*at, letter);
            }
        }
        let removals = mailbox.removals(positions);
        let done: Vec<(Removal, Result<bool, StoreFailed>)> = futures::stream::iter(removals)
            .map(|removal| async move {
                let done = self.remove(recipient, &removal).await;
                (removal, done)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut removed: Vec<u64> = Vec::new();
        let mut all = true;
        for (removal, done) in done {
            let positions = match removal {
                Removal::One(at) => vec![at],
                Removal::UpTo(_, _, positions) => positions,
            };
            match done {
                Ok(true) => removed.extend(positions),
                // Gone already: somebody else has reported it.
                Ok(false) => positions.iter().for_each(|at| drop(mailbox.remove(*at, now_ms, confirmed))),
                Err(StoreFailed) => all = false,
            }
        }
        removed.sort_unstable();
        for at in removed {
            let seq = layout::number(at, layout::shard(recipient));
            if let Some(gone) = mailbox.remove(at, now_ms, confirmed) {
                if !self.sessions.reads(&gone.sender) {
                    self.publish_gone(seq, &gone, confirmed).await;
                }
                mailbox.unreported.push(gone);
            }
        }
        if all { Ok(std::mem::take(&mut mailbox.unreported)) } else { Err(StoreFailed) }
    }

    /// Returns whether it was there.
    async fn remove(&self, recipient: &Fingerprint, removal: &Removal) -> Result<bool, StoreFailed> {
        let stream = self.stream(recipient);
        tracing::debug!(?removal, "mail leaves");
        match removal {
            Removal::One(at) => match stream.delete_message(*at).await {
                Ok(done) => Ok(done),
                Err(error) if error.to_string().contains("no message found") => Ok(false),
                Err(error) if error.to_string().contains("sequence") => Ok(false),
                Err(error) => Err(self.failed_on(recipient, &error.to_string()).await),
            },
            Removal::UpTo(sender, control, positions) => {
                let bound = positions.last().map_or(0, |at| at + 1);
                let subject = layout::mail_subject(recipient, sender, *control);
                match stream.purge().filter(subject).sequence(bound).await {
                    Ok(purged) => Ok(purged.success),
                    Err(error) => Err(self.failed_on(recipient, &error.to_string()).await),
                }
            }
        }
    }

    /// Who was seen here and who writes to whom.
    pub(super) fn peers(&self) -> std::sync::MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a bucket has under a key.
pub(super) struct Last {
    /// 0 if there never was anything.
    pub(super) revision: u64,
    pub(super) stored: Option<StreamMessage>,
}

impl Last {
    /// The value, unless there is none or it was removed.
    pub(super) fn value(&self) -> Option<&[u8]> {
        let stored = self.stored.as_ref()?;
        let removed = stored.headers.get("KV-Operation").is_some_and(|word| word.as_str() != "PUT");
        (!removed).then_some(&*stored.payload)
    }
}

/// Totals over all streams, if all are known.
pub(super) fn sum(states: &[Option<State>]) -> Option<QueueTotals> {
    states.iter().try_fold(QueueTotals::default(), |totals, state| {
        let state = state.as_ref()?;
        Some(QueueTotals {
            recipients: totals.recipients + state.subjects_count,
            messages: totals.messages + state.messages,
            bytes: totals.bytes + state.bytes,
        })
    })
}

pub(super) enum Published {
    Stored(u64),
    /// The same message waits there.
    Before(u64, Letter),
    /// It was stored, and is gone.
    Again,
    PairFull,
}

/// What the engine has of a message that it calls a repeat.
enum Known {
    Stored(u64, Letter),
    Gone,
    Nowhere,
}

async fn connect(options: &Options) -> Result<Client, EngineError> {
    let file = |path: &PathBuf, source| EngineError::File { path: path.clone(), source };
    let mut connection = match &options.credentials {
        Some(path) => ConnectOptions::with_credentials_file(path).await.map_err(|e| file(path, e))?,
        None => ConnectOptions::new(),
    };
    if let Some(seed) = &options.nkey {
        connection = connection.nkey(seed.to_string());
    }
    if let Some(ca) = &options.ca {
        connection = connection.add_root_certificates(ca.clone());
    }
    let tls = options.servers.iter().any(|server| server.starts_with("tls://"));
    let connection = connection
        .name("threadline-relay")
        .require_tls(tls)
        .connection_timeout(PATIENCE)
        .request_timeout(Some(PATIENCE))
        .ping_interval(Duration::from_secs(5))
        .reconnect_delay_callback(|attempts| Duration::from_millis(100 * attempts.min(10) as u64));
    let connected = connection.connect(options.servers.clone()).await;
    connected.map_err(|e| EngineError::Connect { servers: options.servers.join(", "), detail: e.to_string() })
}

/// Tries again for as long as a cluster may need that was just started or has lost a server.
async fn patiently<T, E: std::fmt::Display, F: Future<Output = Result<T, E>>>(
    stream: &str,
    mut attempt: impl FnMut() -> F,
) -> Result<T, EngineError> {
    const WITHIN: Duration = Duration::from_secs(45);
    let begun = Instant::now();
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) if begun.elapsed() > WITHIN => {
                return Err(EngineError::Stream { stream: stream.to_owned(), detail: error.to_string() });
            }
            Err(error) => tracing::debug!(%error, stream, "the engine is not ready"),
        }
        tokio::time::sleep(PATIENCE / 8).await;
    }
}

/// Makes a stream, or sets its limits right.
async fn make(context: &Context, config: Config) -> Result<Stream, EngineError> {
    patiently(&config.name, || make_once(context, &config)).await
}

async fn make_once(context: &Context, config: &Config) -> Result<Stream, String> {
    let found = context.get_or_create_stream(config.clone()).await.map_err(|e| e.to_string())?;
    let has = &found.cached_info().config;
    if (has.max_messages_per_subject, has.max_bytes) != (config.max_messages_per_subject, config.max_bytes) {
        let wanted = Config {
            max_messages_per_subject: config.max_messages_per_subject,
            max_bytes: config.max_bytes,
            ..has.clone()
        };
        context.update_stream(wanted).await.map_err(|e| e.to_string())?;
    }
    Ok(found)
}

fn is_strong(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u64>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= STRONG
}

pub(super) fn failed(error: &dyn std::fmt::Display) -> StoreFailed {
    note(error);
    StoreFailed
}

pub(super) fn note(error: &dyn std::fmt::Display) {
    tracing::warn!(%error, "the engine does not answer as it should");
}

pub(super) fn bytes(payload: impl Into<Vec<u8>>) -> bytes::Bytes {
    bytes::Bytes::from(payload.into())
}

/// Now, in Unix milliseconds.
pub(super) fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::is_strong;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(is_strong("2.10.0") && is_strong("2.12.3-RC.1") && is_strong("3.0.0"));
        assert!(!is_strong("2.9.10") && !is_strong("") && !is_strong("1.99.0"));
    }
}
