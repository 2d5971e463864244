//! The outbox: finished envelopes of cleared text, and what is known about their delivery.

use instar_outbound::{Cleared, OutboundMessage};
use rusqlite::{Connection, OptionalExtension, Row, params};
use threadline::delivery::{Delivery, DeliveryState, due_in_order};
use threadline::limits::Window;
use threadline::threads::ThreadEvent;
use threadline::v1::envelope::Envelope;
use threadline::v2::inside_v1::carries;
use threadline::{Fingerprint, MessageId, ThreadId, ThreadKey, TrustLevel};

use super::messages::{self, NewMessage};
use super::types::{Auth, Direction, MessageState, StoredMessage, parsed};
use super::{Store, StoreError, limits, sha256};
use crate::control::Control;

/// Rows of the outbox that are looked at together; later ones wait for these.
const MAX_OPEN: u32 = 4_096;

/// Everything about a message of ours but its text, which comes with the clearance.
#[derive(Debug, Clone)]
pub struct OutboundDraft {
    /// Recipient and thread.
    pub key: ThreadKey,
    /// Name of the recipient.
    pub peer_name: String,
    /// Id on the wire.
    pub id: MessageId,
    /// Payload type.
    pub kind: String,
    /// Sanitised subject of the thread.
    pub subject: String,
    /// Message that it answers.
    pub in_reply_to: Option<MessageId>,
    /// Whether the envelope is sealed.
    pub auth: Auth,
    /// Level of the recipient now.
    pub trust: TrustLevel,
    /// Session that wrote it.
    pub author_session: Option<String>,
    /// Topic that asked for it.
    pub origin_topic_id: Option<i64>,
    /// Repeating a send with this key sends nothing twice.
    pub idempotency_key: Option<String>,
    /// Windows it uses.
    pub windows: Vec<Window>,
    /// Delivery as it starts.
    pub delivery: Delivery,
}

/// What the transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Queued {
    /// The row is in the outbox.
    New,
    /// A message with this idempotency key exists; nothing was stored.
    Existing(Box<StoredMessage>),
}

/// An envelope to be written to a carrier.
#[derive(Debug, Clone)]
pub struct OutboxRow {
    /// Recipient.
    pub peer: Fingerprint,
    /// Id on the wire.
    pub id: MessageId,
    /// Finished envelope, JSON.
    pub envelope: String,
    /// What is known about its delivery; absent for control messages, which are tried once per connection.
    pub delivery: Option<DeliveryRow>,
}

impl OutboxRow {
    /// Whether it carries sealed mail (`threadline-wire.md` §4.9): a relay gets it, whatever else leads to its recipient by
    /// now.
    pub fn is_for_relay(&self) -> bool {
        self.delivery.is_none()
            && Envelope::parse(self.envelope.as_bytes()).is_ok_and(|envelope| carries(&envelope))
    }
}

/// One row of `deliveries`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRow {
    /// Recipient and thread.
    pub key: ThreadKey,
    /// Id on the wire.
    pub id: MessageId,
    /// What is known.
    pub delivery: Delivery,
    /// Unix ms when the owner was told that it is unconfirmed.
    pub escalated_at: Option<i64>,
}

/// Delivery facts of one peer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryHealth {
    /// The peer.
    pub fingerprint: Fingerprint,
    /// Unix ms.
    pub last_sent_at: Option<i64>,
    /// Unix ms.
    pub last_acked_at: Option<i64>,
    /// Unix ms.
    pub last_inbound_at: Option<i64>,
    /// Messages without evidence of processing.
    pub pending_count: u32,
    /// Age of the oldest of them.
    pub oldest_pending_age_ms: Option<i64>,
    /// Messages the owner was told about.
    pub escalated_count: u32,
    /// Whether something waits for more than an hour.
    pub stale: bool,
}

impl Store {
    /// Takes one cleared text into the outbox: message, delivery, windows and envelope in one transaction.
    ///
    /// This is the only way for free text to leave. `seal` makes the finished envelope from the very text that was
    /// cleared. A held message of the same id and text is released instead of being appended again.
    pub async fn enqueue<F, E>(
        &self,
        cleared: Cleared<OutboundMessage>,
        draft: OutboundDraft,
        seal: F,
        now: i64,
    ) -> Result<Queued, E>
    where
        F: FnOnce(&OutboundMessage) -> Result<String, E>,
        E: From<StoreError>,
    {
        let (message, verdict) = cleared.into_parts();
        let envelope = seal(&message)?;
        let verdict = verdict.id.to_string();
        Ok(self.db.write(move |c| enqueue(c, &message.text, &draft, &envelope, &verdict, now)).await?)
    }

