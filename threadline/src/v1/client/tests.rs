use super::*;
use crate::v1::envelope::{Content, Header, clear};
use crate::v1::frames::{DiscoveredAgent, Metadata, Presence, Visibility};
use proptest::prelude::*;
use serde_json::json;

const T0: i64 = 1_768_478_400_000;

fn identity() -> Arc<Identity> {
    Arc::new(Identity::from_seed(&[1; 32]))
}

fn client() -> Client {
    let config = ClientConfig {
        url: "ws://relay/v1/connect".into(),
        metadata: Metadata { name: "a".into(), ..Metadata::default() },
        visibility: Visibility::Public,
        registry: None,
        watch_presence: false,
    };
    Client::new(config, identity(), 7)
}

fn drain(client: &mut Client) -> Vec<Effect> {
    std::iter::from_fn(|| client.poll_effect()).collect()
}

fn sent(effects: &[Effect]) -> Vec<ClientFrame> {
    effects
        .iter()
        .filter_map(|e| match e {
            Effect::Send { text, .. } => Some(ClientFrame::parse(text).expect("our own frame")),
            _ => None,
        })
        .collect()
}

fn connection(effects: &[Effect]) -> ConnectionId {
    effects
        .iter()
        .find_map(|e| match e {
            Effect::Connect { connection, .. } => Some(*connection),
            _ => None,
        })
        .expect("a connection attempt")
}

fn frame(client: &mut Client, c: ConnectionId, frame: &ServerFrame, now: i64) -> Vec<Effect> {
    client.handle_text(c, &frame.to_text(), now);
    drain(client)
}

fn challenge() -> ServerFrame {
    ServerFrame::Challenge(LoginNonce::from_bytes(&[9; 32]).as_str().to_owned())
}

fn auth_ok() -> ServerFrame {
    ServerFrame::AuthOk(serde_json::from_value(json!({"sessionId": "relay-1"})).expect("auth_ok"))
}

fn error(code: ErrorCode, message: &str) -> RelayError {
    RelayError { code, message: message.into(), related_message_id: None }
}

/// Logs in at `now`; the client is ready afterwards.
fn log_in(client: &mut Client, now: i64) -> ConnectionId {
    let c = connection(&drain(client));
    client.handle_connected(c, now);
    let effects = frame(client, c, &challenge(), now);
    assert!(matches!(sent(&effects)[..], [.., ClientFrame::Auth(_)]));
    let effects = frame(client, c, &auth_ok(), now);
    assert!(matches!(sent(&effects)[..], [ClientFrame::Discover(None)]));
    assert!(client.is_ready());
    c
}

fn ready(now: i64) -> (Client, ConnectionId) {
    let mut client = client();
    client.start(now);
    let c = log_in(&mut client, now);
    (client, c)
}

fn waiting(client: &Client) -> (Wait, i64) {
    match client.state() {
        LinkState::Waiting { why, until } => (why, until),
        other => panic!("{other:?}"),
    }
}

fn envelope(id: &str) -> Envelope {
    let header = Header {
        from: Identity::from_seed(&[2; 32]).fingerprint(),
        to: identity().fingerprint(),
        thread_id: Some("t".parse().expect("id")),
        message_id: id.parse().expect("id"),
        timestamp: T0,
    };
    clear(&header, &Content { text: "hi".into(), ..Content::default() })
}

fn ticket(effects: &[Effect]) -> Ticket {
    effects
        .iter()
        .find_map(|e| match e {
            Effect::Store { ticket, .. } => Some(ticket.clone()),
            _ => None,
        })
        .expect("a store")
}

#[test]
fn a_message_is_acknowledged_only_after_it_is_stored() {
    let (mut client, c) = ready(T0);
    let effects = frame(&mut client, c, &ServerFrame::Message(envelope("m1")), T0);
    assert!(sent(&effects).is_empty());
    let first = ticket(&effects);
    client.spooled(&first);
    assert_eq!(sent(&drain(&mut client)), [ClientFrame::Ack(Ack::new("m1", AckStatus::Delivered))]);
}

