use super::*;
use crate::testing::{hex32, text, vectors};
use proptest::prelude::*;
use serde_json::json;

#[test]
fn the_recorded_login_is_made_byte_for_byte() {
    let vector = &vectors()["relayAuth"];
    let identity = Identity::from_seed(&hex32(&vectors()["identities"]["alice"]["ed25519Seed"]));
    let Ok(ServerFrame::Challenge(nonce)) = ServerFrame::parse(&vector["challenge"].to_string()) else {
        panic!("a challenge");
    };
    let nonce = LoginNonce::parse(&nonce).expect("a safe nonce");
    let recorded = &vector["authFrame"];
    let metadata = serde_json::from_value(recorded["metadata"].clone()).expect("metadata");
    let auth = Auth::new(&identity, &nonce, metadata, Visibility::Public);
    assert_eq!(ClientFrame::Auth(Box::new(auth.clone())).to_text(), recorded.to_string());
    assert_eq!(auth.verify(&nonce).expect("verifies").fingerprint(), identity.fingerprint());

    let wrong = text(&vector["wrongSignatureOverDecodedNonce"]).to_owned();
    assert_eq!(Auth { signature: wrong, ..auth }.verify(&nonce), Err(LoginRefusal::Signature));
}

#[test]
fn every_recorded_frame_parses_as_the_relay_and_clients_meant_it() {
    let mut seen = 0;
    for step in vectors()["relayTranscript"]["frames"].as_array().expect("frames") {
        let (Some(frame), Some(from)) = (step.get("frame"), step.get("from")) else { continue };
        seen += 1;
        if from == "relay" {
            let parsed = ServerFrame::parse(&frame.to_string()).expect("a relay frame");
            assert_eq!(serde_json::from_str::<Value>(&parsed.to_text()).expect("json"), *frame);
        } else if frame["type"] == "bogus" {
            assert_eq!(ClientFrame::parse(&frame.to_string()), Err(FrameError::UnknownType("bogus".into())));
        } else {
            let parsed = ClientFrame::parse(&frame.to_string()).expect("a client frame");
            assert_eq!(serde_json::from_str::<Value>(&parsed.to_text()).expect("json"), *frame);
        }
    }
    assert!(seen > 40, "{seen}");
}

#[test]
fn logins_are_refused_in_order() {
    let identity = Identity::from_seed(&[1; 32]);
    let nonce = LoginNonce::from_bytes(&[2; 32]);
    let good = Auth::new(&identity, &nonce, Metadata::default(), Visibility::Unlisted);
    let with = |key: &[u8]| Auth { public_key: encode_b64(key), ..good.clone() }.verify(&nonce);
    assert!(matches!(with(&[0; 44]), Err(LoginRefusal::Key(m)) if m.contains("SPKI")));
    assert!(matches!(with(&[0; 48]), Err(LoginRefusal::Key(m)) if m.contains("PKCS#8")));
    assert!(matches!(with(&[0; 32]), Err(LoginRefusal::Key(m)) if m.contains("small-order")));
    assert_eq!(with(Identity::from_seed(&[3; 32]).public().as_bytes()), Err(LoginRefusal::AgentId));
    assert!(Auth { agent_id: None, ..good.clone() }.verify(&nonce).is_ok());
    let other = LoginNonce::from_bytes(&[4; 32]);
    assert_eq!(good.verify(&other), Err(LoginRefusal::Signature));
}

