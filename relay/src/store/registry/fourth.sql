-- Devices of identities that speak v2, keys to start sessions with them, and where they can be reached.
CREATE TABLE device_lists(
    public_key BLOB PRIMARY KEY, address BLOB NOT NULL UNIQUE, list BLOB NOT NULL, list_sig BLOB NOT NULL,
    seq INTEGER NOT NULL, lease INTEGER NOT NULL DEFAULT 0, no_v1 INTEGER NOT NULL DEFAULT 0,
    private INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID;
CREATE TABLE devices(
    public_key BLOB NOT NULL, device BLOB NOT NULL, cert BLOB NOT NULL, cert_sig BLOB NOT NULL,
    seq INTEGER NOT NULL, key_mark INTEGER NOT NULL DEFAULT 0, fallback BLOB, fallback_sig BLOB,
    fallback_until INTEGER NOT NULL DEFAULT 0, PRIMARY KEY(public_key, device)) STRICT, WITHOUT ROWID;
CREATE TABLE one_time_keys(
    public_key BLOB NOT NULL, device BLOB NOT NULL, key_id INTEGER NOT NULL, prekey BLOB NOT NULL,
    sig BLOB NOT NULL, not_after INTEGER NOT NULL, PRIMARY KEY(public_key, device, key_id)) STRICT, WITHOUT ROWID;
CREATE TABLE address_records(
    public_key BLOB PRIMARY KEY, record BLOB NOT NULL, sig BLOB NOT NULL, seq INTEGER NOT NULL,
    expires_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
