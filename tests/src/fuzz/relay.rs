//! What strangers send to the relay: frames of a session, tokens, cursors, search words.

use std::sync::Arc;

use threadline::identity::{Identity, LoginNonce};
use threadline::v1::frames::{Auth, ClientFrame, Metadata, ServerFrame, Visibility};
use threadline_relay::RelayConfig;
use threadline_relay::core::{Core, Effect, Event, Inbound, Outgoing, Source, Start};
use threadline_relay::registry::cursor::Cursor;
use threadline_relay::registry::query::sanitise;
use threadline_relay::store::{QueueRules, Store};
use threadline_relay::token;

const NOW: i64 = 1_768_478_400_000;

/// Lines of one client that is logged in; every answer of the relay must be a frame that our client can read.
pub fn relay_session(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let config = Arc::new(RelayConfig::default());
    let mut store = Store::in_memory(QueueRules { queue: config.queue.clone() }).expect("memory");
    let start = Start {
        last_seq: 0,
        totals: store.totals().expect("totals"),
        relay_id: "relay".into(),
        signer: threadline_relay::keys::SigningKey::from_bytes(&[1; 32]),
        seed: [2; 32],
    };
    let mut core = Core::new(config, start, NOW);
    let source = Source { net: [0; 8], pseudonym: [0; 16] };
    let frames = handle(&mut core, &mut store, Event::Opened { conn: 1, source });
    let Some(ServerFrame::Challenge(nonce)) = frames.into_iter().next() else { panic!("a challenge") };
    let nonce = LoginNonce::parse(&nonce).expect("a nonce");
    let identity = Identity::from_seed(&[3; 32]);
    let auth = Auth::new(&identity, &nonce, Metadata::default(), Visibility::Public);
    let login = ClientFrame::Auth(Box::new(auth)).to_text();
    for line in std::iter::once(login.as_str()).chain(text.lines()) {
        handle(&mut core, &mut store, Event::Received { conn: 1, inbound: Inbound::read(line) });
    }
    assert_eq!(core.snapshot(NOW).queue, store.totals().expect("totals"), "counters tell the truth");
}

fn handle(core: &mut Core, store: &mut Store, event: Event) -> Vec<ServerFrame> {
    core.handle(event, NOW);
    let mut frames = Vec::new();
    while let Some(effect) = core.poll_effect() {
        match effect {
            Effect::Send { what, .. } => frames.push(read(&what)),
            Effect::Store { ticket, op } => {
                let answer = store.apply(&op);
                core.handle(Event::Stored { ticket, answer }, NOW);
            }
            Effect::Close { .. } => {}
        }
    }
    frames
}

fn read(what: &Outgoing) -> ServerFrame {
    ServerFrame::parse(&what.to_text()).expect("a client can read every frame")
}

/// Texts that come in the URL or the headers of a request to the directory.
pub fn relay_request(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let signer = threadline_relay::keys::SigningKey::from_bytes(&[1; 32]);
    assert_eq!(token::verify(&signer.verifying_key(), "relay", text, NOW / 1000), None, "nobody else signs");
    assert_eq!(Cursor::decode(text, &[4; 32], "", NOW), None);
    let query = sanitise(text);
    assert_eq!(query.matches('"').count() % 2, 0, "every word is quoted");
}
