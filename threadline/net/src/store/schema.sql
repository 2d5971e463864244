CREATE TABLE conversations(
    peer_fp TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    state TEXT NOT NULL,
    subject TEXT NOT NULL,
    peer_name TEXT NOT NULL,
    opened_by TEXT NOT NULL CHECK (opened_by IN ('us', 'peer')),
    session_id TEXT,
    origin_topic_id INTEGER,
    origin_session TEXT,
    similar_turns INTEGER NOT NULL DEFAULT 0,
    pinned INTEGER NOT NULL DEFAULT 0,
    approved INTEGER NOT NULL DEFAULT 0,
    next_seq INTEGER NOT NULL DEFAULT 1,
    message_count INTEGER NOT NULL DEFAULT 0,
    head_hash BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    last_activity_at INTEGER NOT NULL,
    resolved_at INTEGER,
    deleted_at INTEGER,
    PRIMARY KEY (peer_fp, thread_id)
) STRICT;
CREATE INDEX conversations_thread ON conversations(thread_id);
CREATE INDEX conversations_activity ON conversations(last_activity_at);

CREATE TABLE messages(
    id INTEGER PRIMARY KEY,
    peer_fp TEXT NOT NULL,
    message_id TEXT NOT NULL,
    direction TEXT NOT NULL CHECK (direction IN ('in', 'out')),
    thread_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    type TEXT NOT NULL,
    body TEXT,
    body_sha256 BLOB NOT NULL,
    subject TEXT NOT NULL,
    in_reply_to TEXT,
    created_at INTEGER NOT NULL,
    stored_at INTEGER NOT NULL,
    transport TEXT NOT NULL,
    auth TEXT NOT NULL,
    trust_at_receipt TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT,
    author_session TEXT,
    idempotency_key TEXT,
    prev_hash BLOB NOT NULL,
    hash BLOB NOT NULL,
    UNIQUE (peer_fp, message_id, direction),
    UNIQUE (peer_fp, thread_id, seq),
    FOREIGN KEY (peer_fp, thread_id) REFERENCES conversations(peer_fp, thread_id)
) STRICT;
CREATE INDEX messages_text ON messages(peer_fp, thread_id, body_sha256);
CREATE INDEX messages_open ON messages(state) WHERE direction = 'in' AND state IN ('stored', 'queued', 'held');
CREATE UNIQUE INDEX messages_reply_claim ON messages(peer_fp, in_reply_to)
    WHERE direction = 'out' AND in_reply_to IS NOT NULL AND state NOT IN ('failed', 'rejected', 'expired');
CREATE UNIQUE INDEX messages_idempotency ON messages(idempotency_key)
    WHERE direction = 'out' AND idempotency_key IS NOT NULL;

CREATE VIRTUAL TABLE messages_fts USING fts5(
    subject, body, content = 'messages', content_rowid = 'id', tokenize = 'unicode61 remove_diacritics 2'
);
CREATE TRIGGER messages_fts_insert AFTER INSERT ON messages BEGIN
    INSERT INTO messages_fts(rowid, subject, body) VALUES (new.id, new.subject, new.body);
END;
CREATE TRIGGER messages_fts_body AFTER UPDATE OF body ON messages BEGIN
    INSERT INTO messages_fts(messages_fts, rowid, subject, body) VALUES ('delete', old.id, old.subject, old.body);
    INSERT INTO messages_fts(rowid, subject, body) VALUES (new.id, new.subject, new.body);
END;

CREATE TABLE deliveries(
    peer_fp TEXT NOT NULL,
    message_id TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    content_hash BLOB NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    rejections INTEGER NOT NULL DEFAULT 0,
    peer_dedups INTEGER NOT NULL,
    next_retry_at INTEGER,
    last_attempt_at INTEGER,
    acked_at INTEGER,
    escalated_at INTEGER,
    expires_at INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (peer_fp, message_id)
) STRICT;
CREATE INDEX deliveries_due ON deliveries(next_retry_at) WHERE next_retry_at IS NOT NULL;
CREATE INDEX deliveries_thread ON deliveries(peer_fp, thread_id);

CREATE TABLE outbox(
    id INTEGER PRIMARY KEY,
    peer_fp TEXT NOT NULL,
    message_id TEXT NOT NULL,
    envelope TEXT NOT NULL,
    verdict_id TEXT,
    created_at INTEGER NOT NULL,
    UNIQUE (peer_fp, message_id)
) STRICT;

CREATE TABLE seen(
    peer_fp TEXT NOT NULL,
    message_id TEXT NOT NULL,
    content_hash BLOB NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (peer_fp, message_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE spool(
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    relay TEXT NOT NULL,
    message_id TEXT NOT NULL,
    from_fp TEXT NOT NULL,
    thread_id TEXT,
    transport TEXT NOT NULL,
    envelope BLOB NOT NULL,
    env_hash BLOB NOT NULL,
    not_before INTEGER NOT NULL DEFAULT 0,
    received_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    reason TEXT,
    state TEXT NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'ingested', 'refused')),
    UNIQUE (from_fp, message_id, env_hash)
) STRICT;
CREATE INDEX spool_new ON spool(from_fp, seq) WHERE state = 'new';

CREATE TABLE approvals(
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    peer_fp TEXT NOT NULL,
    message_id TEXT,
    thread_id TEXT,
    subject TEXT NOT NULL,
    preview TEXT NOT NULL,
    details TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending',
    decided_at INTEGER,
    decided_by TEXT
) STRICT;
CREATE INDEX approvals_pending ON approvals(peer_fp, kind) WHERE status = 'pending';

CREATE TABLE windows(
    limit_name TEXT NOT NULL,
    key TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT;
CREATE INDEX windows_by_key ON windows(limit_name, key, at);

CREATE TABLE spawn_ledger(
    event_id TEXT PRIMARY KEY,
    peer_fp TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    nonce BLOB NOT NULL,
    spawned_at INTEGER NOT NULL,
    status TEXT NOT NULL,
    terminal_at INTEGER,
    failure_reason TEXT,
    session_id TEXT,
    pid INTEGER
) STRICT;
CREATE INDEX spawn_ledger_session ON spawn_ledger(session_id);
CREATE INDEX spawn_ledger_peer ON spawn_ledger(peer_fp, spawned_at);

CREATE TABLE peer_keys(
    public_key BLOB PRIMARY KEY,
    fingerprint TEXT NOT NULL UNIQUE,
    pinned_at INTEGER NOT NULL,
    source TEXT NOT NULL
) STRICT;

CREATE TABLE known_peers(
    fingerprint TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    capabilities TEXT NOT NULL,
    framework TEXT NOT NULL,
    status TEXT NOT NULL,
    first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL,
    machine TEXT,
    sources TEXT NOT NULL
) STRICT;
