//! v2 between relays of one cluster: sealed mail, devices, keys, presence, and relays that are killed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use threadline::identity::LoginNonce;
use threadline::v1::frames::{Auth, ClientFrame, Metadata, Visibility as V1Visibility};
use threadline::v2::frames::{
    Accepted, Deliver, Frame, FrameId, Hello, KeysClaim, Lookup, Outcome, Presence, PresenceSet, Role, Send,
    Standing, Taken, Target, Via, Visibility, Watch,
};
use threadline::v2::objects::{ONE_TIME, Prekey, Signed};
use threadline::v2::{Bin, Code, Key};

use super::blobs::Passage;
use super::client::{Client, PATIENCE, agent};
use super::cluster::{Nats, dirs};
use super::process::Relay;
use super::quic;
use super::v2::{Machine, Session, device, key, send};

fn fault(frame: Frame) -> Option<Code> {
    if let Frame::Fault(fault) = frame { Some(fault.code) } else { None }
}

fn presence(frame: Frame) -> Option<Presence> {
    if let Frame::Presence(news) = frame { Some(news) } else { None }
}

#[tokio::test]
async fn two_clients_at_different_relays_talk_sealed() {
    let nats = Nats::start(1);
    let [a, b] = dirs();
    let (here, there) = (nats.relay(a.path()), nats.relay(b.path()));
    let mut alice = Session::log_in(here.at, 1).await;
    for id in 1..=5 {
        alice.send(2, id, 1).await;
        let answer = alice.answer(id).await.expect("accepted");
        assert_eq!((answer.st, answer.dup), (Standing::Queued, false));
    }
    alice.say(Watch { keys: vec![key(2)], all: false }).await;
    let mut bob = Session::log_in(there.at, 2).await;
    let relay_keys = (alice.welcome.as_ref().map(|w| w.relay), bob.welcome.as_ref().map(|w| w.relay));
    assert_eq!(relay_keys.0, relay_keys.1, "the relays are one to their clients");
    assert_eq!(bob.welcome.as_ref().map(|welcome| welcome.q.n), Some(5), "what waits in the engine");
    for id in 1..=5 {
        let deliver = bob.delivered().await;
        assert_eq!(deliver.id, FrameId::Bin(Bin([id; 16])), "in the order of acceptance");
        assert_eq!((deliver.from, deliver.via), (Target::Key(key(1)), Via::V2));
        bob.take(deliver.did).await;
    }
    let (mut taken, mut came) = (BTreeSet::new(), false);
    while taken.len() < 5 || !came {
        match alice.frame().await.expect("open") {
            Frame::Status(status) => {
                assert_eq!(status.st, Outcome::Taken);
                taken.insert(format!("{:?}", status.id));
            }
            Frame::Presence(news) => came |= news.on && news.key == key(2),
            _ => {}
        }
    }
    for id in 6..=25 {
        alice.send(2, id, 1).await;
        assert_eq!(alice.answer(id).await.expect("accepted").st, Standing::Live);
        bob.send(1, id, 1).await;
        for (from, session) in [(2, &mut alice), (1, &mut bob)] {
            let deliver = session.delivered().await;
            assert_eq!((deliver.id, deliver.from), (FrameId::Bin(Bin([id; 16])), Target::Key(key(from))));
            session.take(deliver.did).await;
        }
    }
    drop(bob);
    assert!(!alice.expect(presence).await.on, "the absence crosses, too");
    assert_eq!((here.stop(), there.stop()), (Some(0), Some(0)));
}

