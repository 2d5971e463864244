use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::delivery::DeliveryState;
use crate::path::{CUSTODY_PATIENCE_MS, PATIENCE_MS};
use crate::testing::identity;
use crate::v2::content::{Body, Receipt, ReceiptStatus};
use crate::v2::envelope::Envelope;
use crate::v2::frames::{Keys, KeysOk, KeysPut, SignedBytes};
use crate::v2::inside_v1::{Introduction, unwrap, wrap};
use crate::v2::objects::{DeviceList, FALLBACK, ONE_TIME, Signed};
use crate::v2::session::Courier;
use crate::v2::{Blob, Code};

mod stale_keys;

const NOW: u64 = 1_768_478_400_000;
const RELAY: Key = Bin([0xee; 32]);

/// The keys one device left at a relay.
#[derive(Default)]
struct Shelf {
    put: Option<KeysPut>,
    one_time: VecDeque<SignedBytes>,
    highest: u64,
}

impl Shelf {
    fn put(&mut self, keys: KeysPut) -> KeysOk {
        for (bytes, signature) in keys.otks.clone() {
            let key = Signed::<crate::v2::objects::Prekey>::parse(&bytes.0, &signature.0).expect("signed");
            if key.object().key_id > self.highest {
                self.highest = key.object().key_id;
                self.one_time.push_back((bytes, signature));
            }
        }
        if let Some((bytes, signature)) = &keys.fb {
            let key = Signed::<crate::v2::objects::Prekey>::parse(&bytes.0, &signature.0).expect("signed");
            self.highest = self.highest.max(key.object().key_id);
        }
        self.put = Some(keys);
        KeysOk { have: self.one_time.len() as u16, hw: self.highest }
    }

    fn claim(&mut self) -> Keys {
        let put = self.put.clone().expect("published");
        let (key, kind) = match self.one_time.pop_front() {
            Some(key) => (key, ONE_TIME),
            None => (put.fb.clone().expect("a fallback key"), FALLBACK),
        };
        Keys { rid: 1, devs: vec![(put.cert, put.cs, key.0, key.1, kind)], list: put.list, ls: put.ls }
    }
}

struct Party {
    mail: Mail,
    identity: Arc<Identity>,
    store: Records,
    rows: BTreeMap<(RowKind, Vec<u8>), Vec<u8>>,
    shelf: Shelf,
    seed: u8,
    inbox: Vec<Dispatched>,
}

impl Party {
    fn new(name: &str) -> Self {
        let identity = Arc::new(identity(name));
        let mail = Mail::new(identity.clone(), Records::default(), [1; 32]);
        let (store, shelf) = (Records::default(), Shelf::default());
        let rows = BTreeMap::new();
        let mut party = Self { mail, identity, store, rows, shelf, seed: 1, inbox: Vec::new() };
        let commit = party.mail.ensure_device(name, NOW).expect("mints");
        party.keep(commit);
        party.publish(NOW);
        party
    }

    fn keep(&mut self, commit: Commit) {
        self.store.commit(&commit);
        for row in commit.writes.iter().map(Write::to_row) {
            match row.value {
                Some(value) => drop(self.rows.insert((row.kind, row.key), value)),
                None => drop(self.rows.remove(&(row.kind, row.key))),
            }
        }
        assert_eq!(&self.store.device, &self.mail.records().device, "the store follows");
    }

    fn stored(&self) -> Records {
        let mut records = Records::default();
        for ((kind, key), value) in &self.rows {
            records.restore(*kind as i64, key, value).expect("our own rows");
        }
        records
    }

    fn restart(&mut self) {
        self.seed += 1;
        self.mail = Mail::new(self.identity.clone(), self.store.clone(), [self.seed; 32]);
    }

    fn publish(&mut self, now: u64) {
        let have = self.shelf.one_time.len() as u16;
        let (commit, put) = self.mail.publish(&RELAY, Some(have), now).expect("publishes");
        self.keep(commit);
        if let Some(put) = put {
            let answer = self.shelf.put(put);
            let commit = self.mail.keys_stored(&RELAY, &answer).expect("marks");
            self.keep(commit);
        }
    }

    fn say(&mut self, to: Key, thread: &str, text: &str, now: u64) -> Id {
        let draft = Draft::text(thread.parse().expect("thread"), text);
        let (id, commit) = self.mail.submit(to, draft, now).expect("takes it");
        self.keep(commit);
        id
    }

