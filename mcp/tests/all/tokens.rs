//! The token file: what is stored, who may pass, and how fast changes count.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use chrono::{DateTime, Duration, Utc};
use instar_mcp::tokens::{NewToken, TokenError, TokenFile, Tokens, parse_scope};
use proptest::prelude::*;
use serde_json::Value;
use tempfile::TempDir;
use threadline::Fingerprint;
use threadline::service::Scope;

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_795_000_000, 0).expect("a time")
}

fn wanted(scopes: &[Scope]) -> NewToken {
    NewToken { name: "laptop".into(), scopes: scopes.to_vec(), expires_at: None, peer: None }
}

fn fresh() -> (TempDir, PathBuf) {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("mcp-tokens.json");
    (dir, path)
}

#[test]
fn only_a_hash_is_stored_and_only_for_the_owner() {
    let (_dir, path) = fresh();
    let created = TokenFile::new(&path).create(wanted(&[Scope::Send, Scope::Read]), now()).expect("created");
    assert_eq!(created.token.len(), 64);
    let text = std::fs::read_to_string(&path).expect("written");
    assert!(!text.contains(&created.token));
    let stored: Value = serde_json::from_str(&text).expect("JSON");
    let record = &stored["tokens"][0];
    assert_eq!(record["id"].as_str().map(str::len), Some(20));
    assert!(record["id"].as_str().is_some_and(|id| id.starts_with("mcp_")));
    assert_eq!(record["scopes"], serde_json::json!(["threadline:send", "threadline:read"]));
    assert_eq!(record["hashedToken"].as_str().map(str::len), Some(64));
    assert_eq!((&record["revoked"], &record["expiresAt"]), (&Value::Bool(false), &Value::Null));
    let mode = std::fs::metadata(&path).expect("written").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_token_stands_for_its_scopes_and_peer() {
    let (_dir, path) = fresh();
    let peer = Fingerprint::from_bytes([7; 16]);
    let new = NewToken { peer: Some(peer), ..wanted(&[Scope::Read]) };
    let created = TokenFile::new(&path).create(new, now()).expect("created");
    let caller = Tokens::new(&path).authenticate(&created.token, now()).expect("known");
    assert_eq!(
        (caller.token_id, caller.scopes, caller.peer),
        (created.record.id, vec![Scope::Read], Some(peer))
    );
}

#[test]
fn changes_of_the_file_count_at_once() {
    let (_dir, path) = fresh();
    let (file, tokens) = (TokenFile::new(&path), Tokens::new(&path));
    assert_eq!(tokens.authenticate("x", now()), None, "there is no file yet");
    let one = file.create(wanted(&[Scope::Send]), now()).expect("created");
    let two = file.create(wanted(&[Scope::Send]), now()).expect("created");
    assert!(tokens.authenticate(&one.token, now()).is_some());
    file.revoke(&one.record.id).expect("revoked");
    assert_eq!(tokens.authenticate(&one.token, now()), None);
    assert!(tokens.authenticate(&two.token, now()).is_some());
    file.delete(&two.record.id).expect("deleted");
    assert_eq!(tokens.authenticate(&two.token, now()), None);
    assert_eq!(file.list().expect("readable").len(), 1, "the revoked one is still listed");
}

#[test]
fn a_token_expires() {
    let (_dir, path) = fresh();
    let expires_at = Some(now() + Duration::days(30));
    let new = NewToken { expires_at, ..wanted(&[Scope::Send]) };
    let created = TokenFile::new(&path).create(new, now()).expect("created");
    let tokens = Tokens::new(&path);
    assert!(tokens.authenticate(&created.token, now() + Duration::days(29)).is_some());
    assert_eq!(tokens.authenticate(&created.token, now() + Duration::days(30)), None);
}

#[test]
fn nothing_close_to_a_token_passes() {
    let (_dir, path) = fresh();
    let created = TokenFile::new(&path).create(wanted(&[Scope::Admin]), now()).expect("created");
    let tokens = Tokens::new(&path);
    let upper = created.token.to_uppercase();
    for wrong in ["", &created.token[..63], &upper, &created.record.hashed_token, &created.record.id] {
        assert_eq!(tokens.authenticate(wrong, now()), None, "{wrong}");
    }
}

#[test]
fn a_damaged_file_lets_nobody_in_and_is_not_overwritten() {
    let (_dir, path) = fresh();
    let file = TokenFile::new(&path);
    let created = file.create(wanted(&[Scope::Send]), now()).expect("created");
    let tokens = Tokens::new(&path);
    assert!(tokens.authenticate(&created.token, now()).is_some());
    std::fs::write(&path, "{\"tokens\": [").expect("written");
    assert_eq!(tokens.authenticate(&created.token, now()), None);
    assert!(matches!(file.create(wanted(&[Scope::Send]), now()), Err(TokenError::Damaged { .. })));
    assert_eq!(std::fs::read_to_string(&path).expect("readable"), "{\"tokens\": [");
}

#[test]
fn senseless_tokens_are_refused_and_unknown_ids_named() {
    let (_dir, path) = fresh();
    let file = TokenFile::new(&path);
    let unnamed = NewToken { name: " ".into(), ..wanted(&[Scope::Send]) };
    assert!(matches!(file.create(unnamed, now()), Err(TokenError::BadName)));
    assert!(matches!(file.create(wanted(&[]), now()), Err(TokenError::NoScope)));
    let error = file.revoke("mcp_0").err().map(|error| error.to_string());
    assert_eq!(error.as_deref(), Some("there is no token `mcp_0`; `instar mcp token list` shows all"));
    assert_eq!(parse_scope("threadline:read"), Some(Scope::Read));
    assert_eq!(parse_scope("threadline:everything"), None);
}

#[test]
fn a_scope_of_a_later_version_is_kept_and_allows_nothing() {
    let (_dir, path) = fresh();
    let file = TokenFile::new(&path);
    let created = file.create(wanted(&[Scope::Read]), now()).expect("created");
    let text = std::fs::read_to_string(&path).expect("written");
    std::fs::write(&path, text.replace("threadline:read", "threadline:bridge")).expect("written");
    let caller = Tokens::new(&path).authenticate(&created.token, now()).expect("known");
    assert_eq!(caller.scopes, []);
    file.revoke(&created.record.id).expect("revoked");
    assert_eq!(file.list().expect("readable")[0].scopes, ["threadline:bridge"]);
}

proptest! {
    #[test]
    fn any_file_content_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (_dir, path) = fresh();
        std::fs::write(&path, &bytes).expect("written");
        let _ = TokenFile::new(&path).list();
        prop_assert_eq!(Tokens::new(&path).authenticate("x", now()), None);
    }
}