    /// Queues a control message. It holds no free text, so it needs no clearance.
    pub async fn enqueue_control<F, E>(
        &self,
        peer: Fingerprint,
        id: MessageId,
        control: Control,
        seal: F,
        now: i64,
    ) -> Result<(), E>
    where
        F: FnOnce(Control) -> Result<String, E>,
        E: From<StoreError>,
    {
        let envelope = seal(control)?;
        let inserted: Result<(), StoreError> = self
            .db
            .write(move |c| {
                c.execute(
                    "INSERT INTO outbox(peer_fp, message_id, envelope, created_at) VALUES (?1, ?2, ?3, ?4)",
                    params![peer.to_string(), id.as_str(), envelope, now],
                )?;
                Ok(())
            })
            .await;
        Ok(inserted?)
    }

    /// Queues the v1 message that carries an envelope of sealed mail. It is tried once: sealed mail tries again by its own
    /// schedule, and what waits here under the same id gives way.
    pub async fn enqueue_carried(
        &self,
        peer: Fingerprint,
        id: MessageId,
        message: String,
        now: i64,
    ) -> Result<(), StoreError> {
        self.db
            .write(move |c| {
                c.prepare_cached(
                    "INSERT OR REPLACE INTO outbox(peer_fp, message_id, envelope, created_at) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![peer.to_string(), id.as_str(), message, now])?;
                Ok(())
            })
            .await
    }

    /// Keeps a text of ours that waits for the owner; it is not in the outbox.
    pub async fn hold_outbound(
        &self,
        text: String,
        draft: OutboundDraft,
        approval: super::ApprovalDraft,
        queue: super::ApprovalQueueLimits,
        now: i64,
    ) -> Result<(), StoreError> {
        self.db
            .write(move |c| {
                claim(c, &draft)?;
                append(c, &text, &draft, MessageState::Held, Some("held"), now)?;
                super::approvals::insert(c, &approval, queue, now)
            })
            .await
    }

    /// A held message of ours will not be sent. False when it is not held any more.
    pub async fn fail_held_outbound(
        &self,
        peer: Fingerprint,
        id: MessageId,
        reason: &str,
    ) -> Result<bool, StoreError> {
        let reason = reason.to_owned();
        self.db
            .write(move |c| {
                if !messages::is_in_state(c, &peer, &id, Direction::Out, MessageState::Held)? {
                    return Ok(false);
                }
                let state = MessageState::Rejected;
                messages::set_state(c, &peer, &id, Direction::Out, state, Some(&reason))
            })
            .await
    }

    /// Whether a message of a peer has an answer of ours that did not fail.
    pub async fn is_answered(&self, peer: Fingerprint, id: MessageId) -> Result<bool, StoreError> {
        self.db.read(move |c| Ok::<_, StoreError>(answer_to(c, &peer, id.as_str())?.is_some())).await
    }

    /// The earlier message with this idempotency key.
    pub async fn by_idempotency_key(&self, key: &str) -> Result<Option<StoredMessage>, StoreError> {
        let key = key.to_owned();
        self.db.read(move |c| find_by_key(c, &key)).await
    }

    /// Rows to write to the carrier now, in order of sending: control messages, and of each thread what
    /// [`due_in_order`] lets through.
    pub async fn outbox_due(&self, now: i64, limit: usize) -> Result<Vec<OutboxRow>, StoreError> {
        self.db.read(move |c| outbox_due(c, now, limit)).await
    }

    /// Earliest time at which a row of the outbox becomes due.
    pub async fn outbox_next_due(&self) -> Result<Option<i64>, StoreError> {
        self.db
            .read(|c| {
                Ok(c.query_row(
                    "SELECT min(coalesce(d.next_retry_at, 0)) FROM outbox o LEFT JOIN deliveries d
                     ON d.peer_fp = o.peer_fp AND d.message_id = o.message_id AND NOT d.sealed
                     WHERE d.peer_fp IS NULL OR d.next_retry_at IS NOT NULL",
                    [],
                    |r| r.get(0),
                )?)
            })
            .await
    }

    /// Makes every open row due at once: the link is back.
    pub async fn outbox_retry_all(&self, now: i64) -> Result<usize, StoreError> {
        self.db
            .write(move |c| {
                Ok(c.execute("UPDATE deliveries SET next_retry_at = ?1 WHERE next_retry_at > ?1", [now])?)
            })
            .await
    }

    /// What is known about one message of ours.
    pub async fn delivery(
        &self,
        peer: Fingerprint,
        id: MessageId,
    ) -> Result<Option<DeliveryRow>, StoreError> {
        self.db.read(move |c| find_delivery(c, &peer, &id)).await
    }

    /// What a v1 relay may speak of: the message of ours to `peer` with this id, or where it names only the id, whoever
    /// the recipient is, the one that still waits for evidence. Never sealed mail, whose ids relays see: of that only its
    /// peer speaks.
    pub async fn delivery_of_v1(
        &self,
        peer: Option<Fingerprint>,
        id: MessageId,
    ) -> Result<Option<DeliveryRow>, StoreError> {
        self.db
            .read(move |c| {
                let row = match peer {
                    Some(peer) => c
                        .prepare_cached(
                            "SELECT *, created_at AS delivery_created_at FROM deliveries
                             WHERE peer_fp = ?1 AND message_id = ?2 AND NOT sealed",
                        )?
                        .query_row(params![peer.to_string(), id.as_str()], read_delivery),
                    None => c
                        .prepare_cached(
                            "SELECT *, created_at AS delivery_created_at FROM deliveries WHERE message_id = ?1
                             AND state IN ('pending', 'sent', 'accepted') AND NOT sealed",
                        )?
                        .query_row([id.as_str()], read_delivery),
                };
                Ok(row.optional()?)
            })
            .await
    }

    /// Drops a control message that the carrier took or refused.
    pub async fn control_done(&self, id: MessageId) -> Result<(), StoreError> {
        self.db
            .write(move |c| {
                c.execute("DELETE FROM outbox WHERE message_id = ?1 AND verdict_id IS NULL", [id.as_str()])?;
                Ok(())
            })
            .await
    }

    /// Stores what is now known about a message of ours. `keep` tells whether its envelope may be needed again.
    pub async fn set_delivery(
        &self,
        row: DeliveryRow,
        reason: Option<String>,
        keep: bool,
    ) -> Result<(), StoreError> {
        self.db.write(move |c| set_delivery(c, &row, reason.as_deref(), keep)).await
    }

    /// Messages of ours without evidence of processing, oldest first.
    pub async fn open_deliveries(&self, limit: u32) -> Result<Vec<DeliveryRow>, StoreError> {
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT *, created_at AS delivery_created_at FROM deliveries
                     WHERE state IN ('pending', 'sent', 'accepted') ORDER BY created_at LIMIT ?1",
                )?;
                let rows = statement.query_map([limit], read_delivery)?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Delivery facts of every peer with messages.
    pub async fn delivery_health(&self, now: i64) -> Result<Vec<DeliveryHealth>, StoreError> {
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT c.peer_fp,
                        (SELECT max(last_attempt_at) FROM deliveries d WHERE d.peer_fp = c.peer_fp),
                        (SELECT max(acked_at) FROM deliveries d WHERE d.peer_fp = c.peer_fp AND state = 'delivered'),
                        (SELECT max(stored_at) FROM messages m WHERE m.peer_fp = c.peer_fp AND direction = 'in'),
                        (SELECT count(*) FROM deliveries d WHERE d.peer_fp = c.peer_fp
                            AND state IN ('pending', 'sent', 'accepted')),
                        (SELECT ?1 - min(created_at) FROM deliveries d WHERE d.peer_fp = c.peer_fp
                            AND state IN ('pending', 'sent', 'accepted')),
                        (SELECT count(*) FROM deliveries d WHERE d.peer_fp = c.peer_fp AND escalated_at IS NOT NULL
                            AND state IN ('pending', 'sent', 'accepted'))
                     FROM conversations c GROUP BY c.peer_fp",
                )?;
                let rows = statement.query_map([now], |r| {
                    let oldest: Option<i64> = r.get(5)?;
                    Ok(DeliveryHealth {
                        fingerprint: parsed(r, "peer_fp")?,
                        last_sent_at: r.get(1)?,
                        last_acked_at: r.get(2)?,
                        last_inbound_at: r.get(3)?,
                        pending_count: r.get(4)?,
                        oldest_pending_age_ms: oldest,
                        escalated_count: r.get(6)?,
                        stale: oldest.is_some_and(|age| age > 3_600_000),
                    })
                })?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Deletes terminal deliveries created before `before`.
    pub async fn purge_deliveries(&self, before: i64) -> Result<usize, StoreError> {
        self.db
            .write(move |c| {
                Ok(c.execute(
                    "DELETE FROM deliveries WHERE created_at < ?1
                     AND state IN ('delivered', 'rejected', 'failed', 'expired')",
                    [before],
                )?)
            })
            .await
    }
}

fn outbox_due(c: &Connection, now: i64, limit: usize) -> Result<Vec<OutboxRow>, StoreError> {
    let mut statement = c.prepare_cached(
        "SELECT o.id AS outbox_id, o.peer_fp, o.message_id, d.thread_id, d.state, d.attempts, d.rejections,
            d.peer_dedups, d.next_retry_at, d.last_attempt_at, d.acked_at, d.escalated_at, d.expires_at,
            d.created_at AS delivery_created_at
         FROM outbox o
            LEFT JOIN deliveries d ON d.peer_fp = o.peer_fp AND d.message_id = o.message_id AND NOT d.sealed
         ORDER BY o.id LIMIT ?1",
    )?;
    let rows = statement.query_map([MAX_OPEN], |r| {
        let thread: Option<String> = r.get("thread_id")?;
        let delivery = thread.map(|_| read_delivery(r)).transpose()?;
        let row = OutboxRow {
            peer: parsed(r, "peer_fp")?,
            id: parsed(r, "message_id")?,
            envelope: String::new(),
            delivery,
        };
        Ok((r.get::<_, i64>("outbox_id")?, row))
    })?;
    let rows: Vec<(i64, OutboxRow)> = rows.collect::<rusqlite::Result<_>>()?;
    let (messages, mut due): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(_, row)| row.delivery.is_some());
    let known = messages.iter().filter_map(|(_, row)| {
        let delivery = row.delivery.as_ref()?;
        Some((&delivery.key, &delivery.delivery))
    });
    let chosen = due_in_order(known, now, false);
    due.extend(chosen.into_iter().filter_map(|position| messages.get(position).cloned()));
    due.truncate(limit);
    let mut envelope = c.prepare_cached("SELECT envelope FROM outbox WHERE id = ?1")?;
    due.into_iter()
        .map(|(id, row)| Ok(OutboxRow { envelope: envelope.query_row([id], |r| r.get(0))?, ..row }))
        .collect()
}

