use super::*;
use crate::testing::{hex32, text, vectors};
use proptest::prelude::*;
use serde_json::json;

const CLOCK: i64 = 1_768_478_400_000;

fn who(fingerprint: &str) -> Identity {
    let identities = vectors()["identities"].as_object().expect("identities");
    let found = identities.values().find(|i| i["fingerprint"] == fingerprint).expect("a known identity");
    Identity::from_seed(&hex32(&found["ed25519Seed"]))
}

fn envelope(value: &Value) -> Envelope {
    Envelope::from_fields(value.as_object().expect("an object").clone())
}

#[test]
fn recorded_identities_derive_as_written() {
    for (name, vector) in vectors()["identities"].as_object().expect("identities") {
        let identity = Identity::from_seed(&hex32(&vector["ed25519Seed"]));
        let public = identity.public();
        assert_eq!(hex::encode(public.as_bytes()), text(&vector["ed25519Public"]), "{name}");
        assert_eq!(public.fingerprint().to_string(), text(&vector["fingerprint"]));
        assert_eq!(public.canonical_id(), text(&vector["canonicalId"]));
        assert_eq!(public.display_fingerprint(), text(&vector["displayFingerprint"]));
        assert_eq!(hex::encode(*identity.x25519_private()), text(&vector["x25519Private"]));
        assert_eq!(hex::encode(public.x25519()), text(&vector["x25519PublicFromEd25519Public"]));
        let base =
            x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(*identity.x25519_private()));
        assert_eq!(hex::encode(base.as_bytes()), text(&vector["x25519Public"]));
    }
}

#[test]
fn recorded_key_agreements_hold_both_ways() {
    for vector in vectors()["ecdh"].as_array().expect("ecdh") {
        let of = |side: &str| {
            Identity::from_seed(&hex32(&vectors()["identities"][text(&vector[side])]["ed25519Seed"]))
        };
        let (a, b) = (of("a"), of("b"));
        assert_eq!(hex::encode(*a.agree(&b.public().x25519()).expect("shared")), text(&vector["shared"]));
        assert_eq!(
            hex::encode(*b.agree(&a.public().x25519()).expect("shared")),
            text(&vector["sharedReverse"])
        );
    }
    let low = &vectors()["ecdhLowOrder"];
    assert!(
        who(text(&vectors()["identities"]["alice"]["fingerprint"]))
            .agree(&hex32(&low["peerPublicU"]))
            .is_none()
    );
}

#[test]
fn recorded_recovery_key_and_commitment() {
    let vector = &vectors()["recovery"];
    let alice = Identity::from_seed(&hex32(&vectors()["identities"]["alice"]["ed25519Seed"]));
    let public = PublicIdentity::from_bytes(&hex32(&vector["recoveryPublic"])).expect("a key");
    let salt = STANDARD.decode(text(&vector["recoverySaltB64"])).expect("base64");
    let commitment = alice.sign(&Purpose::RecoveryCommitment(&public));
    assert_eq!(STANDARD.encode(commitment), text(&vector["commitmentB64"]));
    let recovery = identity::Recovery { salt: salt.try_into().expect("32"), public, commitment };
    let key = recovery.unlock(text(&vector["mnemonic"])).expect("the recorded phrase");
    assert_eq!(hex::encode(key.seed()), text(&vector["recoverySeed"]));
}

#[test]
fn recorded_sealed_envelopes_are_made_byte_for_byte_and_open() {
    for vector in vectors()["sealedEnvelopes"].as_array().expect("sealed") {
        let name = text(&vector["name"]);
        let (sender, recipient) = (who(text(&vector["from"])), who(text(&vector["to"])));
        let recorded = envelope(&vector["envelope"]);
        assert!(recorded.is_sealed());
        assert_eq!(recorded.canonical(true).0, text(&vector["aadJson"]), "{name}");
        assert_eq!(recorded.canonical(false).0, text(&vector["canonicalJson"]), "{name}");

        let mut random = SealRandomness { salt: hex32(&vector["salt"]), ..SealRandomness::default() };
        *random.ephemeral = hex32(&vector["ephemeralPrivate"]);
        random.nonce = hex::decode(text(&vector["nonce"])).expect("hex").try_into().expect("24 bytes");
        let mut start = Envelope::from_fields(Map::new());
        for member in ["from", "to", "threadId", "messageId", "timestamp"] {
            start.set(member, recorded.text(member).expect("a text"));
        }
        let plaintext = text(&vector["plaintextJson"]).as_bytes();
        let made = seal_fields(start, &sender, recipient.public(), plaintext, &random).expect("seals");
        assert_eq!(
            crate::v1::frames::ClientFrame::Message(made).to_text(),
            text(&vector["wireFrame"]),
            "{name}"
        );

        check_signature(&recorded, sender.public()).expect("verifies");
        let opened = decrypt(&recorded, &recipient, sender.public()).expect("opens");
        assert_eq!(opened.as_slice(), plaintext, "{name}");
        assert_eq!(super::plaintext(&sealed_content(&opened)).as_slice(), plaintext, "{name}");
    }
}