    /// Seals and hands over everything that is due; what the carrier gets.
    fn outgoing(&mut self, to: &mut Shelf, now: u64) -> Vec<(Key, Id, Blob)> {
        let commit = self.mail.flush_receipts(&|_| true, now).expect("receipts");
        self.keep(commit);
        for peer in self.mail.peers_to_seal() {
            let sealing = self.mail.seal(&peer, now).expect("seals");
            self.keep(sealing.commit);
            if sealing.needs_keys {
                let commit = self.mail.learn_keys(&peer, &to.claim(), now).expect("good keys");
                self.keep(commit);
                let sealing = self.mail.seal(&peer, now).expect("seals");
                assert!(!sealing.needs_keys);
                self.keep(sealing.commit);
            }
        }
        let mut out = Vec::new();
        for (peer, id) in self.mail.due(now) {
            self.mail.handed(&peer, &id, true, now);
            out.push((peer, id, self.mail.records().outbox[&(peer, id)].env.clone().expect("sealed")));
        }
        out
    }

    fn accepted(&mut self, peer: &Key, id: &Id, now: u64) {
        let (commit, _) =
            self.mail.answered(peer, id, CarrierAnswer::Accepted { live: true, others: false }, now);
        self.keep(commit);
    }

    fn arrives(&mut self, env: &Blob, now: u64) {
        match self.mail.receive(&env.0, None, now) {
            Received::Take(commit) => self.keep(commit),
            Received::Refuse(code) => panic!("{code}"),
        }
    }

    fn open_all(&mut self, now: u64) -> Vec<Opened> {
        let mut all = Vec::new();
        while let Some(opened) = self.mail.open_next(&|_| true, now).expect("opens") {
            self.keep(opened.commit.clone());
            all.push(opened);
        }
        let (commit, dispatched) = self.mail.dispatch(now);
        self.inbox.extend(dispatched);
        self.keep(commit);
        all
    }

    fn texts(&self) -> Vec<String> {
        let text = |d: &Dispatched| match &d.row.content.body {
            Body::Text(text) => text.clone(),
            other => format!("{other:?}"),
        };
        self.inbox.iter().map(text).collect()
    }

    fn key(&self) -> Key {
        *self.mail.key()
    }

    fn device(&self) -> crate::v2::DeviceId {
        self.store.device.as_ref().expect("device").device
    }
}

/// Carries everything from `a` to `b`.
fn carry(a: &mut Party, b: &mut Party, now: u64) -> usize {
    let out = a.outgoing(&mut b.shelf, now);
    for (peer, id, env) in &out {
        a.accepted(peer, id, now);
        b.arrives(env, now);
    }
    b.open_all(now);
    out.len()
}

fn pair() -> (Party, Party) {
    (Party::new("alice"), Party::new("bob"))
}

#[test]
fn a_conversation_is_delivered_receipted_and_forward_secret_in_both_directions() {
    let (mut alice, mut bob) = pair();
    let first = alice.say(bob.key(), "t", "Soup?", NOW);
    carry(&mut alice, &mut bob, NOW);
    assert_eq!(bob.texts(), ["Soup?"]);
    assert_eq!(bob.shelf.one_time.len(), 49);
    assert_eq!(alice.store.outbox[&(bob.key(), first)].state, DeliveryState::Accepted);
    assert!(!alice.store.outbox[&(bob.key(), first)].confirmed, "a relay's word is not the peer's");
    carry(&mut bob, &mut alice, NOW + 1);
    let row = &alice.store.outbox[&(bob.key(), first)];
    assert!(row.confirmed && row.env.is_none());
    let mut reply = Draft::text("t".parse().expect("thread"), "With bread.");
    reply.reply_to = Some(first);
    let (_, commit) = bob.mail.submit(alice.key(), reply, NOW + 2).expect("takes it");
    bob.keep(commit);
    carry(&mut bob, &mut alice, NOW + 2);
    assert!(!alice.store.outbox.contains_key(&(bob.key(), first)), "a reply is the end of it");
    assert_eq!(alice.texts(), ["With bread."]);
    for n in 0..10 {
        alice.say(bob.key(), "t", &format!("a{n}"), NOW + 3 + n);
        bob.say(alice.key(), "t", &format!("b{n}"), NOW + 3 + n);
        carry(&mut alice, &mut bob, NOW + 4 + n);
        carry(&mut bob, &mut alice, NOW + 4 + n);
    }
    assert!(bob.inbox.iter().all(|d| d.marker == Marker::InOrder && !d.diverged));
    assert_eq!((alice.inbox.len(), bob.inbox.len()), (11, 11));
    assert!(alice.store.sessions.len() == 1 && bob.store.sessions.len() == 1);
    assert!(!alice.store.sessions.values().any(|session| session.weak));
    assert_eq!((alice.stored(), bob.stored()), (alice.store, bob.store), "rows hold the records");
}

