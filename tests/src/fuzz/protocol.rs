//! Deciders of the Threadline protocol that a relay or a peer feeds.

use std::sync::Arc;

use threadline::audit::{self, Anchor};
use threadline::firewall::{self, Binding};
use threadline::identity::Identity;
use threadline::invitation::{Invitation, Redemption};
use threadline::resolve::{Candidate, resolve};
use threadline::v1::client::{Client, ClientConfig, Effect};
use threadline::v1::frames::{ClientFrame, Metadata, Visibility};
use threadline::v1::http::handshake::{Confirm, Handshakes, Hello};
use threadline::v1::http::pairing::Receipt;
use threadline::v1::http::signed::SignedHeaders;
use threadline::v1::local::{AgentName, LocalMessage};
use threadline::warrant::{Facts, judge};
use threadline::{Fingerprint, TrustLevel, framing, text};

const NOW: i64 = 1_768_478_400_000;

fn us() -> Identity {
    Identity::from_seed(&[1; 32])
}

/// A relay that says anything, one frame per line, to a link that just logs in. A message is never acknowledged before
/// it is stored.
pub fn relay_link(data: &[u8]) {
    let config = ClientConfig {
        url: "ws://relay/v1/connect".into(),
        metadata: Metadata::default(),
        visibility: Visibility::Unlisted,
        registry: None,
        watch_presence: true,
    };
    let mut client = Client::new(config, Arc::new(us()), 1);
    client.start(NOW);
    let mut connection = None;
    let mut now = NOW;
    for line in String::from_utf8_lossy(data).lines().take(64) {
        while let Some(effect) = client.poll_effect() {
            match effect {
                Effect::Connect { connection: new, .. } => connection = Some(new),
                Effect::Send { text, .. } => {
                    let frame = ClientFrame::parse(&text).expect("our own frame");
                    assert!(!matches!(frame, ClientFrame::Ack(_)), "nothing was stored");
                }
                _ => {}
            }
        }
        let Some(connection) = connection else { return };
        client.handle_connected(connection, now);
        client.handle_text(connection, line, now);
        now += 997;
        if client.poll_timeout().is_some_and(|at| at <= now) {
            client.handle_timeout(now);
        }
    }
    assert!(client.state().is_final() || client.poll_timeout().is_some());
}

/// Words of a peer on their way to a person, a lookup, a session or a tool.
pub fn peer_words(data: &[u8]) {
    let Ok(words) = std::str::from_utf8(data) else { return };
    assert!(text::name(words).chars().count() <= text::MAX_NAME);
    assert!(!text::subject(words).is_empty());
    let framed = framing::enclose(words, "0123456789abcdef");
    assert_eq!(framed.matches("<<<").count(), 2, "the text closes its own frame");
    framing::suspicions(words);
    let (first, second) = words.split_at(words.floor_char_boundary(words.len() / 2));
    judge(&Facts {
        body: first,
        previous_inbound: Some(second),
        human: false,
        expects_reply: false,
        similar_turns: 0,
    });
    let candidate = Candidate {
        fingerprint: Fingerprint::from_bytes([7; 16]),
        name: second.to_owned(),
        nickname: None,
        online: None,
        known: true,
        contact: false,
    };
    resolve(first, &[candidate], false);
    let binding = Binding {
        peer: Fingerprint::from_bytes([7; 16]),
        thread: "t".parse().expect("an id"),
        level: TrustLevel::Verified,
        roots: vec!["/project/src".into()],
        granted_tools: Vec::new(),
        autonomous_deny: Vec::new(),
    };
    let input = serde_json::json!({"file_path": words, "path": words, "pattern": words, "glob": words});
    for tool in ["Read", "Glob", "Grep", words] {
        let target = firewall::Target { path: words, holds_secrets: false };
        if firewall::decide(&binding, tool, &input, Some(target)) == firewall::Verdict::Allow {
            assert!(words.starts_with("/project/src"), "{tool} left its directory");
        }
    }
}