#[tokio::test]
async fn devices_of_an_agent_at_different_relays_take_turns() {
    let nats = Nats::start(1);
    let [a, b] = dirs();
    let (here, there) = (nats.relay(a.path()), nats.relay(b.path()));
    let both = (vec![11, 12], 2);
    let hello = |device: u8, role: Role, ep: u64| {
        let machine = Machine { n: 1, device, list: both.clone() };
        Hello { role, ep, ..machine.hello() }
    };
    let mut first = Session::log_in_as(here.at, hello(11, Role::Active, 5), 1).await;
    let mut second = Session::log_in_as(there.at, hello(12, Role::Standby, 0), 1).await;
    assert_eq!(second.welcome.as_ref().map(|w| (w.role, w.ep)), Some((Role::Standby, 5)));
    let news = first.expect(presence).await;
    assert_eq!((news.dev, news.on, news.role), (Some(device(12)), true, Some(Role::Standby)));
    let mut sender = Session::log_in(there.at, 2).await;
    sender.send(1, 1, 1).await;
    let delivery = first.delivered().await;
    second.say(PresenceSet { role: Some(Role::Active), ep: 4, vis: None, status: None }).await;
    assert_eq!(second.expect(fault).await, Code::StaleEpoch);
    second.say(PresenceSet { role: Some(Role::Active), ep: 6, vis: None, status: None }).await;
    assert_eq!(second.delivered().await.did, delivery.did, "what was not taken moves");
    let told = |dev: u8, role: Role| {
        move |frame| {
            presence(frame).filter(|news| news.dev == Some(device(dev)) && news.role == Some(role)).map(drop)
        }
    };
    first.expect(told(11, Role::Standby)).await;
    first.take(delivery.did).await;
    assert_eq!(first.expect(fault).await, Code::StaleEpoch);
    first.send(2, 2, 1).await;
    assert_eq!(first.answer(2).await, Err(Code::StaleEpoch));
    second.take(delivery.did).await;
    assert_eq!(sender.status().await.1, Outcome::Taken);
    second.send(2, 3, 1).await;
    second.answer(3).await.expect("the active one may send");
    drop(second);
    let gone = |frame| presence(frame).filter(|news| news.dev == Some(device(12)) && !news.on).map(drop);
    first.expect(gone).await;
    // The same device at another relay takes its own place.
    let again = Session::log_in_as(there.at, hello(11, Role::Active, 6), 1).await;
    assert_eq!(again.welcome.as_ref().map(|w| (w.role, w.ep)), Some((Role::Active, 6)));
    assert_eq!(first.end().await.1, 4_005);
    // Whoever is left does not hear that the agent went away, and an old lease is one at every relay.
    sender.say(Watch { keys: vec![key(1)], all: false }).await;
    assert!(sender.expect(presence).await.on);
    let late = Session::log_in_as(here.at, hello(12, Role::Active, 5), 1).await;
    assert_eq!(late.welcome.as_ref().map(|w| (w.role, w.ep)), Some((Role::Standby, 6)));
    drop(again);
    drop(late);
    assert!(!sender.expect(presence).await.on);
}

#[tokio::test]
async fn a_session_of_v1_gets_the_mail_again_when_the_device_at_another_relay_leaves() {
    let nats = Nats::start(1);
    let [a, b] = dirs();
    let (here, there) = (nats.relay(a.path()), nats.relay(b.path()));
    let mut old = Client::log_in(here.at, 1).await;
    let mut new = Session::log_in(there.at, 1).await;
    let mut sender = Client::log_in(there.at, 2).await;
    sender.send(1, "to-the-device").await;
    let deliver = new.delivered().await;
    assert_eq!(deliver.id, FrameId::Text("to-the-device".into()));
    new.take(deliver.did).await;
    assert_eq!(sender.next("ack").await["status"], "delivered");
    sender.send(1, "not-taken").await;
    assert_eq!(new.delivered().await.id, FrameId::Text("not-taken".into()));
    drop(new);
    assert_eq!(old.message_id().await, "not-taken");
    old.ack("not-taken").await;
    let ack = loop {
        let ack = sender.next("ack").await;
        if ack["status"] == "delivered" {
            break ack;
        }
    };
    assert_eq!(ack["messageId"], "not-taken");
}

#[tokio::test]
async fn keys_left_at_one_relay_are_given_out_once_by_all() {
    let nats = Nats::start(1);
    let [a, b] = dirs();
    let (here, there) = (nats.relay(a.path()), nats.relay(b.path()));
    let mut bob = Session::log_in(here.at, 2).await;
    bob.say(Machine::of(2).keys(1..61, 61)).await;
    let ok = bob.expect(|frame| if let Frame::KeysOk(ok) = frame { Some(ok) } else { None }).await;
    assert_eq!((ok.have, ok.hw), (60, 61));
    let claim = async |at, n: u8| {
        let mut session = Session::log_in(at, n).await;
        session.say(KeysClaim { rid: 1, to: Target::Key(key(2)) }).await;
        let keys = session.expect(|f| if let Frame::Keys(keys) = f { Some(keys) } else { None }).await;
        let [(_, _, prekey, signature, kind)] = &keys.devs[..] else { panic!("one device") };
        let prekey = Signed::<Prekey>::parse(&prekey.0, &signature.0).expect("signed by its owner");
        (*kind == ONE_TIME).then_some(prekey.object().key_id)
    };
    // All at the same time, so that the relays are in each other's way.
    let claims = (10..18).map(|n| claim(if n % 2 == 0 { here.at } else { there.at }, n));
    let given: Vec<u64> = futures::future::join_all(claims).await.into_iter().flatten().collect();
    assert!(given.len() >= 4, "one-time keys are given out: {given:?}");
    let distinct: BTreeSet<u64> = given.iter().copied().collect();
    assert_eq!(distinct.len(), given.len(), "a key was given out twice: {given:?}");
    // Another relay tells the owner what is left, and takes what comes.
    let mut bob = Session::log_in(there.at, 2).await;
    assert_eq!(bob.welcome.as_ref().map(|welcome| welcome.hw), Some((7, 61)));
    bob.say(Machine::of(2).keys(62..64, 64)).await;
    let ok = bob.expect(|frame| if let Frame::KeysOk(ok) = frame { Some(ok) } else { None }).await;
    assert_eq!((usize::from(ok.have), ok.hw), (62 - given.len(), 64));
}

