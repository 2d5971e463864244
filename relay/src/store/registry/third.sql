-- Whether anyone may call the agent over the bridge.
ALTER TABLE agents ADD COLUMN a2a_open INTEGER NOT NULL DEFAULT 0;
-- Conversations of callers of the bridge.
CREATE TABLE a2a_ctx(
    context_id TEXT PRIMARY KEY, agent BLOB NOT NULL, caller BLOB NOT NULL, thread_id TEXT NOT NULL,
    last_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX a2a_ctx_last_at ON a2a_ctx(last_at);