#[test]
fn who_introduced_itself_is_written_to_inside_v1_messages() {
    let (mut alice, mut bob) = pair();
    let (commit, introduction) = alice.mail.introduce(NOW).expect("introduces");
    alice.keep(commit);
    let address = alice.identity.fingerprint();
    assert_eq!(Introduction::from_json(&introduction.to_json(), &bob.identity.fingerprint()), None);
    let (_, heard) = Introduction::from_json(&introduction.to_json(), &address).expect("readable");
    assert!(heard == introduction && heard.is_signed() && !bob.mail.can_seal(&alice.key()));
    for _ in 0..2 {
        let commit = bob.mail.learn_keys(&heard.key, &heard.keys(), NOW).expect("good keys");
        bob.keep(commit);
    }
    assert!(bob.mail.can_seal(&alice.key()) && bob.store.sessions.len() == 1, "the key is used once");

    let ids = ["one", "two"].map(|text| bob.say(alice.key(), "t", text, NOW));
    let sealing = bob.mail.seal(&alice.key(), NOW).expect("seals");
    assert!(!sealing.needs_keys);
    bob.keep(sealing.commit);
    let mut courier = Courier::default();
    assert_eq!(courier.send(&mut bob.mail, &mut [], NOW), 0, "nobody carries it");
    courier.set_inside_v1(&mut bob.mail, true, NOW);
    let mut carried = Vec::new();
    while courier.send(&mut bob.mail, &mut [], NOW) > 0 {
        for (to, id, env) in courier.take_for_v1() {
            let (commit, change) = bob.mail.answered(&to, &id, CarrierAnswer::Written, NOW);
            assert_eq!(
                change.map(|change| (change.state, change.confirmed)),
                Some((DeliveryState::Sent, false))
            );
            bob.keep(commit);
            carried.push(unwrap(&wrap(&env.0, 1_000).expect("small")).expect("true to itself"));
        }
    }
    assert_eq!(carried.len(), 2, "the second does not wait for the first");
    for env in carried {
        alice.arrives(&Blob(env), NOW + 1);
    }
    alice.open_all(NOW + 1);
    assert_eq!(alice.texts(), ["one", "two"]);
    assert!(alice.mail.can_seal(&bob.key()), "the first message says who wrote it");
    let row = &bob.store.outbox[&(alice.key(), ids[0])];
    assert!(
        !row.confirmed && row.env.is_some() && row.next_at.is_some_and(|at| at > NOW),
        "it is tried again"
    );
    carry(&mut alice, &mut bob, NOW + 2);
    assert!(ids.iter().all(|id| bob.store.outbox[&(alice.key(), *id)].confirmed));
}

#[test]
fn a_first_message_replayed_begins_one_session_also_with_the_fallback_key_and_after_a_restart() {
    let (mut alice, mut bob) = pair();
    bob.shelf.one_time.clear();
    alice.say(bob.key(), "t", "hello", NOW);
    let out = alice.outgoing(&mut bob.shelf, NOW);
    assert!(alice.store.sessions.values().all(|session| session.weak));
    for n in 0..100 {
        bob.arrives(&out[0].2, NOW + n);
        bob.open_all(NOW + n);
        if n % 10 == 0 {
            bob.restart();
        }
    }
    assert_eq!((bob.inbox.len(), bob.store.sessions.len()), (1, 1));
}

#[test]
fn five_hundred_messages_over_fifty_threads_open_in_any_order_of_arrival() {
    let (mut alice, mut bob) = pair();
    for n in 0..500 {
        alice.say(bob.key(), &format!("t{}", n % 50), &format!("{n}"), NOW + n);
    }
    let mut rng = StdRng::seed_from_u64(3);
    let mut rounds = 0;
    loop {
        let mut out = alice.outgoing(&mut bob.shelf, NOW + 1_000 + rounds);
        if out.is_empty() {
            break;
        }
        assert!(out.len() <= MAX_UNHELD);
        out.shuffle(&mut rng);
        for (peer, id, env) in &out {
            bob.arrives(env, NOW + 1_000 + rounds);
            alice.accepted(peer, id, NOW + 1_000 + rounds);
        }
        if rounds % 3 == 0 {
            bob.open_all(NOW + 1_000 + rounds);
        }
        rounds += 1;
    }
    bob.open_all(NOW + 2_000);
    assert_eq!(bob.inbox.len(), 500);
    assert!(bob.inbox.iter().all(|d| d.marker == Marker::InOrder));
}