fn enqueue(
    c: &Connection,
    text: &str,
    draft: &OutboundDraft,
    envelope: &str,
    verdict: &str,
    now: i64,
) -> Result<Queued, StoreError> {
    let queued = enqueue_message(c, text, draft, false, now)?;
    if queued == Queued::New {
        c.prepare_cached(
            "INSERT INTO outbox(peer_fp, message_id, envelope, verdict_id, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![draft.key.peer.to_string(), draft.id.as_str(), envelope, verdict, now])?;
    }
    Ok(queued)
}

/// Everything of an outgoing message but what its carrier needs. `sealed`: sealed mail carries it, and tries again by
/// its own schedule.
pub(super) fn enqueue_message(
    c: &Connection,
    text: &str,
    draft: &OutboundDraft,
    sealed: bool,
    now: i64,
) -> Result<Queued, StoreError> {
    if let Some(key) = &draft.idempotency_key
        && let Some(earlier) = find_by_key(c, key)?
        && earlier.id != draft.id
    {
        return Ok(Queued::Existing(Box::new(earlier)));
    }
    if messages::exists(c, &draft.key.peer, &draft.id, Direction::Out)? {
        messages::set_state(c, &draft.key.peer, &draft.id, Direction::Out, MessageState::PendingSend, None)?;
    } else {
        claim(c, draft)?;
        append(c, text, draft, MessageState::PendingSend, None, now)?;
    }
    let peer = draft.key.peer.to_string();
    c.prepare_cached(
        "INSERT INTO deliveries(peer_fp, message_id, thread_id, content_hash, state, peer_dedups, next_retry_at,
            expires_at, created_at, sealed) VALUES (?1, ?2, ?3, ?4, 'pending', ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        peer,
        draft.id.as_str(),
        draft.key.thread.as_str(),
        sha256(text.as_bytes()),
        draft.delivery.peer_dedups,
        draft.delivery.next_retry_at.filter(|_| !sealed),
        draft.delivery.expires_at,
        draft.delivery.created_at,
        sealed
    ])?;
    for window in &draft.windows {
        limits::record(c, window, now)?;
    }
    c.prepare_cached(
        "UPDATE conversations SET origin_topic_id = coalesce(origin_topic_id, ?3),
            origin_session = coalesce(origin_session, ?4) WHERE peer_fp = ?1 AND thread_id = ?2",
    )?
    .execute(params![peer, draft.key.thread.as_str(), draft.origin_topic_id, draft.author_session])?;
    let event = if draft.in_reply_to.is_some() { ThreadEvent::AnsweredPeer } else { ThreadEvent::AskedPeer };
    messages::thread_event(c, &draft.key, event)?;
    Ok(Queued::New)
}

