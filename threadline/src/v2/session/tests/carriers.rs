//! What carries a session: the race at its begin, and going over to QUIC later.

use super::*;

fn only(effects: &[SessionEffect], carrier: Carrier) -> ConnectionId {
    match connections(effects)[..] {
        [(connection, tried)] if tried == carrier => connection,
        _ => panic!("{carrier:?} alone is tried: {effects:?}"),
    }
}

fn hellos(effects: &[SessionEffect]) -> Vec<ConnectionId> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            SessionEffect::Write { connection, frame } if matches!(**frame, Frame::Hello(_)) => {
                Some(*connection)
            }
            _ => None,
        })
        .collect()
}

fn challenge() -> Frame {
    RelaySession::websocket(relay_key(), vec![HOST.into()], Bin([7; 32]), NOW).1
}

fn welcome_over_quic(client: &mut ClientSession, connection: ConnectionId, now: u64) {
    client.handle_connected(connection, now);
    client.handle_frame(connection, welcome(Role::Active).into(), now);
    assert!(matches!(client.state(), SessionState::Ready { carrier: Carrier::Quic, .. }));
}

/// Answers the first words of an attempt over WebSocket/2; what opens the session comes back.
fn challenged(client: &mut ClientSession, connection: ConnectionId, now: u64) -> Frame {
    client.handle_connected(connection, now);
    client.handle_frame(connection, challenge(), now);
    let seen = effects(client);
    assert_eq!(hellos(&seen), [connection]);
    let proof = written(&seen).into_iter().find_map(|frame| match frame {
        Frame::Proof(proof) => Some(proof),
        _ => None,
    });
    let proof = proof.expect("proves");
    let exchange = crate::v2::login::WsExchange {
        relay: relay_key(),
        nonce: Bin([7; 32]),
        client_nonce: proof.cn,
        key: proof.k,
        host: proof.host,
    };
    let rs = Some(Bin(relay_signs(&exchange.relay_text())));
    Welcome { rs, ..welcome(Role::Active) }.into()
}

fn welcome_over_websocket(client: &mut ClientSession, connection: ConnectionId, now: u64) {
    let opens = challenged(client, connection, now);
    client.handle_frame(connection, opens, now);
    assert!(matches!(client.state(), SessionState::Ready { carrier: Carrier::WebSocket, .. }));
}

/// A session over WebSocket, which overtook QUIC: datagrams vanish.
fn overtaken(now: u64) -> (ClientSession, ConnectionId) {
    let mut client = client(true, true);
    client.start(now);
    client.handle_timeout(now + RACE_HEAD_START_MS);
    let tried = connections(&effects(&mut client));
    assert_eq!((tried[0].1, tried[1].1), (Carrier::Quic, Carrier::WebSocket));
    welcome_over_websocket(&mut client, tried[1].0, now + RACE_HEAD_START_MS);
    effects(&mut client);
    (client, tried[1].0)
}

/// Goes on until QUIC is tried beside this session, whose relay answers every question; says when that was.
fn until_probe(client: &mut ClientSession, websocket: ConnectionId, mut now: u64) -> (u64, ConnectionId) {
    loop {
        now = client.poll_timeout().expect("goes on").max(now);
        client.handle_timeout(now);
        let seen = effects(client);
        for frame in written(&seen) {
            if let Frame::Ping(Ping { t, .. }) = frame {
                let pong = Pong { t, now, ep: 0, role: None, tok: None, tok_x: None };
                client.handle_frame(websocket, pong.into(), now);
            }
        }
        if !connections(&seen).is_empty() {
            return (now, only(&seen, Carrier::Quic));
        }
    }
}