#[test]
fn only_the_peer_confirms_and_only_what_was_sealed() {
    let (mut alice, mut bob) = pair();
    let mut mallory = Party::new("carol");
    let id = alice.say(bob.key(), "t", "for Bob", NOW);
    alice.outgoing(&mut bob.shelf, NOW);
    let hash = alice.store.outbox[&(bob.key(), id)].hash.expect("sealed");
    let mut lie = |from: &mut Party, hash, status, n| {
        let receipt =
            Receipt { ids: vec![id], hs: vec![hash], status, reason: None, retry_after_s: None, at: NOW };
        let thread = "ctl".parse().expect("thread");
        let draft = Draft { kind: "receipt".into(), body: Body::Receipt(receipt), ..Draft::text(thread, "") };
        let (_, commit) = from.mail.submit(alice.key(), draft, NOW + n).expect("takes it");
        from.keep(commit);
        carry(from, &mut alice, NOW + n);
        alice.store.outbox.get(&(bob_key(), id)).map(|row| (row.state, row.confirmed))
    };
    let open = Some((DeliveryState::Sent, false));
    let sent = |state: Option<(DeliveryState, bool)>| state.map(|(_, confirmed)| confirmed);
    assert_eq!(sent(lie(&mut mallory, hash, ReceiptStatus::Delivered, 1)), Some(false), "another's word");
    assert_eq!(sent(lie(&mut bob, Bin([7; 32]), ReceiptStatus::Delivered, 2)), Some(false), "other bytes");
    let zeros = Bin([0; 32]);
    assert_eq!(
        sent(lie(&mut bob, zeros, ReceiptStatus::Accepted, 3)),
        Some(false),
        "never opened, never had"
    );
    assert_eq!(sent(lie(&mut bob, hash, ReceiptStatus::Held, 4)), Some(true));
    assert_eq!(lie(&mut bob, hash, ReceiptStatus::Delivered, 5), None);
    let _ = open;
}

fn bob_key() -> Key {
    identity("bob").public().into()
}

#[test]
fn a_peer_that_lost_its_sessions_gets_everything_again_once() {
    let (mut alice, mut bob) = pair();
    alice.say(bob.key(), "t", "one", NOW);
    carry(&mut alice, &mut bob, NOW);
    carry(&mut bob, &mut alice, NOW + 1);
    bob.say(alice.key(), "t", "yes", NOW + 2);
    carry(&mut bob, &mut alice, NOW + 2);
    for key in bob.store.sessions.keys().cloned().collect::<Vec<_>>() {
        bob.store.sessions.remove(&key);
    }
    bob.restart();
    for n in 0..5 {
        alice.say(bob.key(), "t", &format!("m{n}"), NOW + 10 + n);
    }
    let out = alice.outgoing(&mut bob.shelf, NOW + 20);
    assert_eq!(out.len(), 6, "five messages and a receipt");
    for (peer, id, env) in &out {
        alice.accepted(peer, id, NOW + 20);
        bob.arrives(env, NOW + 20);
    }
    let opened = bob.open_all(NOW + 21);
    let answers: Vec<_> = opened.iter().filter_map(|o| o.answer.clone()).collect();
    assert_eq!(answers.len(), 1, "one complaint, not one per message");
    assert_eq!(bob.inbox.len(), 1);
    let before: Vec<_> = out.iter().map(|(_, id, env)| (*id, env.clone())).collect();
    alice.arrives(&answers[0].2, NOW + 22);
    alice.open_all(NOW + 22);
    let again = alice.outgoing(&mut bob.shelf, NOW + 23);
    assert_eq!(again.len(), 5, "what nobody confirmed is sealed again under the same ids");
    for (peer, id, env) in &again {
        assert!(before.iter().any(|(old, bytes)| old == id && bytes != env));
        alice.accepted(peer, id, NOW + 23);
        bob.arrives(env, NOW + 23);
        bob.arrives(env, NOW + 24);
    }
    bob.open_all(NOW + 25);
    assert_eq!(bob.texts()[1..], ["m0", "m1", "m2", "m3", "m4"]);
    assert!(bob.inbox.iter().all(|d| !d.diverged));
    alice.arrives(&answers[0].2, NOW + 26);
    alice.open_all(NOW + 26);
    assert!(alice.outgoing(&mut bob.shelf, NOW + 26).is_empty(), "a replayed complaint does nothing");
}

#[test]
fn a_thousand_complaints_cost_six_sessions_a_day() {
    let (mut alice, mut bob) = pair();
    let id = alice.say(bob.key(), "t", "hello", NOW);
    carry(&mut alice, &mut bob, NOW);
    let error =
        crate::v2::content::ErrorBody { code: Code::NoSession, about: id, retry_ms: None, text: None };
    let content = crate::v2::content::Content::new("error", "ctl".parse().expect("id"), Body::Error(error));
    let mut claims = 0;
    for n in 0..1_000_u64 {
        let now = NOW + 1_000 + n * 80_000;
        let mut commit = Commit::default();
        let (_, env) = bob.mail.bare(alice.key(), &content, &mut commit, now).expect("a device");
        bob.keep(commit);
        alice.arrives(&Blob(env), now);
        alice.open_all(now);
        let sealing = alice.mail.seal(&bob.key(), now).expect("seals");
        alice.keep(sealing.commit);
        if sealing.needs_keys {
            claims += 1;
            bob.publish(now);
            let commit = alice.mail.learn_keys(&bob.key(), &bob.shelf.claim(), now).expect("keys");
            alice.keep(commit);
            let sealing = alice.mail.seal(&bob.key(), now).expect("seals");
            alice.keep(sealing.commit);
        }
    }
    assert!(claims <= 6, "{claims}");
    assert!(alice.store.sessions.len() <= MAX_SESSIONS);
}

