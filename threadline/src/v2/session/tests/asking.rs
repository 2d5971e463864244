//! Which relay is asked about a peer.

use super::*;
use crate::v2::mail::{CarrierAnswer, LearnError};

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
    let mut answer = |courier: &mut Courier, relay, rid, keys: Keys| {
        courier.answer(&mut alice, relay, rid, keys.into(), NOW).expect("it was asked").1
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
