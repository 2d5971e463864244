CREATE TABLE invitations(
    token_id TEXT PRIMARY KEY,
    label TEXT,
    expires_at INTEGER NOT NULL,
    max_uses INTEGER NOT NULL,
    recipient TEXT,
    uses INTEGER NOT NULL DEFAULT 0,
    revoked_at INTEGER,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE redemptions(
    token_id TEXT NOT NULL REFERENCES invitations(token_id),
    redeemed_by TEXT NOT NULL,
    redeemed_at INTEGER NOT NULL,
    raised INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (token_id, redeemed_by)
) STRICT;

CREATE TABLE joins(
    token_id TEXT PRIMARY KEY,
    issuer TEXT NOT NULL,
    token TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'joined', 'refused', 'expired')),
    code TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    next_try_at INTEGER,
    expires_at INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX joins_pending ON joins(next_try_at) WHERE state = 'pending';

CREATE TABLE nonces(
    nonce TEXT PRIMARY KEY,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX nonces_expiry ON nonces(expires_at);