#[test]
fn no_key_is_offered_twice_whatever_the_crash() {
    let mut bob = Party::new("bob");
    let mut offered = std::collections::BTreeSet::new();
    let mut rng = StdRng::seed_from_u64(5);
    for round in 0..60_u64 {
        let now = NOW + round * 3_600_000;
        for _ in 0..rng.random_range(0..40) {
            let claimed = bob.shelf.claim();
            if claimed.devs[0].4 == ONE_TIME {
                assert!(offered.insert(claimed.devs[0].2.clone()), "a key was given twice");
            }
        }
        let (commit, put) =
            bob.mail.publish(&RELAY, Some(bob.shelf.one_time.len() as u16), now).expect("publishes");
        if rng.random_bool(0.2) {
            bob.restart();
            continue;
        }
        bob.keep(commit);
        let Some(put) = put else { continue };
        if rng.random_bool(0.2) {
            bob.restart();
            continue;
        }
        let answer = bob.shelf.put(put);
        if rng.random_bool(0.2) {
            bob.restart();
            continue;
        }
        let commit = bob.mail.keys_stored(&RELAY, &answer).expect("marks");
        bob.keep(commit);
    }
    assert!(offered.len() > 150);
}

#[test]
fn frames_that_contradict_the_header_and_junk_under_a_real_id_cost_nothing() {
    let (mut alice, mut bob) = pair();
    let id = alice.say(bob.key(), "t", "real", NOW);
    let (_, _, env) = alice.outgoing(&mut bob.shelf, NOW).remove(0);
    let header = Envelope::parse(&env.0).expect("ours").header;
    let good = (id, alice.key(), header.tag);
    let other = Bin([9; 16]);
    for bad in [(other, good.1, good.2), (id, bob.key(), good.2), (id, good.1, Bin([0; 8]))] {
        assert_eq!(bob.mail.receive(&env.0, Some(bad), NOW), Received::Refuse(Code::BadSignature));
    }
    let mut junk = env.0.clone();
    let last = junk.len() - 100;
    junk[last] ^= 1;
    assert_eq!(bob.mail.receive(&junk, Some(good), NOW), Received::Refuse(Code::BadSignature));
    let late = bob.mail.receive(&env.0, Some(good), header.expires);
    assert_eq!(late, Received::Refuse(Code::Expired));
    let early = bob.mail.receive(&env.0, Some(good), NOW - 121_000);
    assert_eq!(early, Received::Refuse(Code::ClockSkew));
    bob.arrives(&env, NOW);
    bob.open_all(NOW);
    assert_eq!(bob.texts(), ["real"]);
}

#[test]
fn gaps_are_shown_late_messages_marked_and_forks_noticed() {
    let (mut alice, mut bob) = pair();
    for n in 1..=4 {
        alice.say(bob.key(), "t", &format!("{n}"), NOW + n);
    }
    let out = alice.outgoing(&mut bob.shelf, NOW + 10);
    for n in [0, 2, 3] {
        bob.arrives(&out[n].2, NOW + 10);
    }
    bob.open_all(NOW + 10);
    assert_eq!(bob.texts(), ["1"], "the others wait for the second");
    bob.restart();
    let jump = NOW + 10 + 3 * HOLD_MS;
    bob.open_all(jump);
    assert_eq!(bob.texts(), ["1"], "what a clock says after a restart ends no wait");
    bob.open_all(jump + HOLD_MS);
    assert_eq!(bob.texts(), ["1", "3", "4"]);
    assert_eq!(bob.inbox[1].marker, Marker::AfterGap { missing: 1 });
    assert_eq!(bob.inbox[2].marker, Marker::InOrder);
    bob.arrives(&out[1].2, NOW + 20 + HOLD_MS);
    bob.open_all(NOW + 20 + HOLD_MS);
    assert_eq!((bob.texts()[3].as_str(), bob.inbox[3].marker), ("2", Marker::Late));
    assert!(bob.inbox.iter().all(|d| !d.diverged));

    let mut twin = Party::new("alice");
    twin.store = alice.store.clone();
    twin.restart();
    let fork = |party: &mut Party, bob: &mut Party, text: &str| {
        party.mail.reconnected(NOW + 40_000);
        party.say(bob.key(), "t", text, NOW + 40_000);
        party.outgoing(&mut bob.shelf, NOW + 40_000).pop().expect("the newest").2
    };
    let a = fork(&mut alice, &mut bob, "5a");
    let b = fork(&mut twin, &mut bob, "5b");
    bob.arrives(&a, NOW + 40_000);
    bob.open_all(NOW + 40_000);
    bob.arrives(&b, NOW + 40_001);
    let opened = bob.open_all(NOW + 40_001);
    assert!(bob.inbox.last().is_some_and(|d| d.diverged) || opened.iter().any(|o| o.answer.is_some()));
}