#[test]
fn a_pong_waits_for_every_message_before_its_ping() {
    let (mut client, c) = ready(T0);
    let ping = |n| ServerFrame::Ping(Some(json!(n)));
    assert_eq!(sent(&frame(&mut client, c, &ping(0), T0)), [ClientFrame::Pong(Some(json!(0)))]);
    let one = ticket(&frame(&mut client, c, &ServerFrame::Message(envelope("m1")), T0));
    let two = ticket(&frame(&mut client, c, &ServerFrame::Message(envelope("m2")), T0));
    assert!(sent(&frame(&mut client, c, &ping(1), T0)).is_empty());
    let three = ticket(&frame(&mut client, c, &ServerFrame::Message(envelope("m3")), T0));
    assert!(sent(&frame(&mut client, c, &ping(2), T0)).is_empty());
    client.spooled(&two);
    assert_eq!(sent(&drain(&mut client)).len(), 1, "the acknowledgement alone");
    client.refused(&one);
    assert_eq!(sent(&drain(&mut client)), [ClientFrame::Pong(Some(json!(1)))]);
    client.spooled(&three);
    assert_eq!(sent(&drain(&mut client)).last(), Some(&ClientFrame::Pong(Some(json!(2)))));
}

#[test]
fn a_store_of_an_earlier_connection_acknowledges_nothing() {
    let (mut client, c) = ready(T0);
    let old = ticket(&frame(&mut client, c, &ServerFrame::Message(envelope("m1")), T0));
    client.handle_closed(c, None, "gone", T0);
    drain(&mut client);
    client.handle_timeout(waiting(&client).1);
    log_in(&mut client, T0 + 2_000);
    client.spooled(&old);
    assert!(drain(&mut client).is_empty());
}

#[test]
fn hostile_challenges_get_no_signature_for_an_hour() {
    for nonce in ["{\"from\":\"x\"}", &"A".repeat(43), &"A".repeat(45), &"_".repeat(44)] {
        let mut client = client();
        client.start(T0);
        let c = connection(&drain(&mut client));
        client.handle_connected(c, T0);
        let effects = frame(&mut client, c, &ServerFrame::Challenge(nonce.to_owned()), T0);
        assert!(sent(&effects).is_empty(), "{nonce}");
        assert!(effects.iter().any(|e| matches!(e, Effect::Close { .. })));
        assert_eq!(waiting(&client), (Wait::BadChallenge, T0 + 3_600_000));
        client.handle_timeout(T0 + 3_599_999);
        assert!(drain(&mut client).len() <= 1, "no attempt before the hour is over");
        client.handle_timeout(T0 + 3_600_000);
        assert_eq!(client.state(), LinkState::Connecting);
    }
}

#[test]
fn the_backoff_starts_afresh_only_after_a_stable_minute() {
    let (mut client, c) = ready(T0);
    client.handle_closed(c, None, "", T0 + 59_999);
    let mut now = waiting(&client).1;
    let mut pauses = vec![now - (T0 + 59_999)];
    for _ in 0..4 {
        client.handle_timeout(now);
        let c = log_in(&mut client, now);
        client.handle_closed(c, None, "", now + 1);
        pauses.push(waiting(&client).1 - (now + 1));
        now = waiting(&client).1;
    }
    assert!(pauses.windows(2).all(|w| w[0] < w[1]), "{pauses:?}");
    client.handle_timeout(now);
    let c = log_in(&mut client, now);
    client.handle_closed(c, None, "", now + 60_000);
    assert!(waiting(&client).1 - (now + 60_000) <= 1_250);
}

#[test]
fn refused_logins_slow_down_and_then_stop() {
    let mut client = client();
    client.start(T0);
    let mut now = T0;
    for attempt in 1..=5 {
        let c = connection(&drain(&mut client));
        client.handle_connected(c, now);
        let effects = frame(&mut client, c, &ServerFrame::AuthError(error(ErrorCode::AuthFailed, "no")), now);
        assert!(
            effects.iter().any(|e| matches!(e, Effect::Close { .. })),
            "a refused socket is closed by us"
        );
        if attempt < 5 {
            let (why, until) = waiting(&client);
            assert_eq!(why, Wait::Backoff);
            assert!(until - now >= 24_000);
            now = until;
            client.handle_timeout(now);
        }
    }
    assert_eq!(client.state(), LinkState::AuthFailed);
    assert_eq!(client.poll_timeout(), None);
    client.start(now);
    assert_eq!(client.state(), LinkState::Connecting, "the owner may try again");
}