#[tokio::test]
async fn what_an_identity_says_to_one_relay_counts_at_all() {
    let nats = Nats::start(1);
    let [a, b] = dirs();
    let (here, there) = (nats.relay(a.path()), nats.relay(b.path()));
    let hello =
        Hello { nov1: true, vis: Some(Visibility::Private), sib: vec![key(3)], ..Machine::of(1).hello() };
    let _node = Session::log_in_as(here.at, hello, 1).await;
    let mut old = Client::connect(there.at, 1).await;
    let challenge = old.next("challenge").await;
    let nonce = LoginNonce::parse(challenge["nonce"].as_str().expect("text")).expect("nonce");
    let auth = Auth::new(&agent(1), &nonce, Metadata::default(), V1Visibility::Unlisted);
    old.say(ClientFrame::Auth(Box::new(auth)).to_text()).await;
    assert_eq!(old.next("auth_error").await["code"], "auth_failed");
    let (mut sibling, mut stranger) =
        (Session::log_in(there.at, 3).await, Session::log_in(there.at, 4).await);
    let begun = Instant::now();
    // That an identity is known crosses within a second.
    let looked = loop {
        sibling.say(Lookup { rid: 2, to: Target::Key(key(1)) }).await;
        let looked = sibling.expect(|frame| match frame {
            Frame::Looked(looked) => Some(Some(looked)),
            Frame::Fault(_) => Some(None),
            _ => None,
        });
        if let Some(looked) = looked.await {
            break looked;
        }
        assert!(begun.elapsed() < PATIENCE, "never found");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert!(looked.on && looked.proto == [2] && looked.certs.len() == 1 && looked.list.is_some());
    stranger.say(Lookup { rid: 1, to: Target::Key(key(1)) }).await;
    assert_eq!(stranger.expect(fault).await, Code::UnknownRecipient, "it is private");
}

#[tokio::test]
async fn quic_at_one_relay_and_websocket_at_another_are_one_network() {
    let nats = Nats::start(1);
    let [a, b] = dirs();
    let (here, there) = (nats.relay(a.path()), nats.relay(b.path()));
    let (one, other) = (quic::document(&here).await, quic::document(&there).await);
    assert_eq!(one.key(), other.key());
    assert_ne!(one.quic.first().map(|at| at.port), other.quic.first().map(|at| at.port));
    let mut bob = quic::Client::log_in(&one, 2).await;
    let mut alice = Session::log_in(there.at, 1).await;
    for id in 1..=5 {
        alice.send(2, id, 1).await;
        assert_eq!(alice.answer(id).await.expect("accepted").st, Standing::Live);
    }
    let mut deliveries = bob.deliveries().await;
    for id in 1..=5 {
        let delivery = deliveries.expect(quic::deliver).await;
        assert_eq!(delivery.id, FrameId::Bin(Bin([id; 16])), "one thread, one stream, in order");
        bob.say(Taken { dids: vec![delivery.did] }).await;
        assert_eq!(alice.status().await, (FrameId::Bin(Bin([id; 16])), Outcome::Taken));
    }
    // The same device goes to the other relay, by the other carrier: its first session ends.
    let mut moved = Session::log_in(there.at, 2).await;
    assert_eq!(quic::end(&bob.connection).await, 5);
    alice.send(2, 6, 1).await;
    assert_eq!(moved.delivered().await.id, FrameId::Bin(Bin([6; 16])));
}

#[tokio::test]
async fn a_blob_passes_from_one_relay_to_another_and_is_asked_for_again_when_one_dies() {
    let nats = Nats::start(1);
    let [a, b, c] = dirs();
    let (here, there, third) = (nats.relay(a.path()), nats.relay(b.path()), nats.relay(c.path()));
    let mut alice = Session::log_in(here.at, 1).await;
    let mut bob = Session::log_in(there.at, 2).await;
    let mut passage = Passage::new(1, 2, 3_000_000);
    passage.begin(&mut alice, &mut bob).await;
    assert!(passage.pass(&mut alice, &mut bob, usize::MAX).await, "over two relays");
    // That of the recipient dies.
    passage.begin(&mut alice, &mut bob).await;
    assert!(!passage.pass(&mut alice, &mut bob, 20).await);
    there.kill();
    let mut bob = Session::log_in(third.at, 2).await;
    passage.begin(&mut alice, &mut bob).await;
    assert!(!passage.pass(&mut alice, &mut bob, 20).await);
    // That of the sender dies.
    here.kill();
    let back = nats.relay(b.path());
    let mut alice = Session::log_in(back.at, 1).await;
    passage.begin(&mut alice, &mut bob).await;
    assert!(passage.pass(&mut alice, &mut bob, usize::MAX).await, "whole in the end");
}

/// The next news of so many agents, and whether each is there.
async fn news_of(session: &mut Session, agents: usize, within: Duration) -> BTreeMap<Key, bool> {
    let (begun, mut news) = (Instant::now(), BTreeMap::new());
    while news.len() < agents {
        assert!(begun.elapsed() < within, "only {news:?} after {within:?}");
        let frames = session.rest().await.into_iter().filter_map(presence);
        news.extend(frames.map(|presence| (presence.key, presence.on)));
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    news
}

/// A relay dies with its sessions, or only sleeps: the others do not wait until its claims expire.
#[tokio::test]
async fn sessions_of_a_killed_relay_are_gone_within_seconds() {
    const SOON: Duration = Duration::from_secs(25);
    let nats = Nats::start(1);
    let [a, b, c] = dirs();
    let (here, there, third) = (nats.relay(a.path()), nats.relay(b.path()), nats.relay(c.path()));
    let mut alice = Session::log_in(here.at, 1).await;
    let _bob = Session::log_in(there.at, 2).await;
    let _carol = Session::log_in(third.at, 3).await;
    alice.say(Watch { keys: vec![key(2), key(3)], all: false }).await;
    assert_eq!(news_of(&mut alice, 2, SOON).await, [(key(2), true), (key(3), true)].into());
    alice.send(2, 1, 1).await;
    assert_eq!(alice.answer(1).await.expect("accepted").st, Standing::Live);
    let begun = Instant::now();
    there.kill();
    third.signal(rustix::process::Signal::STOP);
    assert_eq!(news_of(&mut alice, 2, SOON).await, [(key(2), false), (key(3), false)].into());
    println!("noticed after {:.1} s", begun.elapsed().as_secs_f32());
    alice.send(2, 2, 1).await;
    assert_eq!(alice.answer(2).await.expect("accepted").st, Standing::Queued);
    third.signal(rustix::process::Signal::CONT);
    assert_eq!(news_of(&mut alice, 1, SOON).await, [(key(3), true)].into());
    alice.send(3, 3, 1).await;
    assert_eq!(alice.answer(3).await.expect("accepted").st, Standing::Live);
}

/// What one recipient got.
#[derive(Default)]
struct Inbox {
    /// First copies in the order of arrival.
    first: Vec<u8>,
    again: u32,
}

impl Inbox {
    async fn take(&mut self, recipient: &mut Session, deliver: Deliver) {
        let FrameId::Bin(Bin([id, ..])) = deliver.id else { panic!("sealed mail only") };
        if self.first.contains(&id) {
            self.again += 1;
        } else {
            self.first.push(id);
        }
        // A relay that was killed has left frames behind; what they brought comes again.
        recipient.try_say(Taken { dids: vec![deliver.did] }).await;
    }
}

fn accepted(frame: &Frame) -> Option<u8> {
    let Frame::Accepted(Accepted { id: FrameId::Bin(Bin([id, ..])), .. }) = frame else { return None };
    Some(*id)
}

/// Devices and leases of all are without a leader for a moment when a server dies; a node tries again.
async fn log_in_at_last(at: std::net::SocketAddr, n: u8) -> Session {
    let begun = Instant::now();
    loop {
        if let Some(session) = Session::try_log_in(at, n).await {
            return session;
        }
        assert!(begun.elapsed() < PATIENCE, "agent {n} is not let in");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Three relays on three servers; each round a relay, now that of the sender, now that of the recipient, or a server dies
/// by SIGKILL while sealed messages are on their way. A sender repeats the same bytes until they are accepted, as an
/// outbox does.
#[tokio::test]
async fn killed_relays_and_servers_lose_nothing_that_was_accepted_over_v2() {
    let mut nats = Nats::start(3);
    let dirs: [TempDir; 3] = dirs();
    let mut relays: Vec<Option<Relay>> =
        dirs.iter().map(|dir| Some(nats.talkative_relay(dir.path()))).collect();
    let (mut inbox, mut open) = (Inbox::default(), BTreeMap::<u8, Send>::new());
    let (mut next, mut repeated) = (0_u8, BTreeSet::new());
    for round in 0..6_usize {
        let at = |n: usize| relays[n % 3].as_ref().expect("runs").at;
        let mut recipient = log_in_at_last(at(round + 1), 2).await;
        let mut sender = log_in_at_last(at(round), 1).await;
        repeated.extend(open.keys().copied());
        for _ in 0..40 {
            open.insert(next, send(1, 2, next, 1));
            next += 1;
        }
        for frame in open.values() {
            sender.say(frame.clone()).await;
        }
        let moment = tokio::time::sleep(Duration::from_millis(10 + 15 * round as u64));
        let end = tokio::time::sleep(Duration::from_secs(8));
        tokio::pin!(moment, end);
        let mut killed = false;
        while !killed || !open.is_empty() {
            tokio::select! {
                () = &mut moment, if !killed => {
                    killed = true;
                    match round % 3 {
                        0 => nats.kill(round % 2),
                        turn => relays[(round + 2 - turn) % 3].take().expect("runs").kill(),
                    }
                }
                () = &mut end => break,
                frame = sender.frame() => match frame {
                    Ok(frame) => drop(accepted(&frame).map(|id| open.remove(&id))),
                    Err(_) => break,
                },
                frame = recipient.frame() => match frame {
                    Ok(Frame::Deliver(deliver)) => inbox.take(&mut recipient, deliver).await,
                    Ok(_) => {}
                    Err(_) => break,
                },
            }
        }
        if round % 3 == 0 {
            nats.revive(round % 2);
            nats.whole().await;
        }
        for (relay, dir) in relays.iter_mut().zip(&dirs).filter(|(relay, _)| relay.is_none()) {
            *relay = Some(nats.talkative_relay(dir.path()));
        }
    }
    let mut sender = log_in_at_last(relays[1].as_ref().expect("runs").at, 1).await;
    repeated.extend(open.keys().copied());
    let begun = Instant::now();
    while !open.is_empty() && begun.elapsed() < PATIENCE {
        for frame in open.values().cloned().collect::<Vec<_>>() {
            sender.say(frame).await;
        }
        // Who is refused for now sends again.
        let answers = async {
            while !open.is_empty() {
                let frame = sender.frame().await.expect("open");
                accepted(&frame).map(|id| open.remove(&id));
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(3), answers).await;
    }
    assert!(open.is_empty(), "never accepted: {:?}", open.keys());
    let mut recipient = log_in_at_last(relays[2].as_ref().expect("runs").at, 2).await;
    let begun = Instant::now();
    while inbox.first.len() < usize::from(next) && begun.elapsed() < PATIENCE {
        let deliver = tokio::time::timeout(Duration::from_secs(1), recipient.delivered()).await;
        if let Ok(deliver) = deliver {
            inbox.take(&mut recipient, deliver).await;
        }
    }
    let lost: Vec<u8> = (0..next).filter(|id| !inbox.first.contains(id)).collect();
    if !lost.is_empty() {
        nats.explain(&dirs).await;
    }
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
    let once: Vec<u8> = inbox.first.iter().copied().filter(|id| !repeated.contains(id)).collect();
    assert!(once.is_sorted(), "what was sent once came out of order: {once:?}");
    println!("{next} messages, {} sent again, {} copies delivered again", repeated.len(), inbox.again);
    assert!(!repeated.is_empty() || inbox.again > 0, "no kill hit anything under way");
    let rest = recipient.rest().await;
    assert!(!rest.iter().any(|frame| matches!(frame, Frame::Deliver(_))), "confirmed is gone: {rest:?}");
}