#[test]
fn the_server_side_is_lenient_where_old_clients_are_wrong() {
    let auth = |frame: Value| match ClientFrame::parse(&frame.to_string()) {
        Ok(ClientFrame::Auth(auth)) => *auth,
        other => panic!("{other:?}"),
    };
    let bare = auth(json!({"type": "auth", "publicKey": "", "signature": ""}));
    assert_eq!((bare.agent_id, bare.metadata), (None, Metadata::default()));
    let flat =
        auth(json!({"type": "auth", "publicKey": "", "signature": "", "name": "n", "capabilities": ["c"]}));
    assert_eq!((flat.metadata.name.as_str(), flat.metadata.capabilities), ("n", Some(vec!["c".to_owned()])));
    let odd = auth(
        json!({"type": "auth", "publicKey": "", "signature": "", "metadata": {"name": 3}, "visibility": 7}),
    );
    assert_eq!((odd.metadata.name.as_str(), odd.visibility), ("", None));
    let flat = ClientFrame::parse(r#"{"type":"message","to":"x","text":"hi"}"#);
    assert!(matches!(flat, Ok(ClientFrame::FlatMessage(FlatMessage { thread_id: None, .. }))));
}

#[test]
fn malformed_frames_say_what_is_wrong() {
    let deep = format!("{{\"type\":\"pong\",\"timestamp\":{}{}}}", "[".repeat(32), "]".repeat(32));
    let fine = format!("{{\"type\":\"pong\",\"timestamp\":{}{}}}", "[".repeat(31), "]".repeat(31));
    let large = format!("{{\"type\":\"pong\",\"x\":\"{}\"}}", "x".repeat(MAX_FRAME));
    assert_eq!(ClientFrame::parse("not json"), Err(FrameError::NotJson));
    assert_eq!(ClientFrame::parse("[1]"), Err(FrameError::NoType));
    assert_eq!(ClientFrame::parse("{\"type\":1}"), Err(FrameError::NoType));
    assert_eq!(ClientFrame::parse(&deep), Err(FrameError::TooDeep));
    assert!(ClientFrame::parse(&fine).is_ok());
    assert!(
        ClientFrame::parse("{\"type\":\"pong\",\"a\":\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\\"\"}")
            .is_ok()
    );
    assert!(matches!(ClientFrame::parse(&large), Err(FrameError::TooLarge(_))));
    for bad in [r#"{"type":"message"}"#, r#"{"type":"message","envelope":[]}"#, r#"{"type":"ack"}"#] {
        assert!(matches!(ClientFrame::parse(bad), Err(FrameError::Malformed { .. })), "{bad}");
    }
    assert!(matches!(ServerFrame::parse(r#"{"type":"connected"}"#), Err(FrameError::UnknownType(_))));
}

#[test]
fn unreadable_discover_entries_are_left_out_and_keys_must_fit_the_address() {
    let identity = Identity::from_seed(&[1; 32]);
    let id = identity.fingerprint().to_string();
    let key = encode_b64(identity.public().as_bytes());
    let frame = json!({"type": "discover_result", "agents": [
        {"agentId": "nonsense", "status": "online"},
        {"agentId": id, "status": "online", "identityKey": key},
        {"agentId": "00".repeat(16), "status": "offline", "identityKey": key},
    ]});
    let Ok(ServerFrame::DiscoverResult(agents)) = ServerFrame::parse(&frame.to_string()) else { panic!() };
    let keys: Vec<_> = agents.iter().map(DiscoveredAgent::key).collect();
    assert_eq!(keys, [Some(*identity.public()), None]);
}

#[test]
fn unknown_error_codes_are_kept() {
    let frame = r#"{"type":"error","code":"teapot","message":"m"}"#;
    assert!(
        matches!(ServerFrame::parse(frame), Ok(ServerFrame::Error(e)) if e.code == ErrorCode::Other("teapot".into()))
    );
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = ClientFrame::parse(&text);
        let _ = ServerFrame::parse(&text);
    }

    #[test]
    fn no_object_panics(kind in "auth|message|ack|discover|subscribe|presence|pong|challenge|auth_ok|error|displaced|ping",
                        key in "envelope|filter|agentIds|messageId|status|nonce|agents|metadata|publicKey", n in any::<i64>()) {
        for value in [json!(n), json!([n]), json!({"a": n}), json!("x"), Value::Null] {
            let frame = json!({"type": kind, key.as_str(): value}).to_string();
            if let Ok(frame) = ClientFrame::parse(&frame) {
                prop_assert_eq!(ClientFrame::parse(&frame.to_text()), Ok(frame));
            }
            if let Ok(frame) = ServerFrame::parse(&frame) {
                prop_assert_eq!(ServerFrame::parse(&frame.to_text()), Ok(frame));
            }
        }
    }
}