fn append(
    c: &Connection,
    text: &str,
    draft: &OutboundDraft,
    state: MessageState,
    reason: Option<&str>,
    now: i64,
) -> Result<(), StoreError> {
    messages::append(
        c,
        &NewMessage {
            key: &draft.key,
            peer_name: &draft.peer_name,
            id: &draft.id,
            direction: Direction::Out,
            kind: &draft.kind,
            body: text,
            subject: &draft.subject,
            in_reply_to: draft.in_reply_to.as_ref().map(MessageId::as_str),
            created_at: now,
            transport: "relay",
            auth: draft.auth,
            trust: draft.trust,
            state,
            reason,
            author_session: draft.author_session.as_deref(),
            idempotency_key: draft.idempotency_key.as_deref(),
        },
        now,
    )?;
    Ok(())
}

/// One reply per inbound message: a claim that stands refuses the second.
fn claim(c: &Connection, draft: &OutboundDraft) -> Result<(), StoreError> {
    let Some(answered) = &draft.in_reply_to else { return Ok(()) };
    match answer_to(c, &draft.key.peer, answered.as_str())? {
        Some(by) => Err(StoreError::AlreadyAnswered { in_reply_to: answered.to_string(), by }),
        None => Ok(()),
    }
}

/// Id of the message that answers this one of a peer, unless it failed.
fn answer_to(c: &Connection, peer: &Fingerprint, id: &str) -> Result<Option<String>, StoreError> {
    Ok(c.prepare_cached(
        "SELECT message_id FROM messages WHERE peer_fp = ?1 AND in_reply_to = ?2 AND direction = 'out'
         AND state NOT IN ('failed', 'rejected', 'expired')",
    )?
    .query_row(params![peer.to_string(), id], |r| r.get(0))
    .optional()?)
}

