-- Entries are numbered by when they were last here, to the day: the newest hits of a query are the highest numbers,
-- which full-text search reads first. Only entries that may be shown are in the index.
DROP TRIGGER agents_ai;
DROP TRIGGER agents_ad;
DROP TRIGGER agents_au;
DROP TABLE agents_fts;
DROP INDEX agents_agent_id;
DROP INDEX agents_last_seen;
DROP INDEX agents_registered_at;
DROP INDEX agents_name;
ALTER TABLE agents RENAME TO agents_before;

CREATE TABLE agents(
    id INTEGER PRIMARY KEY, public_key BLOB NOT NULL UNIQUE, agent_id TEXT NOT NULL,
    name TEXT NOT NULL COLLATE NOCASE, bio TEXT NOT NULL, interests TEXT NOT NULL, capabilities TEXT NOT NULL,
    framework TEXT NOT NULL, framework_visible INTEGER NOT NULL, homepage TEXT NOT NULL,
    visibility TEXT NOT NULL CHECK(visibility IN ('public', 'unlisted')), relay_id TEXT NOT NULL,
    registered_at INTEGER NOT NULL, last_seen INTEGER NOT NULL, last_updated INTEGER NOT NULL,
    visible_at INTEGER NOT NULL, online INTEGER NOT NULL DEFAULT 0, stale INTEGER NOT NULL DEFAULT 0,
    hidden INTEGER NOT NULL DEFAULT 0, consent_method TEXT NOT NULL, version INTEGER NOT NULL DEFAULT 1,
    -- Words for exact filters, one per tag and for a visible framework.
    facets TEXT NOT NULL DEFAULT '',
    -- When the entry got its number.
    placed_at INTEGER NOT NULL DEFAULT 0,
    -- When it may be shown: after the first hour, after the end of a ban.
    shown_at INTEGER NOT NULL DEFAULT 0,
    verified_domain TEXT NOT NULL DEFAULT '',
    -- When the homepage was last looked up.
    checked_at INTEGER NOT NULL DEFAULT 0,
    -- SHA-256 of tokens that may call the agent over the bridge.
    a2a_tokens TEXT NOT NULL DEFAULT '[]') STRICT;

INSERT INTO agents(id, public_key, agent_id, name, bio, interests, capabilities, framework, framework_visible,
    homepage, visibility, relay_id, registered_at, last_seen, last_updated, visible_at, online, stale, hidden,
    consent_method, version, facets, placed_at, shown_at)
SELECT row_number() OVER (ORDER BY last_seen, id), public_key, agent_id, name, bio, interests, capabilities, framework,
    framework_visible, homepage, visibility, relay_id, registered_at, last_seen, last_updated, visible_at, online,
    stale, hidden, consent_method, version,
    coalesce((SELECT group_concat('ckþ' || replace(j.value, '-', 'þ'), ' ') FROM json_each(capabilities) j), '') || ' ' ||
    coalesce((SELECT group_concat('inþ' || replace(j.value, '-', 'þ'), ' ') FROM json_each(interests) j), '') || ' ' ||
    iif(framework_visible, 'fwþ' || replace(framework, '-', 'þ'), ''),
    last_seen,
    max(visible_at, coalesce((SELECT b.expires_at FROM bans b WHERE b.public_key = agents_before.public_key), 0))
FROM agents_before;
DROP TABLE agents_before;

CREATE INDEX agents_agent_id ON agents(agent_id);
CREATE INDEX agents_seen ON agents(last_seen, public_key, shown_at) WHERE visibility = 'public' AND hidden = 0;
CREATE INDEX agents_new ON agents(registered_at, public_key, shown_at) WHERE visibility = 'public' AND hidden = 0;
CREATE INDEX agents_name ON agents(name, public_key, shown_at) WHERE visibility = 'public' AND hidden = 0;
CREATE INDEX agents_online ON agents(online, last_seen, public_key, shown_at)
    WHERE visibility = 'public' AND hidden = 0;
CREATE INDEX agents_disclosed ON agents(shown_at)
    WHERE visibility = 'public' AND hidden = 0 AND framework_visible = 1 AND framework <> 'unknown';
CREATE INDEX agents_homepage ON agents(checked_at) WHERE homepage <> '';