#[test]
fn lists_from_the_future_old_lists_and_removed_devices_are_refused() {
    let (mut alice, mut bob) = pair();
    let good = bob.shelf.claim();
    let resign = |seq, issued_at, devices: Vec<_>, removed: Vec<_>| {
        let list = DeviceList { version: 1, key: bob_key(), seq, issued_at, devices, removed };
        let list = Signed::<DeviceList>::issue(&identity("bob"), list);
        Keys { list: Blob(list.bytes().to_vec()), ls: *list.signature(), ..good.clone() }
    };
    let device = bob.device();
    let far = resign(u64::MAX, NOW, vec![device], vec![]);
    assert!(alice.mail.learn_keys(&bob.key(), &far, NOW).is_err(), "nobody locks an identity for ever");
    let without = resign(NOW + 5, NOW, vec![Bin([1; 16])], vec![device]);
    assert!(alice.mail.learn_keys(&bob.key(), &without, NOW).is_err(), "not in its list");
    let commit = alice.mail.learn_keys(&bob.key(), &good, NOW).expect("good");
    alice.keep(commit);
    let older = resign(1, NOW, vec![device], vec![]);
    assert!(alice.mail.learn_keys(&bob.key(), &older, NOW).is_err());
    let stale = resign(NOW + 6, NOW, vec![device], vec![]);
    let later = NOW + crate::v2::objects::LIST_STALE_MS;
    assert!(alice.mail.learn_keys(&bob.key(), &stale, later).is_err());

    let removed = resign(NOW + 9, NOW, vec![Bin([1; 16])], vec![device]);
    let list = Signed::<DeviceList>::parse(&removed.list.0, &removed.ls.0).expect("signed");
    assert!(bob.mail.is_removed_by(&list));
    assert!(bob.mail.join_list(&list, NOW).expect("reads").is_empty(), "a removed device never republishes");
    let forgot = resign(NOW + 10, NOW, vec![Bin([1; 16])], vec![]);
    let list = Signed::<DeviceList>::parse(&forgot.list.0, &forgot.ls.0).expect("signed");
    let commit = bob.mail.join_list(&list, NOW).expect("joins");
    bob.keep(commit);
    let union = bob.store.device.as_ref().expect("device").list.object().clone();
    assert_eq!((union.devices.len(), union.seq), (2, NOW + 11));
}

#[test]
fn a_restored_copy_becomes_another_device_before_it_seals() {
    let (mut alice, mut bob) = pair();
    alice.say(bob.key(), "t", "first", NOW);
    carry(&mut alice, &mut bob, NOW);
    let backup = alice.store.clone();
    alice.say(bob.key(), "t", "before", NOW);
    carry(&mut alice, &mut bob, NOW);
    alice.shelf.one_time.clear();
    alice.publish(NOW + 1);
    let high_water = (alice.store.device.as_ref().expect("device").cert.object().seq, alice.shelf.highest);
    assert_eq!(alice.mail.check_high_water(high_water, NOW + 1), HighWater::Fits);
    let old = alice.device();
    alice.store = backup;
    alice.restart();
    assert_eq!(alice.mail.check_high_water(high_water, NOW + 1), HighWater::OldCopy);
    let commit = alice.mail.replace_device(NOW + 2).expect("mints");
    alice.keep(commit);
    assert_ne!(alice.device(), old);
    let list = alice.store.device.as_ref().expect("device").list.object().clone();
    assert_eq!((list.devices, list.removed), (vec![alice.device()], vec![old]));
    let lie = (u64::MAX, u64::MAX);
    assert_eq!(alice.mail.check_high_water(lie, NOW + 3), HighWater::Disputed, "once a day at most");
    assert_eq!(alice.mail.check_high_water(lie, NOW + 3 + 24 * 3_600_000), HighWater::OldCopy);
    alice.shelf = Shelf::default();
    alice.publish(NOW + 3);
    alice.say(bob.key(), "t", "after", NOW + 4);
    carry(&mut alice, &mut bob, NOW + 4);
    bob.open_all(NOW + 4 + HOLD_MS);
    assert_eq!(bob.texts(), ["first", "before", "after"]);
    assert!(bob.inbox.iter().all(|d| !d.diverged), "its threads begin anew");
}