fn find_by_key(c: &Connection, key: &str) -> Result<Option<StoredMessage>, StoreError> {
    Ok(c.prepare_cached("SELECT * FROM messages WHERE idempotency_key = ?1 AND direction = 'out'")?
        .query_row([key], StoredMessage::from_row)
        .optional()?)
}

pub(super) fn find_delivery(
    c: &Connection,
    peer: &Fingerprint,
    id: &MessageId,
) -> Result<Option<DeliveryRow>, StoreError> {
    Ok(c.prepare_cached(
        "SELECT *, created_at AS delivery_created_at FROM deliveries WHERE peer_fp = ?1 AND message_id = ?2",
    )?
    .query_row(params![peer.to_string(), id.as_str()], read_delivery)
    .optional()?)
}

pub(super) fn set_delivery(
    c: &Connection,
    row: &DeliveryRow,
    reason: Option<&str>,
    keep: bool,
) -> Result<(), StoreError> {
    let peer = row.key.peer.to_string();
    let delivery = &row.delivery;
    c.prepare_cached(
        "UPDATE deliveries SET state = ?3, attempts = ?4, rejections = ?5, next_retry_at = ?6,
            last_attempt_at = ?7, acked_at = ?8, escalated_at = ?9 WHERE peer_fp = ?1 AND message_id = ?2",
    )?
    .execute(params![
        peer,
        row.id.as_str(),
        state_text(delivery.state),
        delivery.attempts,
        delivery.rejections,
        delivery.next_retry_at,
        delivery.last_attempt_at,
        delivery.acked_at,
        row.escalated_at
    ])?;
    let message = match delivery.state {
        DeliveryState::Pending => MessageState::PendingSend,
        DeliveryState::Sent => MessageState::Sent,
        DeliveryState::Accepted => MessageState::Accepted,
        DeliveryState::Delivered => MessageState::Delivered,
        DeliveryState::Rejected => MessageState::Rejected,
        DeliveryState::Failed => MessageState::Failed,
        DeliveryState::Expired => MessageState::Expired,
    };
    messages::set_state(c, &row.key.peer, &row.id, Direction::Out, message, reason)?;
    if !keep {
        c.prepare_cached("DELETE FROM outbox WHERE peer_fp = ?1 AND message_id = ?2")?
            .execute(params![peer, row.id.as_str()])?;
    }
    Ok(())
}