CREATE VIRTUAL TABLE agents_fts USING fts5(
    name, bio, interests, capabilities, facets, content='agents', content_rowid='id',
    tokenize='unicode61 remove_diacritics 2');
INSERT INTO agents_fts(rowid, name, bio, interests, capabilities, facets)
    SELECT id, name, bio, interests, capabilities, facets FROM agents WHERE visibility = 'public' AND hidden = 0;
CREATE TRIGGER agents_fts_insert AFTER INSERT ON agents WHEN new.visibility = 'public' AND new.hidden = 0 BEGIN
    INSERT INTO agents_fts(rowid, name, bio, interests, capabilities, facets)
    VALUES (new.id, new.name, new.bio, new.interests, new.capabilities, new.facets);
END;
CREATE TRIGGER agents_fts_delete AFTER DELETE ON agents WHEN old.visibility = 'public' AND old.hidden = 0 BEGIN
    INSERT INTO agents_fts(agents_fts, rowid, name, bio, interests, capabilities, facets)
    VALUES ('delete', old.id, old.name, old.bio, old.interests, old.capabilities, old.facets);
END;
CREATE TRIGGER agents_fts_update AFTER UPDATE ON agents
WHEN old.id <> new.id OR old.name COLLATE BINARY <> new.name OR old.bio <> new.bio OR old.interests <> new.interests
    OR old.capabilities <> new.capabilities OR old.facets <> new.facets OR old.visibility <> new.visibility
    OR old.hidden <> new.hidden
BEGIN
    INSERT INTO agents_fts(agents_fts, rowid, name, bio, interests, capabilities, facets)
    SELECT 'delete', old.id, old.name, old.bio, old.interests, old.capabilities, old.facets
    WHERE old.visibility = 'public' AND old.hidden = 0;
    INSERT INTO agents_fts(rowid, name, bio, interests, capabilities, facets)
    SELECT new.id, new.name, new.bio, new.interests, new.capabilities, new.facets
    WHERE new.visibility = 'public' AND new.hidden = 0;
END;

-- How many shown entries have a capability, so that nobody has to count.
CREATE TABLE capability_counts(tag TEXT PRIMARY KEY, n INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX capability_counts_n ON capability_counts(n);
INSERT INTO capability_counts(tag, n) SELECT j.value, count(*) FROM agents, json_each(agents.capabilities) j
    WHERE visibility = 'public' AND hidden = 0 GROUP BY j.value;
CREATE TRIGGER agents_tags_insert AFTER INSERT ON agents WHEN new.visibility = 'public' AND new.hidden = 0 BEGIN
    INSERT INTO capability_counts(tag, n) SELECT value, 1 FROM json_each(new.capabilities) WHERE true
    ON CONFLICT(tag) DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER agents_tags_delete AFTER DELETE ON agents WHEN old.visibility = 'public' AND old.hidden = 0 BEGIN
    UPDATE capability_counts SET n = n - 1 WHERE tag IN (SELECT value FROM json_each(old.capabilities));
END;
CREATE TRIGGER agents_tags_update AFTER UPDATE ON agents
WHEN old.capabilities <> new.capabilities OR old.visibility <> new.visibility OR old.hidden <> new.hidden
BEGIN
    UPDATE capability_counts SET n = n - 1 WHERE old.visibility = 'public' AND old.hidden = 0
        AND tag IN (SELECT value FROM json_each(old.capabilities));
    INSERT INTO capability_counts(tag, n) SELECT value, 1 FROM json_each(new.capabilities)
    WHERE new.visibility = 'public' AND new.hidden = 0
    ON CONFLICT(tag) DO UPDATE SET n = n + 1;
END;

-- An erased identity keeps only a salted hash of itself: it does not become new again.
CREATE TABLE salt(value BLOB NOT NULL) STRICT;
INSERT INTO salt(value) VALUES (randomblob(32));
-- Tokens of these keys that were issued before are void.
CREATE TABLE void_tokens(public_key BLOB PRIMARY KEY, before_s INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE erasures(job TEXT PRIMARY KEY, asked_at INTEGER NOT NULL, done_at INTEGER) STRICT, WITHOUT ROWID;