#[test]
fn a_word_that_contains_rate_is_no_rate_limit() {
    for (message, limited) in [
        ("identity was not generated here", false),
        ("separate keys", false),
        ("Rate limited (per_agent_minute)", true),
        ("auth rate-limit", true),
        ("too many attempts", true),
    ] {
        assert_eq!(is_rate_limit(&error(ErrorCode::AuthFailed, message)), limited, "{message}");
    }
}

#[test]
fn rate_limits_of_every_form_slow_down_but_do_not_stop() {
    for (code, message) in [
        (ErrorCode::AuthFailed, "Too many attempts"),
        (ErrorCode::AuthFailed, "auth rate limit"),
        (ErrorCode::RateLimited, ""),
    ] {
        let mut client = client();
        client.start(T0);
        let mut now = T0;
        for _ in 0..8 {
            let c = connection(&drain(&mut client));
            client.handle_connected(c, now);
            frame(&mut client, c, &ServerFrame::AuthError(error(code.clone(), message)), now);
            let (why, until) = waiting(&client);
            assert_eq!(why, Wait::Backoff);
            assert!(until - now >= 24_000);
            now = until;
            client.handle_timeout(now);
        }
    }
    let mut client = client();
    client.start(T0);
    let c = connection(&drain(&mut client));
    client.handle_closed(c, Some(close::AUTH_RATE_LIMITED), "", T0);
    assert!(waiting(&client).1 - T0 >= 24_000);
}

#[test]
fn a_ban_is_respected_to_its_end() {
    for (message, until) in [
        ("Banned until 2026-01-15T14:00:00.000Z.", T0 + 2 * 3_600_000),
        ("Banned", T0 + 3_600_000),
        ("Banned until tomorrow", T0 + 3_600_000),
        ("Banned until 2020-01-01T00:00:00.000Z", T0 + 3_600_000),
    ] {
        let (mut client, c) = ready(T0);
        frame(&mut client, c, &ServerFrame::Error(error(ErrorCode::Banned, message)), T0);
        assert_eq!(waiting(&client), (Wait::Banned, until), "{message}");
        assert_eq!(client.state().name(), "banned_until");
    }
    let (mut client, c) = ready(T0);
    client.handle_closed(c, Some(close::BANNED), "", T0);
    assert_eq!(waiting(&client), (Wait::Banned, T0 + 3_600_000));
}

#[test]
fn a_displaced_link_tries_once_more_and_then_stops() {
    let (mut client, c) = ready(T0);
    frame(&mut client, c, &ServerFrame::Displaced("another device".into()), T0);
    assert_eq!(waiting(&client), (Wait::Displaced, T0 + 30_000));
    client.handle_closed(c, Some(close::DISPLACED), "", T0);
    assert_eq!(waiting(&client), (Wait::Displaced, T0 + 30_000), "frame and close code are one event");
    client.handle_timeout(T0 + 30_000);
    let c = log_in(&mut client, T0 + 30_000);
    client.handle_closed(c, Some(close::DISPLACED), "", T0 + 600_000);
    assert_eq!(client.state(), LinkState::Displaced);
    assert_eq!(client.poll_timeout(), None);

    let (mut client, c) = ready(T0);
    client.handle_closed(c, Some(close::DISPLACED), "", T0);
    client.handle_timeout(T0 + 30_000);
    let c = log_in(&mut client, T0 + 30_000);
    client.handle_closed(c, Some(close::DISPLACED), "", T0 + 600_001);
    assert_eq!(waiting(&client).0, Wait::Displaced, "ten minutes later it counts as a first time");
}

#[test]
fn a_silent_link_is_dead_after_four_minutes() {
    let (mut client, c) = ready(T0);
    frame(&mut client, c, &ServerFrame::Ping(None), T0 + 100_000);
    client.handle_timeout(T0 + 240_000);
    assert!(client.is_ready());
    assert_eq!(client.poll_timeout(), Some(T0 + 340_000));
    client.handle_timeout(T0 + 340_000);
    assert_eq!(waiting(&client).0, Wait::Backoff);
    assert!(drain(&mut client).iter().any(|e| matches!(e, Effect::Close { .. })));
}