/// A message from the peer on the thread: what the carrier had confirmed by then arrived. Sealed mail has receipts for
/// that.
pub(super) fn acknowledge_thread(
    c: &Connection,
    key: &ThreadKey,
    state: DeliveryState,
    now: i64,
) -> Result<(), StoreError> {
    let (peer, thread) = (key.peer.to_string(), key.thread.as_str());
    c.prepare_cached(
        "DELETE FROM outbox WHERE peer_fp = ?1 AND message_id IN (SELECT message_id FROM deliveries
            WHERE peer_fp = ?1 AND thread_id = ?2 AND state IN ('sent', 'accepted') AND acked_at IS NOT NULL
            AND NOT sealed)",
    )?
    .execute(params![peer, thread])?;
    c.prepare_cached(
        "UPDATE messages SET state = ?3 WHERE direction = 'out' AND peer_fp = ?1 AND message_id IN (
            SELECT message_id FROM deliveries WHERE peer_fp = ?1 AND thread_id = ?2
            AND state IN ('sent', 'accepted') AND acked_at IS NOT NULL AND NOT sealed)",
    )?
    .execute(params![peer, thread, state_text(state)])?;
    c.prepare_cached(
        "UPDATE deliveries SET state = ?3, acked_at = ?4, next_retry_at = NULL
         WHERE peer_fp = ?1 AND thread_id = ?2 AND state IN ('sent', 'accepted') AND acked_at IS NOT NULL
            AND NOT sealed",
    )?
    .execute(params![peer, thread, state_text(state), now])?;
    Ok(())
}

fn read_delivery(row: &Row<'_>) -> rusqlite::Result<DeliveryRow> {
    let state: String = row.get("state")?;
    Ok(DeliveryRow {
        key: ThreadKey { peer: parsed(row, "peer_fp")?, thread: parsed::<ThreadId>(row, "thread_id")? },
        id: parsed(row, "message_id")?,
        delivery: Delivery {
            state: state_of(&state),
            attempts: row.get("attempts")?,
            rejections: row.get("rejections")?,
            created_at: row.get("delivery_created_at")?,
            expires_at: row.get("expires_at")?,
            last_attempt_at: row.get("last_attempt_at")?,
            acked_at: row.get("acked_at")?,
            next_retry_at: row.get("next_retry_at")?,
            peer_dedups: row.get("peer_dedups")?,
        },
        escalated_at: row.get("escalated_at")?,
    })
}

const fn state_text(state: DeliveryState) -> &'static str {
    match state {
        DeliveryState::Pending => "pending",
        DeliveryState::Sent => "sent",
        DeliveryState::Accepted => "accepted",
        DeliveryState::Delivered => "delivered",
        DeliveryState::Rejected => "rejected",
        DeliveryState::Failed => "failed",
        DeliveryState::Expired => "expired",
    }
}

fn state_of(text: &str) -> DeliveryState {
    match text {
        "pending" => DeliveryState::Pending,
        "sent" => DeliveryState::Sent,
        "accepted" => DeliveryState::Accepted,
        "delivered" => DeliveryState::Delivered,
        "rejected" => DeliveryState::Rejected,
        "expired" => DeliveryState::Expired,
        _ => DeliveryState::Failed,
    }
}