/// A trust audit chain as found on disk: never more entries than lines, and no torn line is part of it.
pub fn audit_chain(data: &[u8]) {
    let anchors: Vec<Anchor> =
        data.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let report = audit::verify(data, &anchors, us().public());
    let lines = data.split(|b| *b == b'\n').count() as u64 - 1;
    assert!(report.head.count <= lines);
}

/// An invitation in its shared form or as JSON, and a redemption: what nobody signed verifies under no key.
pub fn invitation(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for read in [Invitation::from_shared(&text), Invitation::from_shared(&format!("tl1_{text}"))] {
        let Ok(read) = read else { continue };
        assert_eq!(Invitation::from_shared(&read.to_shared()).as_ref(), Ok(&read), "writing is stable");
        assert!(!read.verifies(us().public()), "a signature out of nothing");
        let _ = read.check(&us().fingerprint(), NOW);
    }
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(data) else { return };
    let _ = Invitation::from_json(&value);
    if let Some(Ok(redemption)) = value.as_object().map(Redemption::from_metadata) {
        assert!(!redemption.proves(us().public()), "a proof out of nothing");
        assert_eq!(Redemption::from_metadata(&redemption.to_metadata()), Ok(redemption));
    }
}

/// A server that begins or confirms a handshake with anything: nobody is paired without a signature.
pub fn handshake(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(data) else { return };
    let mut responder = Handshakes::default();
    if let Ok(hello) = Hello::parse(&value) {
        assert_eq!(Hello::parse(&hello.to_json()).as_ref(), Ok(&hello), "writing is stable");
        assert!(responder.confirm_by_hello(&hello, NOW).is_err(), "nothing was begun");
        let _ = responder.hello(hello, (&us(), "us"), None, "127.0.0.1", NOW, &mut rand::rng());
    }
    if let Ok(confirm) = Confirm::parse(&value) {
        assert!(responder.confirm(&confirm, NOW).is_err(), "a signature out of nothing");
    }
    if let Some(receipt) = Receipt::from_json(&value) {
        assert!(!receipt.verifies(us().public()));
    }
}

/// A request with any headers, one a line, and the rest as its body: none is admitted.
pub fn signed_request(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.split('\n');
    let headers: Vec<&str> = lines.by_ref().take(4).collect();
    let body = lines.collect::<Vec<_>>().join("\n");
    let read = SignedHeaders::read(|name| match name {
        "authorization" => {
            Some("Threadline-Relay 0000000000000000000000000000000000000000000000000000000000000000")
        }
        "x-threadline-agent" => headers.first().copied(),
        "x-threadline-nonce" => headers.get(1).copied(),
        "x-threadline-timestamp" => headers.get(2).copied(),
        _ => headers.get(3).copied(),
    });
    let Ok(read) = read else { return };
    let pairing = ([0; 32], *us().public());
    let request = ("POST", "/threadline/messages/receive", body.as_bytes());
    assert!(read.verify(request, Some((&pairing.0, &pairing.1)), false, NOW).is_err());
}

/// What an agent of this host posts or leaves in a file: it becomes an envelope of exactly that sender, and no file is
/// vouched for without the token.
pub fn local_message(data: &[u8]) {
    let Ok(message) = LocalMessage::parse(data) else { return };
    let again =
        LocalMessage::parse(message.to_json().to_string().as_bytes()).expect("a written message can be read");
    assert_eq!(again.to_json(), message.to_json(), "writing is stable");
    assert!(message.check_drop("0123456789abcdef").is_err());
    let name = AgentName::parse("us").expect("a name");
    let _ = message.check_loop(&name, "http://localhost:4040");
    let (from, to) = (Fingerprint::from_bytes([1; 16]), Fingerprint::from_bytes([2; 16]));
    let envelope = message.to_envelope(from, to);
    if message.sealed().is_none()
        && let Ok(header) = envelope.header()
        && !message.to_json()["message"]["payload"]["envelope"].is_object()
    {
        assert_eq!((header.from, header.to), (from, to));
    }
}