#[test]
fn a_login_that_does_not_finish_is_given_up() {
    let mut client = client();
    client.start(T0);
    let c = connection(&drain(&mut client));
    client.handle_connected(c, T0);
    client.handle_timeout(T0 + 29_999);
    assert_eq!(client.state(), LinkState::Authenticating);
    client.handle_timeout(T0 + 30_000);
    assert_eq!(waiting(&client).0, Wait::Backoff);
    client.handle_text(c, &auth_ok().to_text(), T0 + 30_001);
    assert_eq!(waiting(&client).0, Wait::Backoff, "late frames of a closed socket mean nothing");
}

#[test]
fn a_relay_restart_is_followed_within_seconds() {
    let (mut client, c) = ready(T0);
    client.handle_closed(c, Some(close::GOING_AWAY), "restart", T0);
    let (why, until) = waiting(&client);
    assert_eq!(why, Wait::RelayRestart);
    assert!((500..=5_000).contains(&(until - T0)));
}

#[test]
fn outgoing_messages_report_their_fate() {
    let (mut client, c) = ready(T0);
    let to = identity().fingerprint();
    for n in 0..MAX_IN_FLIGHT {
        client.send(&envelope(&format!("m{n}")), T0).expect("ready");
    }
    assert_eq!(client.send(&envelope("x"), T0), Err(SendRefused::Busy));
    assert_eq!(client.send(&envelope("m0"), T0), Ok(()), "a repetition takes no second place");
    drain(&mut client);
    client.handle_written(c, &"m0".parse().expect("id"));
    let event = |effects: Vec<Effect>| match effects.into_iter().next() {
        Some(Effect::Delivery { to, event, .. }) => (to, event),
        other => panic!("{other:?}"),
    };
    assert_eq!(event(drain(&mut client)), (Some(to), DeliveryEvent::Written));
    let mut ack = Ack { ttl: Some(86_400), ..Ack::new("m0", AckStatus::Queued) };
    let effects = frame(&mut client, c, &ServerFrame::Ack(ack.clone()), T0);
    assert_eq!(event(effects), (Some(to), DeliveryEvent::Queued { ttl: Some(86_400) }));
    let effects = frame(&mut client, c, &ServerFrame::Ack(Ack::new("m0", AckStatus::Delivered)), T0);
    assert_eq!(event(effects), (None, DeliveryEvent::Delivered));
    ack = Ack::new("m1", AckStatus::Rejected);
    ack.reason = Some("Duplicate message ID (replay detected)".into());
    assert_eq!(event(frame(&mut client, c, &ServerFrame::Ack(ack), T0)), (Some(to), DeliveryEvent::Replay));
    let complaint =
        RelayError { related_message_id: Some("m2".into()), ..error(ErrorCode::RecipientUnknown, "who?") };
    let code = Some(ErrorCode::RecipientUnknown);
    let rejected = DeliveryEvent::Rejected { code, reason: "who?".into() };
    assert_eq!(event(frame(&mut client, c, &ServerFrame::Error(complaint), T0)), (Some(to), rejected));

    client.handle_timeout(T0 + ACK_PATIENCE_MS);
    assert_eq!(client.free_places(), MAX_IN_FLIGHT);
    client.handle_closed(c, None, "", T0);
    assert_eq!(client.send(&envelope("y"), T0), Err(SendRefused::NotReady));
}

#[test]
fn discovery_is_limited_and_repeated_once_per_name() {
    let (mut client, _) = ready(T0);
    assert!(client.rediscover("bob", T0));
    assert!(!client.rediscover("bob", T0 + 29_999));
    assert!(client.rediscover("bob", T0 + 30_000));
    for _ in 0..7 {
        assert!(client.discover(None, T0 + 30_000));
    }
    assert!(!client.discover(None, T0 + 30_000));
    assert!(client.discover(None, T0 + 60_000));
}