fn sealed_content(bytes: &[u8]) -> Content {
    read_json(bytes).expect("json")
}

#[test]
fn recorded_bad_envelopes_fail_at_the_named_stage() {
    let cases = vectors()["sealedEnvelopeNegative"].as_array().expect("negatives");
    let (alice, bob) = (&vectors()["identities"]["alice"], &vectors()["identities"]["bob"]);
    let bob = Identity::from_seed(&hex32(&bob["ed25519Seed"]));
    let alice = Identity::from_seed(&hex32(&alice["ed25519Seed"]));
    for vector in cases {
        let envelope = envelope(&vector["envelope"]);
        let sender = who(envelope.text("from").expect("from"));
        let result = authenticate(&envelope, &bob.fingerprint(), Some(sender.public()), CLOCK)
            .and_then(|authentic| authentic.open(&bob));
        let expected = if text(&vector["expect"]).starts_with("AEAD") {
            ReceiveError::Decrypt
        } else {
            ReceiveError::BadSignature
        };
        assert_eq!(result, Err(expected), "{}", vector["name"]);
        let pinned = authenticate(&envelope, &bob.fingerprint(), Some(alice.public()), CLOCK).map(drop);
        if sender.fingerprint() != alice.fingerprint() {
            assert_eq!(pinned, Err(ReceiveError::BadSignature), "another key than the claimed sender's");
        }
    }
}

#[test]
fn recorded_canonical_corner_cases() {
    let nested = &vectors()["canonicalNested"];
    assert_eq!(envelope(&nested["input"]).canonical(false).0, text(&nested["canonicalJson"]));
    for vector in vectors()["canonicalStringEscapes"].as_array().expect("escapes") {
        let units: Vec<u16> = hex::decode(text(&vector["inputUtf16Hex"]))
            .expect("hex")
            .chunks(2)
            .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
            .collect();
        let json = text(&vector["json"]);
        match String::from_utf16(&units) {
            Ok(input) => {
                let mut out = String::new();
                jcs::write_string(&input, &mut out);
                assert_eq!(out, json);
            }
            Err(_) => {
                assert!(serde_json::from_str::<Value>(json).is_err(), "a lone surrogate is refused as input");
            }
        }
    }
}

#[test]
fn recorded_clear_envelopes_read_as_written() {
    for vector in vectors()["clearEnvelopes"].as_array().expect("clear") {
        let envelope = envelope(&vector["envelope"]);
        assert!(!envelope.is_sealed());
        let content = read_clear(&envelope).expect("decodes");
        assert_eq!(content.text, text(&vector["text"]), "{}", vector["name"]);
        assert_eq!(content.kind.as_deref(), vector["type"].as_str());
        if envelope
            .header()
            .is_ok_and(|h| h.to == who(text(&vectors()["identities"]["bob"]["fingerprint"])).fingerprint())
        {
            let us = envelope.header().expect("a header").to;
            let authentic = authenticate(&envelope, &us, None, CLOCK).expect("accepted");
            assert_eq!(authentic.authentication(), Authentication::Transport);
        }
    }
    let recorded = &vectors()["clearEnvelopes"][0]["envelope"];
    let header = envelope(recorded).header().expect("a header");
    let made = clear(&header, &Content { text: "hello".into(), kind: Some("chat".into()), metadata: None });
    assert_eq!(serde_json::to_string(&made).expect("json"), recorded.to_string());
}

fn header(to: &Identity, from: &Identity, timestamp: i64) -> Header {
    Header {
        from: from.fingerprint(),
        to: to.fingerprint(),
        thread_id: Some("t-1".parse().expect("an id")),
        message_id: "m-1".parse().expect("an id"),
        timestamp,
    }
}

