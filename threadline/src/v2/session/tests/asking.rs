//! Which relay is asked about a peer.

use super::*;
use crate::v2::mail::{CarrierAnswer, LearnError, Received, Write};
use crate::v2::objects::ObjectError;

fn machine(name: &str) -> Mail {
    let mut mail = Mail::new(Arc::new(identity(name)), Records::default(), [5; 32]);
    let _ = mail.ensure_device(name, NOW).expect("mints");
    mail
}

/// What a relay that speaks the truth answers about this machine.
fn keys_of(mail: &mut Mail, rid: u32) -> Keys {
    let (_, put) = mail.publish(&relay_key(), Some(0), NOW).expect("publishes");
    let put = put.expect("keys");
    let (prekey, signature) = put.otks[0].clone();
    Keys { rid, devs: vec![(put.cert, put.cs, prekey, signature, 0)], list: put.list, ls: put.ls }
}

/// Has keys of a peer claimed; returns the relay that is asked, and the question's number.
fn asked(courier: &mut Courier, sessions: &mut [ClientSession], peer: Key) -> (usize, u32) {
    courier.claim_keys(sessions, peer, NOW);
    let asked = sessions.iter_mut().enumerate().find_map(|(relay, session)| {
        written(&effects(session)).into_iter().find_map(|frame| match frame {
            Frame::KeysClaim(claim) => Some((relay, claim.rid)),
            _ => None,
        })
    });
    asked.expect("somebody is asked")
}

#[test]
fn a_relay_whose_word_about_a_peer_led_nowhere_is_asked_about_it_last() {
    let mut sessions = [logged_in().0, logged_in().0];
    let (mut courier, mut alice, mut bob, mut carol) =
        (Courier::default(), machine("alice"), machine("bob"), machine("carol"));
    let peer = *bob.key();
    let others = [logged_in().0, logged_in().0];
    let mut answer = |courier: &mut Courier, relay, rid, keys: Keys| {
        courier.answer(&mut alice, &others, (relay, rid), keys.into(), NOW).expect("it was asked").1
    };

    let (relay, rid) = asked(&mut courier, &mut sessions, peer);
    assert_eq!(relay, 0);
    let error = answer(&mut courier, relay, rid, keys_of(&mut carol, rid));
    assert!(matches!(error, Some(LearnError::Object(_))), "another agent's keys: {error:?}");
    let (relay, rid) = asked(&mut courier, &mut sessions, peer);
    assert_eq!(relay, 1);
    let keys = keys_of(&mut bob, rid);
    assert_eq!(answer(&mut courier, relay, rid, keys.clone()), None);

    // The peer says that it cannot open what was sealed by these.
    courier.keys_failed(peer);
    courier.keys_failed(peer);
    let (relay, rid) = asked(&mut courier, &mut sessions, peer);
    assert_eq!(relay, 0, "the other one misled less often");
    assert_eq!(answer(&mut courier, relay, rid, Keys { rid, ..keys }), None);
    assert_eq!(asked(&mut courier, &mut sessions, *carol.key()).0, 0, "about others it may speak the truth");
}

/// What a relay says of the devices of `of` when it was asked about `key`.
fn looked(rid: u32, key: Key, of: &Mail) -> Frame {
    let row = of.records().device.clone().expect("device");
    let list = (Blob(row.list.bytes().to_vec()), *row.list.signature());
    let certs = vec![(Blob(row.cert.bytes().to_vec()), *row.cert.signature())];
    let (addr, relays) = (None, Vec::new());
    Looked { rid, key, name: String::new(), certs, list: Some(list), addr, on: true, proto: vec![2], relays }
        .into()
}

/// Has a peer looked up; returns the relays that are asked, and the questions' numbers.
fn looks_up(courier: &mut Courier, sessions: &mut [ClientSession], peer: Key) -> Vec<(usize, u32)> {
    courier.look_up(sessions, peer, NOW);
    let questions = sessions.iter_mut().enumerate().flat_map(|(relay, session)| {
        written(&effects(session)).into_iter().filter_map(move |frame| match frame {
            Frame::Lookup(lookup) => Some((relay, lookup.rid)),
            _ => None,
        })
    });
    questions.collect()
}