#[test]
fn quic_goes_first_and_the_first_welcome_wins() {
    let mut client = client(true, true);
    client.start(NOW);
    let quic = only(&effects(&mut client), Carrier::Quic);
    assert_eq!(client.poll_timeout(), Some(NOW + RACE_HEAD_START_MS));
    client.handle_timeout(NOW + RACE_HEAD_START_MS);
    let websocket = only(&effects(&mut client), Carrier::WebSocket);
    client.handle_connected(quic, NOW + 350);
    assert_eq!(hellos(&effects(&mut client)), [quic]);
    client.handle_frame(quic, welcome(Role::Active).into(), NOW + 400);
    assert!(matches!(client.state(), SessionState::Ready { carrier: Carrier::Quic, .. }));
    effects(&mut client);
    client.handle_frame(websocket, welcome(Role::Active).into(), NOW + 500);
    assert!(effects(&mut client).is_empty(), "the loser says nothing more");
}

#[test]
fn no_two_logins_are_under_way() {
    let mut client = client(true, true);
    client.start(NOW);
    client.handle_timeout(NOW + RACE_HEAD_START_MS);
    let tried = connections(&effects(&mut client));
    let (quic, websocket) = (tried[0].0, tried[1].0);
    client.handle_connected(quic, NOW + 400);
    let seen = effects(&mut client);
    assert_eq!(hellos(&seen), [quic]);
    assert!(seen.contains(&SessionEffect::Close { connection: websocket, code: close::NORMAL }));
    client.handle_frame(websocket, challenge(), NOW + 401);
    assert!(effects(&mut client).is_empty(), "it is closed");
    let at = NOW + 400 + LOGIN_HEAD_START_MS;
    assert_eq!(client.poll_timeout(), Some(at), "a relay that does not answer over QUIC may over WebSocket");
    client.handle_timeout(at);
    let websocket = only(&effects(&mut client), Carrier::WebSocket);
    client.handle_frame(websocket, challenge(), at + 1);
    let seen = effects(&mut client);
    assert!(seen.contains(&SessionEffect::Close { connection: quic, code: close::NORMAL }));
    assert_eq!(hellos(&seen), [websocket]);
}

#[test]
fn quic_that_comes_during_a_login_waits_for_its_end() {
    let begin = || {
        let mut client = client(true, true);
        client.start(NOW);
        client.handle_timeout(NOW + RACE_HEAD_START_MS);
        let tried = connections(&effects(&mut client));
        let (quic, websocket) = (tried[0].0, tried[1].0);
        let opens = challenged(&mut client, websocket, NOW + 400);
        client.handle_connected(quic, NOW + 401);
        assert!(effects(&mut client).is_empty(), "it says nothing yet");
        (client, quic, websocket, opens)
    };
    let (mut client, quic, websocket, opens) = begin();
    client.handle_frame(websocket, opens, NOW + 402);
    assert!(effects(&mut client).contains(&SessionEffect::Close { connection: quic, code: close::NORMAL }));
    let at = NOW + 402;
    let (probed, _) = until_probe(&mut client, websocket, at);
    assert!(probed <= at + QUIC_PROBE_FIRST_MS, "UDP gets through: that was no failure");

    let (mut client, quic, websocket, _) = begin();
    client.handle_closed(websocket, None, NOW + 402);
    assert_eq!(hellos(&effects(&mut client)), [quic], "it is its turn");
    welcome_over_quic(&mut client, quic, NOW + 403);
}