#[test]
fn nobody_is_online_without_a_link() {
    let (mut client, c) = ready(T0);
    let agent: DiscoveredAgent =
        serde_json::from_value(json!({"agentId": "0".repeat(32), "status": "online"})).expect("agent");
    frame(&mut client, c, &ServerFrame::DiscoverResult(vec![agent.clone()]), T0);
    assert!(client.agents().get(&agent.agent_id).expect("known").online);
    assert_eq!(agent.status, Presence::Online);
    client.handle_closed(c, None, "", T0);
    assert!(!client.agents().get(&agent.agent_id).expect("known").online);
}

#[test]
fn stopping_says_good_bye() {
    let (mut client, _) = ready(T0);
    client.stop(T0);
    let effects = drain(&mut client);
    assert!(matches!(sent(&effects)[..], [ClientFrame::Presence(_)]));
    assert!(effects.iter().any(|e| matches!(e, Effect::Close { code: close::NORMAL, .. })));
    assert_eq!((client.state(), client.poll_timeout()), (LinkState::Stopped, None));
}

#[test]
fn the_recorded_session_runs_through_the_client() {
    let alice = Identity::from_seed(&crate::testing::hex32(
        &crate::testing::vectors()["identities"]["alice"]["ed25519Seed"],
    ));
    let mut client = Client::new(client().config, Arc::new(alice), 1);
    client.start(T0);
    let c = connection(&drain(&mut client));
    client.handle_connected(c, T0);
    for step in crate::testing::vectors()["relayTranscript"]["frames"].as_array().expect("frames") {
        if step["from"] == "relay" && step["to"] == "alice" {
            client.handle_text(c, &step["frame"].to_string(), T0);
        } else if step["from"] == "alice" && step["frame"]["type"] == "auth" {
            let made = sent(&drain(&mut client));
            let [ClientFrame::Auth(auth)] = &made[..] else { panic!("{made:?}") };
            assert_eq!(auth.signature, step["frame"]["signature"].as_str().expect("text"));
        } else if step["from"] == "alice" && step["frame"]["type"] == "message" {
            client.handle_timeout(T0);
            let envelope = step["frame"]["envelope"].as_object().expect("envelope").clone();
            let _ = client.send(&Envelope::from_fields(envelope), T0);
        }
    }
    assert_eq!(waiting(&client).0, Wait::Displaced);
    let effects = drain(&mut client);
    let events: Vec<_> = effects
        .iter()
        .filter_map(|e| match e {
            Effect::Delivery { event, .. } => Some(event.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(
        events[..4],
        [
            DeliveryEvent::Queued { ttl: Some(86_400) },
            DeliveryEvent::Delivered,
            DeliveryEvent::Delivered,
            DeliveryEvent::Replay
        ]
    );
    assert!(matches!(events[4], DeliveryEvent::Rejected { .. }));
    assert_eq!(client.bad_frames(), 0);
}

proptest! {
    #[test]
    fn a_hostile_relay_never_wedges_the_client(
        steps in proptest::collection::vec((0u8..12, 0i64..400_000), 1..60),
    ) {
        let mut client = client();
        client.start(T0);
        let mut now = T0;
        let mut current = connection(&drain(&mut client));
        for (step, pause) in steps {
            now += pause;
            match step {
                0 => client.handle_connected(current, now),
                1 => client.handle_text(current, &challenge().to_text(), now),
                2 => client.handle_text(current, &auth_ok().to_text(), now),
                3 => client.handle_closed(current, None, "", now),
                4 => client.handle_closed(current, Some(close::GOING_AWAY), "", now),
                5 => client.handle_text(current, &ServerFrame::Message(envelope("m")).to_text(), now),
                6 => client.handle_text(current, &ServerFrame::Ping(None).to_text(), now),
                7 => client.handle_text(current, "junk", now),
                8 => client.handle_text(current, &ServerFrame::AuthError(error(ErrorCode::AuthFailed, "")).to_text(), now),
                9 => client.handle_closed(current, Some(close::DISPLACED), "", now),
                10 => { let _ = client.send(&envelope("o"), now); }
                _ => client.handle_timeout(now),
            }
            for effect in drain(&mut client) {
                if let Effect::Connect { connection, .. } = effect {
                    prop_assert!(connection > current);
                    current = connection;
                }
            }
            prop_assert!(client.state().is_final() || client.poll_timeout().is_some(), "{:?}", client.state());
        }
    }
}