#[test]
fn a_message_of_an_unknown_device_waits_until_its_sender_was_looked_up() {
    let (mut alice, mut bob) = pair();
    alice.say(bob.key(), "t", "one", NOW);
    carry(&mut alice, &mut bob, NOW);
    carry(&mut bob, &mut alice, NOW);
    for key in bob.store.peers.keys().copied().collect::<Vec<_>>() {
        bob.store.peers.remove(&key);
    }
    bob.restart();
    alice.say(bob.key(), "t", "two", NOW + 1);
    let mut out = alice.outgoing(&mut bob.shelf, NOW + 1);
    let stripped = out.pop().expect("sealed");
    bob.arrives(&stripped.2, NOW + 1);
    let opened = bob.open_all(NOW + 1);
    assert_eq!(opened[0].outcome, Outcome::Unopened(Unopened::UnknownDevice));
    assert_eq!((bob.inbox.len(), bob.store.spool.len()), (1, 1));
    assert!(bob.open_all(NOW + 1).is_empty(), "it is looked at again after a minute");
    bob.mail.reconnected(NOW + 1);
    let opened = bob.open_all(NOW + 1);
    assert_eq!(opened[0].outcome, Outcome::Unopened(Unopened::UnknownDevice), "or when a relay comes");
    let row = alice.store.device.clone().expect("device");
    let pair = |bytes: &[u8], signature| (Blob(bytes.to_vec()), signature);
    let certs = [pair(row.cert.bytes(), *row.cert.signature())];
    let list = pair(row.list.bytes(), *row.list.signature());
    let wrong = bob.mail.learn_devices(&Bin([1; 32]), &certs, &list, NOW + 2);
    assert!(wrong.is_err());
    let commit = bob.mail.learn_devices(&alice.key(), &certs, &list, NOW + 2).expect("good");
    bob.keep(commit);
    bob.open_all(NOW + 2);
    assert_eq!(bob.texts(), ["one", "two"]);
}

#[test]
fn a_carrier_without_an_answer_does_not_stop_another_one() {
    let (mut alice, mut bob) = pair();
    let id = alice.say(bob.key(), "t", "hello", NOW);
    alice.outgoing(&mut bob.shelf, NOW);
    assert!(alice.mail.slow(3_000, NOW + 2_999).is_empty());
    assert_eq!(alice.mail.slow(3_000, NOW + 3_000), [(bob.key(), id)]);
    assert!(alice.mail.due(NOW + 3_000).is_empty(), "the first carrier is still asked");
}

#[test]
fn a_refusal_ends_a_message_only_on_the_last_path() {
    let (mut alice, mut bob) = pair();
    let id = alice.say(bob.key(), "t", "hello", NOW);
    alice.outgoing(&mut bob.shelf, NOW);
    let peer = bob.key();
    let refuse = |code, last_path| CarrierAnswer::Rejected { code, retry_ms: None, last_path };
    let (commit, change) = alice.mail.answered(&peer, &id, refuse(Code::UnknownRecipient, false), NOW);
    alice.keep(commit);
    assert_eq!((change, alice.mail.due(NOW)), (None, vec![(peer, id)]));
    alice.mail.handed(&peer, &id, true, NOW);
    let busy = CarrierAnswer::Rejected { code: Code::Busy, retry_ms: Some(9_000), last_path: true };
    let (commit, _) = alice.mail.answered(&peer, &id, busy, NOW);
    alice.keep(commit);
    assert!(alice.mail.due(NOW + 8_999).is_empty() && alice.mail.due(NOW + 9_000).len() == 1);
    let (commit, change) = alice.mail.answered(&peer, &id, refuse(Code::Blocked, true), NOW);
    alice.keep(commit);
    assert_eq!(change.map(|change| change.state), Some(DeliveryState::Failed));
    assert!(alice.store.outbox.is_empty());
}

#[test]
fn what_a_relay_lost_is_sent_again_and_ends_with_its_life() {
    let (mut alice, mut bob) = pair();
    let id = alice.say(bob.key(), "t", "hello", NOW);
    let out = alice.outgoing(&mut bob.shelf, NOW);
    alice.accepted(&bob.key(), &id, NOW);
    assert!(alice.mail.due(NOW + 29_999).is_empty());
    assert_eq!(alice.mail.due(NOW + 30_000), [(bob.key(), id)], "ACCEPTED is no receipt");
    alice.restart();
    let row = &alice.mail.records().outbox[&(bob.key(), id)];
    assert_eq!(row.env.as_ref(), Some(&out[0].2), "the same bytes");
    let (commit, changes) = alice.mail.expire(NOW + DEFAULT_TTL_MS);
    alice.keep(commit);
    assert_eq!(changes.len(), 1);
    assert!(alice.store.outbox.is_empty());
}