#[test]
fn a_session_over_websocket_goes_over_to_quic_by_itself_and_without_a_gap() {
    let (mut client, websocket) = overtaken(NOW);
    let (now, probe) = until_probe(&mut client, websocket, NOW + RACE_HEAD_START_MS);
    let waited = now - NOW - RACE_HEAD_START_MS;
    assert!((QUIC_PROBE_FIRST_MS / 2..=QUIC_PROBE_FIRST_MS).contains(&waited), "{waited}");
    client.send(Bin([1; 32]), Bin([2; 16]), Bin([3; 8]), Blob(vec![1]), 60, 1, now).expect("it stays open");
    effects(&mut client);
    client.handle_connected(probe, now + 50);
    assert_eq!(hellos(&effects(&mut client)), [probe]);
    client.handle_frame(probe, welcome(Role::Active).into(), now + 60);
    let seen = effects(&mut client);
    assert!(matches!(client.state(), SessionState::Ready { carrier: Carrier::Quic, .. }));
    assert!(seen.contains(&SessionEffect::Close { connection: websocket, code: close::NORMAL }));
    let lost = seen.iter().position(|effect| *effect == SessionEffect::Lost).expect("the message goes again");
    let opened = seen.iter().position(|effect| matches!(effect, SessionEffect::Welcome(_))).expect("opened");
    assert!(lost < opened && !seen.iter().any(|effect| matches!(effect, SessionEffect::Connect { .. })));
    client.handle_closed(websocket, Some(close::REPLACED), now + 61);
    assert!(effects(&mut client).is_empty() && client.is_ready());
}

/// The relay closes the older session before it welcomes the newer one, and the two arrive over different sockets.
#[test]
fn a_session_that_our_own_took_the_place_of_is_not_opened_again() {
    let (mut client, websocket) = overtaken(NOW);
    let (now, probe) = until_probe(&mut client, websocket, NOW + RACE_HEAD_START_MS);
    client.handle_connected(probe, now);
    client.handle_closed(websocket, Some(close::REPLACED), now + 1);
    assert_eq!(client.state(), SessionState::Connecting);
    assert!(client.poll_timeout().is_some_and(|at| at > now + 5_000), "nothing else is tried meanwhile");
    welcome_over_quic(&mut client, probe, now + 900);
    assert!(connections(&effects(&mut client)).is_empty());

    let (mut client, websocket) = overtaken(NOW);
    let (now, probe) = until_probe(&mut client, websocket, NOW + RACE_HEAD_START_MS);
    client.handle_connected(probe, now);
    client.handle_closed(websocket, Some(close::REPLACED), now + 1);
    client.handle_closed(probe, None, now + 2);
    assert!(
        matches!(client.state(), SessionState::Waiting { .. }),
        "and when it does not come, all begins anew"
    );
}

#[test]
fn a_busy_session_stays_until_it_is_quiet_or_never_will_be() {
    let talk = |client: &mut ClientSession, now| {
        client.send(Bin([1; 32]), Bin([2; 16]), Bin([3; 8]), Blob(vec![1]), 60, 1, now).expect("ready");
        effects(client);
    };
    let (mut client, websocket) = overtaken(NOW);
    talk(&mut client, NOW + 1_000);
    let (now, _) = until_probe(&mut client, websocket, NOW + RACE_HEAD_START_MS);
    assert!(now <= NOW + RACE_HEAD_START_MS + QUIC_PROBE_FIRST_MS + QUIET_MS);

    let (mut client, websocket) = overtaken(NOW);
    let mut now = NOW + RACE_HEAD_START_MS;
    let mut tried = false;
    while !tried && now < NOW + 2 * NEVER_QUIET_MS {
        now += 500;
        talk(&mut client, now);
        client.handle_frame(websocket, Ping { t: 1, tok: false }.into(), now);
        client.handle_timeout(now);
        tried = !connections(&effects(&mut client)).is_empty();
    }
    let late = now - NOW - RACE_HEAD_START_MS;
    assert!(tried && (NEVER_QUIET_MS..=NEVER_QUIET_MS + QUIC_PROBE_FIRST_MS + 500).contains(&late), "{late}");
}

#[test]
fn where_udp_is_blocked_the_session_stays_and_quic_is_tried_ever_less_often() {
    let (mut client, websocket) = overtaken(NOW);
    let (mut now, mut tries) = (NOW + RACE_HEAD_START_MS, Vec::new());
    while now < NOW + 24 * 3_600_000 {
        let (at, probe) = until_probe(&mut client, websocket, now);
        tries.push(at);
        assert!(client.is_ready());
        now = at + 4_000;
        client.handle_closed(probe, None, now);
        assert!(!effects(&mut client).contains(&SessionEffect::Lost));
    }
    assert!((96..=210).contains(&tries.len()), "{} tries in a day", tries.len());
    client.network_changed(now);
    let (at, probe) = until_probe(&mut client, websocket, now);
    assert!(at <= now + QUIET_MS, "another network may let it through");
    client.handle_closed(probe, None, at);
    let (again, probe) = until_probe(&mut client, websocket, at);
    assert!(again - at <= QUIC_PROBE_FIRST_MS);
    welcome_over_quic(&mut client, probe, again);
}