#[test]
fn forged_words_about_devices_lead_to_the_next_relay_at_once_and_not_in_circles() {
    let mut sessions = [logged_in().0, logged_in().0];
    let (mut courier, mut alice, mut bob, carol) =
        (Courier::default(), machine("alice"), machine("bob"), machine("carol"));
    let peer = *alice.key();
    let keys = keys_of(&mut bob, 1);
    let _ = alice.learn_keys(bob.key(), &keys, NOW).expect("keys");
    let draft = crate::v2::mail::Draft::text("t".parse().expect("thread"), "hello");
    let (id, _) = alice.submit(*bob.key(), draft, NOW).expect("takes it");
    let _ = alice.seal(bob.key(), NOW).expect("seals");
    let env = alice.records().outbox[&(*bob.key(), id)].env.clone().expect("sealed");
    assert!(matches!(bob.receive(&env.0, None, NOW), Received::Take(_)));
    let mut answer = |courier: &mut Courier, sessions: &[ClientSession], question, frame| {
        let (commit, error) = courier.answer(&mut bob, sessions, question, frame, NOW).expect("it was asked");
        (commit.writes.iter().any(|write| matches!(write, Write::Spool(_))), error)
    };

    let asked = looks_up(&mut courier, &mut sessions, peer);
    assert!(asked.len() == 1 && looks_up(&mut courier, &mut sessions, peer).is_empty(), "once is enough");
    let forged = answer(&mut courier, &sessions, asked[0], looked(asked[0].1, peer, &carol));
    assert_eq!(forged, (true, Some(LearnError::Object(ObjectError::BadDevice))), "its mail asks again");
    let next = looks_up(&mut courier, &mut sessions, peer);
    assert_ne!(next[0].0, asked[0].0);
    let forged = answer(&mut courier, &sessions, next[0], looked(next[0].1, peer, &carol));
    assert_eq!(forged, (false, Some(LearnError::Object(ObjectError::BadDevice))), "nobody else is there");
    let third = looks_up(&mut courier, &mut sessions, peer);
    assert_eq!(answer(&mut courier, &sessions, third[0], looked(third[0].1, peer, &alice)), (true, None));
    let again = looks_up(&mut courier, &mut sessions, peer);
    let repeated = answer(&mut courier, &sessions, again[0], looked(again[0].1, peer, &alice));
    assert_eq!(repeated.1, Some(LearnError::NothingNew), "else a relay could have it asked without end");
}

#[test]
fn what_a_relay_gave_up_goes_to_another_or_waits_for_its_time() {
    let sessions = [logged_in().0];
    let answer = Courier::default().gave_up(&sessions, (relay_key(), Bin([1; 16])));
    assert_eq!(answer, CarrierAnswer::GaveUp { others: false });
    let mut alice = machine("alice");
    let draft = crate::v2::mail::Draft::text("t".parse().expect("thread"), "hello");
    let mut bob = machine("bob");
    let (id, _) = alice.submit(*bob.key(), draft, NOW).expect("takes it");
    let keys = keys_of(&mut bob, 1);
    let _ = alice.learn_keys(bob.key(), &keys, NOW).expect("keys");
    let _ = alice.seal(bob.key(), NOW).expect("seals");
    alice.handed(bob.key(), &id, true, NOW);
    let _ = alice.answered(bob.key(), &id, answer, NOW);
    assert!(alice.due(NOW + 29_999).is_empty(), "a relay that gives up at once is not asked at once");
    let _ = alice.answered(bob.key(), &id, CarrierAnswer::GaveUp { others: true }, NOW);
    assert_eq!(alice.due(NOW), [(*bob.key(), id)]);
}