#[test]
fn what_goes_out_again_in_a_lively_conversation_is_sealed_again_and_opens() {
    let (mut alice, mut bob) = pair();
    let talk = |alice: &mut Party, bob: &mut Party, turns: std::ops::Range<u64>| {
        for n in turns {
            alice.say(bob.key(), "t2", &format!("a{n}"), NOW + n);
            carry(alice, bob, NOW + n);
            carry(bob, alice, NOW + n);
        }
    };
    talk(&mut alice, &mut bob, 0..2);
    let id = alice.say(bob.key(), "t", "lost on its way", NOW + 3);
    let lost = alice.outgoing(&mut bob.shelf, NOW + 3).pop().expect("sealed").2;
    let commit = alice.mail.drop_stale(3_000, NOW + 3_003);
    assert!(commit.is_empty(), "the same bytes while the peer has the keys for them");
    talk(&mut alice, &mut bob, 4..12);
    let mut behind = Mail::new(bob.identity.clone(), bob.store.clone(), [9; 32]);
    assert!(matches!(behind.receive(&lost.0, None, NOW + 12), Received::Take(_)));
    let opened = behind.open_next(&|_| true, NOW + 12).expect("opens").expect("one");
    assert_eq!(opened.outcome, Outcome::Unopened(Unopened::NoSession), "the keys are gone by now");

    let commit = alice.mail.drop_stale(3_000, NOW + 3_003);
    alice.keep(commit);
    let out = alice.outgoing(&mut bob.shelf, NOW + 3_003);
    assert_eq!(out.iter().map(|(_, id, _)| *id).collect::<Vec<_>>(), [id]);
    assert_ne!(out[0].2, lost);
    for env in [&out[0].2, &lost] {
        bob.arrives(env, NOW + 3_004);
        bob.open_all(NOW + 3_004);
    }
    assert_eq!(bob.texts().iter().filter(|text| *text == "lost on its way").count(), 1);
    assert!(bob.inbox.iter().all(|d| d.marker == Marker::InOrder && !d.diverged));
}

#[test]
fn what_was_sealed_by_a_clock_far_ahead_is_sealed_again_and_keeps_its_place() {
    let (mut alice, mut bob) = pair();
    let ahead = NOW + 170_000;
    alice.say(bob.key(), "t", "one", ahead);
    let early = alice.outgoing(&mut bob.shelf, ahead);
    assert_eq!(bob.mail.receive(&early[0].2.0, None, NOW), Received::Refuse(Code::ClockSkew));
    alice.accepted(&bob.key(), &early[0].1, ahead);
    alice.restart();
    alice.say(bob.key(), "t", "two", NOW + 1);
    let commit = alice.mail.drop_stale(3_000, NOW + 1);
    alice.keep(commit);
    let out = alice.outgoing(&mut bob.shelf, NOW + 1);
    assert_eq!(out.len(), 2, "the first as well, although a relay has it");
    for (_, _, env) in &out {
        bob.arrives(env, NOW + 2);
    }
    bob.open_all(NOW + 2);
    assert_eq!(bob.texts(), ["one", "two"]);
    bob.arrives(&early[0].2, NOW + 3);
    assert!(alice.mail.drop_stale(3_000, NOW + 1).is_empty(), "once");
}

#[test]
fn a_relay_that_takes_and_brings_no_receipt_is_not_waited_for_while_another_one_is_there() {
    let (mut alice, mut bob) = pair();
    let id = alice.say(bob.key(), "t", "hello", NOW);
    alice.outgoing(&mut bob.shelf, NOW);
    let peer = bob.key();
    let due_after = |alice: &mut Party, live, others| {
        let (commit, _) = alice.mail.answered(&peer, &id, CarrierAnswer::Accepted { live, others }, NOW);
        alice.keep(commit);
        alice.mail.records().outbox[&(peer, id)].next_at.expect("open") - NOW
    };
    assert_eq!(due_after(&mut alice, true, true), CUSTODY_PATIENCE_MS);
    assert_eq!(due_after(&mut alice, false, true), PATIENCE_MS, "the peer is not there, it says");
    assert_eq!(due_after(&mut alice, true, false), 30_000, "the schedule begins when every relay had it");
    alice.mail.handed(&peer, &id, false, NOW);
    assert_eq!(due_after(&mut alice, true, false), 30_000, "one more relay is no other attempt");
    alice.mail.handed(&peer, &id, true, NOW);
    assert_eq!(due_after(&mut alice, true, false), 120_000);
}

#[test]
fn strangers_share_an_allowance_of_new_sessions_and_nothing_of_them_is_dropped() {
    let mut bob = Party::new("bob");
    let mut carol = Party::new("carol");
    let mut envelopes = Vec::new();
    for n in 0..4 {
        carol.store.sessions.clear();
        carol.store.peers.clear();
        carol.restart();
        carol.say(bob.key(), &format!("t{n}"), "let me in", NOW + n);
        envelopes.push(carol.outgoing(&mut bob.shelf, NOW + n).pop().expect("sealed").2);
    }
    for env in &envelopes {
        bob.arrives(env, NOW + 10);
    }
    let mut waits = 0;
    while let Some(opened) = bob.mail.open_next(&|_| false, NOW + 10).expect("opens") {
        waits += usize::from(opened.outcome == Outcome::Unopened(Unopened::Limit));
        bob.keep(opened.commit);
    }
    assert_eq!((waits, bob.store.spool.len(), bob.store.inbox.len()), (2, 2, 2));
    while let Some(opened) = bob.mail.open_next(&|_| false, NOW + 3_700_000).expect("opens") {
        bob.keep(opened.commit);
    }
    assert_eq!((bob.store.spool.len(), bob.store.inbox.len()), (0, 4));
}