#[test]
fn each_stage_has_its_own_error() {
    let (a, b, c) =
        (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]), Identity::from_seed(&[3; 32]));
    let content = Content { text: "hi".into(), kind: None, metadata: None };
    let at = |timestamp| {
        seal(&a, b.public(), &header(&b, &a, timestamp), &content, &mut rand::rng()).expect("seals")
    };
    let check = |e: &Envelope, key: Option<&PublicIdentity>| {
        authenticate(e, &b.fingerprint(), key, CLOCK).and_then(|x| x.open(&b))
    };
    let good = at(CLOCK);
    assert_eq!(check(&good, Some(a.public())), Ok(content.clone()));
    assert_eq!(check(&good, None), Err(ReceiveError::UnknownSender));
    assert_eq!(check(&good, Some(c.public())), Err(ReceiveError::BadSignature));
    assert_eq!(authenticate(&good, &c.fingerprint(), None, CLOCK).map(drop), Err(ReceiveError::NotForUs));
    assert_eq!(check(&at(CLOCK + MAX_AHEAD_MS), Some(a.public())), Ok(content.clone()));
    assert_eq!(check(&at(CLOCK + MAX_AHEAD_MS + 1), Some(a.public())), Err(ReceiveError::Ahead));
    assert_eq!(check(&at(CLOCK - MAX_AGE_MS), Some(a.public())), Ok(content.clone()));
    assert_eq!(check(&at(CLOCK - MAX_AGE_MS - 1), Some(a.public())), Err(ReceiveError::Stale));

    let mut unsigned_number = good.clone();
    unsigned_number.set("hops", 1);
    assert_eq!(check(&unsigned_number, Some(a.public())), Err(ReceiveError::BadSignature));

    let large = Content { text: "x".repeat(MAX_PAYLOAD), ..content.clone() };
    let large = seal(&a, b.public(), &header(&b, &a, CLOCK), &large, &mut rand::rng()).expect("seals");
    assert_eq!(check(&large, Some(a.public())), Err(ReceiveError::PayloadTooLarge));

    let mut junk = clear(&header(&b, &a, CLOCK), &content);
    junk.set("payload", STANDARD.encode("not json"));
    assert_eq!(check(&junk, None), Err(ReceiveError::Undecodable));
    junk.set("messageId", "no spaces allowed");
    assert_eq!(check(&junk, None), Err(ReceiveError::Malformed));
    junk.set("padding", "x".repeat(MAX_ENVELOPE));
    assert_eq!(check(&junk, None), Err(ReceiveError::TooLarge));
    assert_eq!(
        seal(&c, b.public(), &header(&b, &a, CLOCK), &content, &mut rand::rng()),
        Err(SealError::WrongHeader)
    );
}

#[test]
fn auto_acks_are_known_by_type_and_text() {
    let content = |text: &str, kind: Option<&str>| Content {
        text: text.into(),
        kind: kind.map(str::to_owned),
        metadata: None,
    };
    assert!(is_auto_ack(&content("anything", Some("status"))));
    assert!(is_auto_ack(&content("Message received. Thanks", Some("chat"))));
    assert!(is_auto_ack(&content("Message received, composing", None)));
    assert!(!is_auto_ack(&content("Message received", Some("chat"))));
    assert!(!is_auto_ack(&content("hello", Some("chat"))));
}

proptest! {
    #[test]
    fn sealed_texts_come_back(message in any::<String>(), kind in proptest::option::of("[a-z]{1,9}")) {
        let (a, b) = (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]));
        let content = Content { text: message, kind, metadata: json!({"n": 1}).as_object().cloned() };
        let envelope = seal(&a, b.public(), &header(&b, &a, CLOCK), &content, &mut rand::rng()).expect("seals");
        let stored = Envelope::parse(&envelope.to_bytes()).expect("reads");
        let opened = authenticate(&stored, &b.fingerprint(), Some(a.public()), CLOCK)
            .and_then(|x| x.open(&b));
        prop_assert_eq!(opened, Ok(content));
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let b = Identity::from_seed(&[2; 32]);
        if let Ok(envelope) = Envelope::parse(&bytes) {
            let _ = authenticate(&envelope, &b.fingerprint(), Some(b.public()), CLOCK).and_then(|x| x.open(&b));
        }
        let _ = read_json(&bytes);
    }

    #[test]
    fn no_member_panics(from in ".{0,40}", payload in ".{0,40}", nonce in ".{0,40}") {
        let b = Identity::from_seed(&[2; 32]);
        let envelope = envelope(&json!({"from": from, "to": b.fingerprint(), "payload": payload, "nonce": nonce,
            "salt": nonce, "ephemeralPubKey": nonce, "signature": nonce, "messageId": "m", "timestamp": "x"}));
        let _ = decrypt(&envelope, &b, b.public());
        let _ = read_clear(&envelope);
        prop_assert!(authenticate(&envelope, &b.fingerprint(), Some(b.public()), CLOCK).is_err());
    }
}
