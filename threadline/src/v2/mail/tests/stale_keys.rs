//! Keys that a relay gave out too late, or twice.

use super::*;

/// What `bob` answers when `env` reaches him.
fn complaint(bob: &mut Party, env: &Blob, now: u64) -> Blob {
    bob.arrives(env, now);
    let mut opened = bob.open_all(now);
    assert_eq!(opened.len(), 1);
    opened.remove(0).answer.expect("a complaint").2
}

/// What `alice` makes of it.
fn heard(alice: &mut Party, complaint: &Blob, now: u64) -> bool {
    alice.arrives(complaint, now);
    alice.open_all(now).iter().any(|opened| opened.keys_failed)
}

fn learn(alice: &mut Party, bob: Key, keys: &Keys, now: u64) {
    let commit = alice.mail.learn_keys(&bob, keys, now).expect("signed by bob");
    alice.keep(commit);
}

fn seal(alice: &mut Party, bob: Key, now: u64) -> (bool, Option<Blob>) {
    let sealing = alice.mail.seal(&bob, now).expect("seals");
    alice.keep(sealing.commit);
    let sealed = alice.mail.records().outbox.values().filter(|row| row.peer == bob);
    (sealing.needs_keys, sealed.cloned().find_map(|row| row.env))
}

#[test]
fn what_was_sealed_for_a_device_that_is_gone_is_sealed_for_the_one_that_is_there() {
    let (mut alice, mut bob) = pair();
    let past = bob.shelf.claim();
    let commit = bob.mail.replace_device(NOW).expect("becomes another");
    bob.keep(commit);
    bob.shelf = Shelf::default();
    bob.publish(NOW);
    alice.say(bob.key(), "t", "hello", NOW);
    learn(&mut alice, bob.key(), &past, NOW);
    let (_, sealed) = seal(&mut alice, bob.key(), NOW);
    let complaint = complaint(&mut bob, &sealed.expect("for the old device"), NOW + 1);
    assert!(heard(&mut alice, &complaint, NOW + 2));
    assert!(alice.mail.wants_newer_list(&bob.key()));
    assert!(seal(&mut alice, bob.key(), NOW + 2).0, "it asks at once");
    assert!(!heard(&mut alice, &complaint, NOW + 2), "once");

    learn(&mut alice, bob.key(), &past, NOW + 3);
    assert!(alice.mail.wants_newer_list(&bob.key()), "the same list again is not what the peer spoke of");
    let keys = bob.shelf.claim();
    learn(&mut alice, bob.key(), &keys, NOW + 4);
    assert!(!alice.mail.wants_newer_list(&bob.key()));
    let (_, sealed) = seal(&mut alice, bob.key(), NOW + 5);
    bob.arrives(&sealed.expect("for the new device"), NOW + 6);
    bob.open_all(NOW + 6);
    assert_eq!(bob.texts(), ["hello"]);
}

#[test]
fn a_one_time_key_that_somebody_else_had_is_not_the_end() {
    let (mut alice, mut bob) = pair();
    let mut carol = Party::new("carol");
    let keys = bob.shelf.claim();
    carol.say(bob.key(), "t", "first", NOW);
    learn(&mut carol, bob.key(), &keys, NOW);
    let (_, sealed) = seal(&mut carol, bob.key(), NOW);
    bob.arrives(&sealed.expect("sealed"), NOW);
    bob.open_all(NOW);

    alice.say(bob.key(), "t", "second", NOW);
    learn(&mut alice, bob.key(), &keys, NOW);
    let (_, sealed) = seal(&mut alice, bob.key(), NOW);
    let complaint = complaint(&mut bob, &sealed.expect("sealed"), NOW + 1);
    assert!(heard(&mut alice, &complaint, NOW + 2));
    assert!(seal(&mut alice, bob.key(), NOW + 2).0);
    let keys = bob.shelf.claim();
    learn(&mut alice, bob.key(), &keys, NOW + 3);
    let (_, sealed) = seal(&mut alice, bob.key(), NOW + 3);
    bob.arrives(&sealed.expect("sealed again"), NOW + 4);
    bob.open_all(NOW + 4);
    assert_eq!(bob.texts(), ["first", "second"]);
}

#[test]
fn a_session_that_a_device_asked_for_is_not_waited_for_when_the_device_is_gone() {
    let (mut alice, mut bob) = pair();
    alice.say(bob.key(), "t", "hello", NOW);
    let keys = bob.shelf.claim();
    learn(&mut alice, bob.key(), &keys, NOW);
    let (_, sealed) = seal(&mut alice, bob.key(), NOW);
    // It forgot the key, and then itself.
    bob.restart();
    bob.store.sessions.clear();
    let account = Party::new("bob").store.device.expect("another account").pickle;
    let mut forgetful = bob.store.clone();
    forgetful.device.as_mut().expect("a device").pickle = account;
    let old = std::mem::replace(&mut bob.mail, Mail::new(bob.identity.clone(), forgetful, [3; 32]));
    let Received::Take(_) = bob.mail.receive(&sealed.expect("sealed").0, None, NOW + 1) else {
        panic!("taken")
    };
    let opened = bob.mail.open_next(&|_| true, NOW + 1).expect("opens").expect("one");
    let complaint = opened.answer.expect("a complaint").2;
    assert!(heard(&mut alice, &complaint, NOW + 2));
    bob.mail = old;
    let commit = bob.mail.replace_device(NOW + 3).expect("becomes another");
    bob.keep(commit);
    bob.shelf = Shelf::default();
    bob.publish(NOW + 3);
    let keys = bob.shelf.claim();
    learn(&mut alice, bob.key(), &keys, NOW + 4);
    assert!(alice.store.peers[&bob.key()].renew.is_empty());
}

#[test]
fn a_device_that_was_removed_has_nothing_sealed_again() {
    let (mut alice, mut bob) = pair();
    let mut thief = Mail::new(bob.identity.clone(), bob.store.clone(), [7; 32]);
    let commit = bob.mail.replace_device(NOW).expect("becomes another");
    bob.keep(commit);
    bob.shelf = Shelf::default();
    bob.publish(NOW);
    let id = alice.say(bob.key(), "t", "hello", NOW);
    alice.outgoing(&mut bob.shelf, NOW);
    let error =
        crate::v2::content::ErrorBody { code: Code::NoSession, about: id, retry_ms: None, text: None };
    let content = crate::v2::content::Content::new("error", "ctl".parse().expect("id"), Body::Error(error));
    let mut commit = Commit::default();
    let (_, env) = thief.bare(alice.key(), &content, &mut commit, NOW + 1).expect("a device");
    assert!(!heard(&mut alice, &Blob(env), NOW + 2));
    assert!(!alice.mail.wants_newer_list(&bob.key()));
}
