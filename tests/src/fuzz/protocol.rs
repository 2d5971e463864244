//! Deciders of the Threadline protocol that a relay or a peer feeds.

use std::sync::Arc;

use threadline::audit::{self, Anchor};
use threadline::firewall::{self, Binding};
use threadline::identity::Identity;
use threadline::resolve::{Candidate, resolve};
use threadline::v1::client::{Client, ClientConfig, Effect};
use threadline::v1::frames::{ClientFrame, Metadata, Visibility};
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