/// Where packets vanish an attempt over QUIC never fails before WebSocket has won.
#[test]
fn quic_that_is_overtaken_counts_as_failed() {
    let mut client = client(true, true);
    let mut now = NOW;
    client.start(now);
    for round in 0..=QUIC_PATIENCE {
        let mut tried = connections(&effects(&mut client));
        let first = if round < QUIC_PATIENCE { Carrier::Quic } else { Carrier::WebSocket };
        assert_eq!(tried[0].1, first, "round {round}");
        if first == Carrier::Quic {
            now += RACE_HEAD_START_MS;
            client.handle_timeout(now);
            tried.extend(connections(&effects(&mut client)));
        }
        let (websocket, _) = *tried.last().expect("tried");
        welcome_over_websocket(&mut client, websocket, now);
        client.handle_closed(websocket, None, now);
        now = client.poll_timeout().expect("waits");
        effects(&mut client);
        client.handle_timeout(now);
    }
}

#[test]
fn a_relay_that_is_away_says_nothing_about_udp() {
    let mut client = client(true, true);
    let mut now = NOW;
    client.start(now);
    for _ in 0..10 {
        let quic = only(&effects(&mut client), Carrier::Quic);
        client.handle_closed(quic, None, now);
        client.handle_timeout(now);
        let websocket = only(&effects(&mut client), Carrier::WebSocket);
        client.handle_closed(websocket, None, now);
        assert!(matches!(client.state(), SessionState::Waiting { .. }));
        now = client.poll_timeout().expect("waits");
        client.handle_timeout(now);
    }
    let quic = only(&effects(&mut client), Carrier::Quic);
    welcome_over_quic(&mut client, quic, now);
}

#[test]
fn quic_is_tried_where_websocket_goes_first_and_does_not_come_through() {
    let mut client = client(true, true);
    let mut now = NOW;
    client.start(now);
    for _ in 0..QUIC_PATIENCE {
        let quic = only(&effects(&mut client), Carrier::Quic);
        client.handle_closed(quic, None, now);
        client.handle_timeout(now);
        let websocket = only(&effects(&mut client), Carrier::WebSocket);
        welcome_over_websocket(&mut client, websocket, now);
        client.handle_closed(websocket, None, now);
        now = client.poll_timeout().expect("waits");
        effects(&mut client);
        client.handle_timeout(now);
    }
    let websocket = only(&effects(&mut client), Carrier::WebSocket);
    client.handle_closed(websocket, None, now);
    let quic = only(&effects(&mut client), Carrier::Quic);
    welcome_over_quic(&mut client, quic, now);
}

#[test]
fn sessions_over_quic_that_break_off_give_way_to_websocket() {
    let mut client = client(true, true);
    let mut now = NOW;
    client.start(now);
    for _ in 0..QUIC_PATIENCE {
        let quic = only(&effects(&mut client), Carrier::Quic);
        welcome_over_quic(&mut client, quic, now);
        now += 12_000;
        client.handle_closed(quic, None, now);
        now = client.poll_timeout().expect("waits");
        effects(&mut client);
        client.handle_timeout(now);
    }
    let websocket = only(&effects(&mut client), Carrier::WebSocket);
    welcome_over_websocket(&mut client, websocket, now);
    let (at, _) = until_probe(&mut client, websocket, now);
    assert!(at - now > QUIC_PROBE_FIRST_MS, "it is not trusted at once");
}
