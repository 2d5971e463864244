//! What strangers send to the relay: frames of a session, tokens, cursors, search words.

use std::sync::Arc;

use rusqlite::Connection;
use threadline::identity::{Identity, LoginNonce};
use threadline::v1::frames::{Auth, ClientFrame, Metadata, ServerFrame, Visibility};
use threadline::v2::Bin;
use threadline::v2::frames::{Frame, FrameBuffer, FramePhase};
use threadline_relay::RelayConfig;
use threadline_relay::a2a;
use threadline_relay::core::{
    Core, Effect, Event, Inbound, InboundFrame, Outgoing, Source, Start, V2Carrier, V2Frame,
};
use threadline_relay::frames::{Decoder, Incoming};
use threadline_relay::registry::clean;
use threadline_relay::registry::cursor::Cursor;
use threadline_relay::registry::query::sanitise;
use threadline_relay::registry::search::{self, Search};
use threadline_relay::store::Profile;
use threadline_relay::store::registry::{MIGRATIONS, Upsert, upsert};
use threadline_relay::store::{Accept, Memory, QueueOp, QueueRules, Store, StoreOp};
use threadline_relay::token;

use crate::hello::hello;

const NOW: i64 = 1_768_478_400_000;

/// Lines of one client that is logged in; every answer of the relay must be a frame that our client can read.
pub fn relay_session(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let config = Arc::new(RelayConfig::default());
    let mut store = Store::in_memory(QueueRules { queue: config.queue.clone() }).expect("memory");
    let start = Start {
        last_seq: 0,
        totals: store.totals(),
        relay_id: "relay".into(),
        signer: threadline_relay::keys::SigningKey::from_bytes(&[1; 32]),
        hosts: vec!["localhost".into()],
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
    assert_eq!(core.snapshot(NOW).queue, store.totals(), "counters tell the truth");
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

/// Frames of a device that is logged in by v2, cut from a stream; every answer is a frame that a node can read.
///
/// # Panics
/// If an answer is no frame, or the counters of the queue are wrong.
pub fn relay_v2_session(data: &[u8]) {
    let mut config = RelayConfig::default();
    config.sybil.tiers = false;
    let config = Arc::new(config);
    let mut store = Store::in_memory(QueueRules { queue: config.queue.clone() }).expect("memory");
    let start = Start {
        last_seq: 0,
        totals: store.totals(),
        relay_id: "relay".into(),
        signer: threadline_relay::keys::SigningKey::from_bytes(&[1; 32]),
        hosts: vec!["localhost".into()],
        seed: [2; 32],
    };
    let mut core = Core::new(config, start, NOW);
    let source = Source { net: [0; 8], pseudonym: [0; 16] };
    let identity = Identity::from_seed(&[3; 32]);
    let carrier = V2Carrier::Quic { key: *identity.public().as_bytes() };
    handle_v2(&mut core, &mut store, Event::OpenedV2 { conn: 1, source, carrier });
    let say = |core: &mut Core, store: &mut Store, frame, stream| {
        let frame = V2Frame::of(frame, NOW).on_stream(stream);
        let inbound = Inbound { bytes: 1, content: Ok(InboundFrame::V2(Box::new(frame))) };
        handle_v2(core, store, Event::Received { conn: 1, inbound });
    };
    say(&mut core, &mut store, Ok(hello(&identity, Bin([7; 16]), "fuzz", NOW.unsigned_abs()).into()), 0);
    let mut buffer = FrameBuffer::default();
    buffer.extend(data);
    let mut stream = 0;
    loop {
        let frame = match buffer.next(FramePhase::Open) {
            Ok(None) => break,
            Ok(Some(frame)) => Ok(frame),
            Err(error) => Err(error),
        };
        let over = frame.is_err();
        say(&mut core, &mut store, frame, stream);
        if over {
            break;
        }
        stream = (stream + 1) % 3;
    }
    assert_eq!(core.snapshot(NOW).queue, store.totals(), "counters tell the truth");
}

fn handle_v2(core: &mut Core, store: &mut Store, event: Event) {
    core.handle(event, NOW);
    while let Some(effect) = core.poll_effect() {
        match effect {
            Effect::Send { what: Outgoing::V2(written), .. } => {
                Frame::decode(&written.bytes, FramePhase::Open).expect("a node can read every frame");
            }
            Effect::Store { ticket, op } => {
                let answer = store.apply(&op);
                core.handle(Event::Stored { ticket, answer }, NOW);
            }
            Effect::Send { .. } | Effect::Close { .. } => {}
        }
    }
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

/// A search of the directory, its words and tags from outside: it is always answered, and no page is above its limit.
pub fn relay_search(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let directory = Connection::open_in_memory().expect("memory");
    for migration in MIGRATIONS {
        directory.execute_batch(migration.sql).expect("schema");
    }
    let mut lines = text.lines();
    let words = lines.next().unwrap_or_default();
    let profile = Profile {
        name: Some(clean::name(words)),
        bio: Some(clean::bio(text)),
        capabilities: Some(clean::tags(&text.split_whitespace().collect::<Vec<_>>())),
        homepage: Some(clean::homepage(words)),
        ..Profile::default()
    };
    let entry = Upsert {
        key: &[7; 32],
        profile: &profile,
        visibility: "public",
        consent: "api_call",
        relay_id: "relay",
        visible_at: NOW,
        now_ms: NOW,
        online: true,
    };
    upsert(&directory, &entry).expect("every cleaned entry can be stored");
    let tags: Vec<String> = lines.filter_map(clean::tag).take(20).collect();
    let framework = tags.first().cloned();
    for (capabilities, framework) in [(Vec::new(), None), (tags.clone(), None), (tags, framework)] {
        let search =
            Search { text: words.to_owned(), capabilities, framework, limit: 1, ..Search::default() };
        let page = search::search(&directory, &search, NOW).expect("every search is answered");
        assert!(page.entries.len() <= 1 && page.total <= 1);
    }
}

/// The body of a call over the A2A bridge: read, or refused with a code of JSON-RPC.
pub fn relay_a2a(data: &[u8]) {
    for form in [a2a::Form::Bridge, a2a::Form::Standard] {
        match a2a::read(data, form).map(|request| request.method) {
            Ok(a2a::Method::Send(send)) => assert!(!send.text.trim().is_empty(), "there is something to say"),
            Ok(_) => assert_eq!(form, a2a::Form::Standard, "tasks have routes of their own"),
            Err((_, fault)) => assert!(fault.describe().0 < -32000),
        }
    }
}

/// A segment of the log of the queue as it may be found after an accident: read without panic, never invented from.
/// The relay either refuses to start with it or serves what is good in it.
pub fn relay_log(data: &[u8]) {
    let rules = QueueRules { queue: RelayConfig::default().queue };
    for accept_data_loss in [false, true] {
        let mut medium = Memory::default();
        medium.put(1, data.to_vec());
        let Ok(mut store) = Store::on_segments(medium, rules.clone(), accept_data_loss) else { continue };
        let before = store.totals();
        let me = Identity::from_seed(&[3; 32]).fingerprint();
        let accept = QueueOp::Accept(Accept {
            seq: store.last_seq() + 1,
            sender: me,
            recipient: me,
            id: "mine".parse().expect("an id"),
            body: (*b"{}").into(),
            now_ms: NOW,
            expires_ms: NOW + 1,
            control: false,
        });
        store.apply(&StoreOp::Queue(accept)).expect("there is room");
        assert_eq!(store.totals().messages, before.messages + 1, "mail can be taken whatever was found");
        let expire = QueueOp::Expire { now_ms: i64::MAX, limit: u32::MAX };
        let _ = store.apply(&StoreOp::Queue(expire));
    }
}

/// What stands on a socket after the upgrade: however it is cut, the same comes out, and no more is held than allowed.
pub fn relay_frames(data: &[u8]) {
    const MOST: usize = 4096;
    let run = |piece: usize| {
        let (mut decoder, mut heard) = (Decoder::default(), Vec::new());
        for bytes in data.to_vec().chunks_mut(piece) {
            let fed = decoder.feed(bytes, MOST, &mut |incoming| {
                heard.push(format!("{incoming:?}"));
                !matches!(incoming, Incoming::TooLarge(_) | Incoming::Close)
            });
            assert!(decoder.held() <= 4 * MOST, "{} bytes held", decoder.held());
            if fed.is_err()
                || heard.last().is_some_and(|last| last.starts_with("TooLarge") || last == "Close")
            {
                return (heard, fed.err());
            }
        }
        (heard, None)
    };
    assert_eq!(run(data.len().max(1)), run(3));
}
