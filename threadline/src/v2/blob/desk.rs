//! The two ends of a transfer. Who has the bytes offers them, who wants them says how far to go on: a relay passes on
//! no more than that, and whatever breaks off begins anew when it is wanted again.

use std::collections::BTreeMap;

use super::BlobPeer;
use crate::v2::frames::{BlobData, BlobEnd, BlobGo, BlobOpen, Frame};
use crate::v2::{Bin, Blob, Key, sha256};

/// Bytes in a frame.
pub const PIECE: usize = 32 << 10;
/// Bytes that may be under way: two transfers fit into what a relay keeps for a slow reader.
pub const WINDOW: u64 = 128 << 10;
/// Transfers of each direction at a time.
pub const MAX_AT_ONCE: usize = 4;
/// Transfers that are taken at a time.
const MAX_TAKEN: usize = 2;
/// A transfer that does not move for this long is over, ms.
pub const STALL_MS: u64 = 30_000;
/// Blobs that are wanted at a time; more are asked for again later.
const MAX_WANTED: usize = 64;
/// What nobody asked for again in this time is wanted no more, ms.
const FORGET_MS: u64 = 600_000;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobStep {
    /// Say this to a relay.
    Say(usize, Box<Frame>),
    /// All of a blob is here, and its hash is right.
    Arrived(BlobPeer, Vec<u8>),
    /// What a relay brought was not the blob; how often that was so by now.
    Damaged(BlobPeer, u32),
}

#[derive(Debug)]
struct Wanted {
    peer: Key,
    size: u64,
    bytes: Vec<u8>,
    /// Who brings it, and when it last moved.
    from: Option<(usize, u64)>,
    granted: u64,
    damaged: u32,
    /// When it was last asked for, Unix ms.
    asked_at: u64,
}

#[derive(Debug)]
struct Offered {
    peer: Key,
    bytes: Vec<u8>,
    /// Relays that were asked, with the number of the question.
    asked: BTreeMap<usize, u32>,
    /// The one that passes it on.
    over: Option<usize>,
    sent: usize,
    moved_at: u64,
}

/// The machine. Relays are numbered as the sessions with them.
#[derive(Debug, Default)]
pub struct BlobDesk {
    wanted: BTreeMap<Bin<32>, Wanted>,
    offered: BTreeMap<Bin<32>, Offered>,
}

impl BlobDesk {
    /// Takes this blob from now on. Whether it is worth asking for: not while it is on its way.
    pub fn want(&mut self, peer: Key, id: Bin<32>, size: u64, now_ms: u64) -> bool {
        if let Some(wanted) = self.wanted.get_mut(&id) {
            wanted.asked_at = now_ms;
            return !wanted.is_moving(now_ms);
        }
        self.wanted.retain(|_, wanted| now_ms < wanted.asked_at.saturating_add(FORGET_MS));
        if self.wanted.len() >= MAX_WANTED {
            return false;
        }
        let wanted =
            Wanted { peer, size, bytes: Vec::new(), from: None, granted: 0, damaged: 0, asked_at: now_ms };
        self.wanted.insert(id, wanted);
        true
    }

    /// Whether this blob is taken.
    pub fn wants(&self, id: &Bin<32>) -> bool {
        self.wanted.contains_key(id)
    }

    /// Does not take it any more. Whether it was wanted from this peer.
    pub fn forget(&mut self, peer: &Key, id: &Bin<32>) -> bool {
        let known = self.wanted.get(id).is_some_and(|wanted| wanted.peer == *peer);
        if known {
            self.wanted.remove(id);
        }
        known
    }

    /// Whether a blob could be offered now: also one that is offered, because who asks again does not get it.
    pub fn may_offer(&mut self, id: &Bin<32>, now_ms: u64) -> bool {
        self.offered.retain(|_, offered| now_ms < offered.moved_at.saturating_add(STALL_MS));
        self.offered.len() < MAX_AT_ONCE || self.offered.contains_key(id)
    }

    /// Takes back an offer that no relay was asked about.
    pub fn withdraw(&mut self, id: &Bin<32>) {
        if self.offered.get(id).is_some_and(|offered| offered.asked.is_empty()) {
            self.offered.remove(id);
        }
    }

    /// Offers a blob to a peer. Each relay that may lead to it is then asked: [`BlobDesk::question`], then
    /// [`BlobDesk::asked`].
    pub fn offer(&mut self, peer: Key, id: Bin<32>, bytes: Vec<u8>, now_ms: u64) {
        let asked = BTreeMap::new();
        let offered = Offered { peer, bytes, asked, over: None, sent: 0, moved_at: now_ms };
        self.offered.insert(id, offered);
    }

    /// What a relay is asked about a blob that is offered.
    pub fn question(&self, id: &Bin<32>) -> Option<BlobOpen> {
        let offered = self.offered.get(id)?;
        Some(BlobOpen { rid: None, id: *id, to: offered.peer, size: offered.bytes.len() as u64 })
    }

    /// A relay was asked under this number.
    pub fn asked(&mut self, relay: usize, request: u32, id: &Bin<32>) {
        if let Some(offered) = self.offered.get_mut(id) {
            offered.asked.insert(relay, request);
        }
    }

    /// A relay refused something under this number. What was refused, if it was a blob.
    pub fn refused(&mut self, relay: usize, request: u32) -> Option<BlobPeer> {
        let id = self.offered.iter().find(|(_, offered)| offered.asked.get(&relay) == Some(&request));
        let id = id.map(|(id, _)| *id)?;
        let offered = self.offered.get_mut(&id)?;
        offered.asked.remove(&relay);
        let peer = offered.peer;
        if offered.over == Some(relay) || offered.asked.is_empty() {
            self.offered.remove(&id);
        }
        Some((peer, id))
    }

    /// The session with a relay ended.
    pub fn lost(&mut self, relay: usize) {
        self.offered.retain(|_, offered| {
            offered.asked.remove(&relay);
            offered.over != Some(relay) && !offered.asked.is_empty()
        });
        for wanted in self.wanted.values_mut() {
            if wanted.from.is_some_and(|(from, _)| from == relay) {
                wanted.reset();
            }
        }
    }

    /// A frame about a blob came from a relay.
    pub fn handle(&mut self, relay: usize, frame: Frame, now_ms: u64) -> Vec<BlobStep> {
        match frame {
            Frame::BlobOpen(open) => self.opened(relay, &open, now_ms),
            Frame::BlobGo(go) => self.go_on(relay, &go, now_ms),
            Frame::BlobData(data) => self.piece(relay, &data, now_ms),
            Frame::BlobEnd(end) => self.ended(relay, &end),
            _ => Vec::new(),
        }
    }

    fn opened(&mut self, relay: usize, open: &BlobOpen, now_ms: u64) -> Vec<BlobStep> {
        let moving = self.wanted.iter().filter(|(id, w)| **id != open.id && w.is_moving(now_ms)).count();
        let Some(wanted) = self.wanted.get_mut(&open.id) else { return Vec::new() };
        let elsewhere = wanted.is_moving(now_ms) && wanted.from.is_some_and(|(from, _)| from != relay);
        if moving >= MAX_TAKEN || elsewhere || wanted.size != open.size {
            return Vec::new();
        }
        wanted.reset();
        wanted.from = Some((relay, now_ms));
        vec![wanted.grant(relay, open.id)]
    }

    fn go_on(&mut self, relay: usize, go: &BlobGo, now_ms: u64) -> Vec<BlobStep> {
        let Some(offered) = self.offered.get_mut(&go.id) else { return Vec::new() };
        if !offered.asked.contains_key(&relay) || offered.over.is_some_and(|over| over != relay) {
            return Vec::new();
        }
        offered.over = Some(relay);
        offered.moved_at = now_ms;
        let upto = usize::try_from(go.upto).unwrap_or(usize::MAX).min(offered.bytes.len());
        let mut steps: Vec<BlobStep> = offered
            .bytes
            .get(offered.sent..upto)
            .unwrap_or_default()
            .chunks(PIECE)
            .map(|piece| say(relay, BlobData { id: go.id, bytes: Blob(piece.to_vec()) }))
            .collect();
        offered.sent = offered.sent.max(upto);
        if offered.sent == offered.bytes.len() {
            self.offered.remove(&go.id);
            steps.push(say(relay, BlobEnd { hash: go.id }));
        }
        steps
    }

    fn piece(&mut self, relay: usize, data: &BlobData, now_ms: u64) -> Vec<BlobStep> {
        let Some(wanted) = self.wanted.get_mut(&data.id) else { return Vec::new() };
        if wanted.from.is_none_or(|(from, _)| from != relay) {
            return Vec::new();
        }
        let received = (wanted.bytes.len() + data.bytes.0.len()) as u64;
        if received > wanted.granted {
            wanted.reset();
            return Vec::new();
        }
        wanted.bytes.extend_from_slice(&data.bytes.0);
        wanted.from = Some((relay, now_ms));
        if wanted.granted < wanted.size && wanted.granted - received <= WINDOW / 2 {
            vec![wanted.grant(relay, data.id)]
        } else {
            Vec::new()
        }
    }

    fn ended(&mut self, relay: usize, end: &BlobEnd) -> Vec<BlobStep> {
        let Some(wanted) = self.wanted.get_mut(&end.hash) else { return Vec::new() };
        if wanted.from.is_none_or(|(from, _)| from != relay) {
            return Vec::new();
        }
        let whole = (wanted.peer, end.hash);
        if wanted.bytes.len() as u64 == wanted.size && sha256(&[&wanted.bytes]) == end.hash.0 {
            let bytes = std::mem::take(&mut wanted.bytes);
            self.wanted.remove(&end.hash);
            return vec![BlobStep::Arrived(whole, bytes)];
        }
        wanted.reset();
        wanted.damaged += 1;
        vec![BlobStep::Damaged(whole, wanted.damaged)]
    }
}

impl Wanted {
    fn is_moving(&self, now_ms: u64) -> bool {
        self.from.is_some_and(|(_, moved_at)| now_ms < moved_at.saturating_add(STALL_MS))
    }

    fn reset(&mut self) {
        (self.from, self.granted) = (None, 0);
        self.bytes = Vec::new();
    }

    fn grant(&mut self, relay: usize, id: Bin<32>) -> BlobStep {
        self.granted = (self.bytes.len() as u64).saturating_add(WINDOW).min(self.size);
        say(relay, BlobGo { id, upto: self.granted })
    }
}

fn say(relay: usize, frame: impl Into<Frame>) -> BlobStep {
    BlobStep::Say(relay, Box::new(frame.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v2::blob::seal_text;
    use proptest::prelude::*;

    const ALICE: Key = Bin([1; 32]);
    const BOB: Key = Bin([2; 32]);
    const NOW: u64 = 1_768_478_400_000;

    fn sealed(length: usize) -> (Bin<32>, Vec<u8>) {
        let (reference, bytes) = seal_text(Bin([9; 32]), &"x".repeat(length));
        (reference.id, bytes)
    }

    /// Both ends, and what is under way between them.
    struct Pair {
        alice: BlobDesk,
        bob: BlobDesk,
        to_alice: Vec<Frame>,
        to_bob: Vec<Frame>,
        under_way: u64,
    }

    impl Pair {
        fn of(length: usize) -> (Self, Bin<32>, Vec<u8>) {
            let (id, bytes) = sealed(length);
            let (mut alice, mut bob) = (BlobDesk::default(), BlobDesk::default());
            assert!(bob.want(ALICE, id, bytes.len() as u64, NOW));
            alice.offer(BOB, id, bytes.clone(), NOW);
            let open = alice.question(&id).expect("offered").into();
            alice.asked(0, 7, &id);
            (Self { alice, bob, to_alice: Vec::new(), to_bob: vec![open], under_way: 0 }, id, bytes)
        }

        /// Carries one frame; what came of it at bob.
        fn turn(&mut self) -> Option<BlobStep> {
            let mut news = None;
            if !self.to_bob.is_empty() {
                for step in self.bob.handle(0, self.to_bob.remove(0), NOW) {
                    match step {
                        BlobStep::Say(0, frame) => self.to_alice.push(*frame),
                        other => news = Some(other),
                    }
                }
            } else if !self.to_alice.is_empty() {
                for step in self.alice.handle(0, self.to_alice.remove(0), NOW) {
                    let BlobStep::Say(0, frame) = step else { panic!("{step:?}") };
                    self.to_bob.push(*frame);
                }
            }
            let size =
                |frame: &Frame| if let Frame::BlobData(d) = frame { d.bytes.0.len() as u64 } else { 0 };
            self.under_way = self.to_bob.iter().map(size).sum();
            news
        }

        fn is_idle(&self) -> bool {
            self.to_alice.is_empty() && self.to_bob.is_empty()
        }
    }

    #[test]
    fn a_stall_or_a_lost_relay_begins_anew() {
        let (mut pair, id, bytes) = Pair::of(300_000);
        for _ in 0..4 {
            assert_eq!(pair.turn(), None);
        }
        assert!(!pair.bob.want(ALICE, id, bytes.len() as u64, NOW), "it is on its way");
        assert!(pair.bob.want(ALICE, id, bytes.len() as u64, NOW + STALL_MS), "it stopped");
        pair.bob.lost(0);
        pair.alice.lost(0);
        assert!(pair.bob.want(ALICE, id, bytes.len() as u64, NOW));
        assert!(pair.alice.may_offer(&id, NOW));
        pair.alice.offer(BOB, id, bytes.clone(), NOW);
        pair.to_alice.clear();
        pair.to_bob = vec![pair.alice.question(&id).expect("offered").into()];
        pair.alice.asked(0, 8, &id);
        let news = std::iter::from_fn(|| (!pair.is_idle()).then(|| pair.turn())).flatten().next();
        assert_eq!(news, Some(BlobStep::Arrived((ALICE, id), bytes)));
    }

    #[test]
    fn damage_is_seen_and_what_nobody_wants_is_not_taken() {
        let (mut pair, id, _) = Pair::of(40_000);
        let _ = (pair.turn(), pair.turn());
        let Some(Frame::BlobData(data)) = pair.to_bob.first_mut() else { panic!("a piece") };
        data.bytes.0[7] ^= 1;
        let news = std::iter::from_fn(|| (!pair.is_idle()).then(|| pair.turn())).flatten().next();
        assert_eq!(news, Some(BlobStep::Damaged((ALICE, id), 1)));
        let stranger = BlobOpen { rid: None, id: Bin([5; 32]), to: BOB, size: 10 };
        assert!(pair.bob.handle(0, stranger.into(), NOW).is_empty());
        let larger = BlobOpen { rid: None, id, to: BOB, size: 1 << 30 };
        assert!(pair.bob.handle(0, larger.into(), NOW).is_empty());
        assert!(!pair.bob.forget(&BOB, &id) && pair.bob.forget(&ALICE, &id));
    }

    #[test]
    fn only_the_first_relay_that_answers_passes_a_blob_on() {
        let (id, bytes) = sealed(10);
        let mut alice = BlobDesk::default();
        alice.offer(BOB, id, bytes, NOW);
        alice.asked(0, 1, &id);
        alice.asked(1, 4, &id);
        assert_eq!(alice.refused(1, 4), Some((BOB, id)));
        assert!(alice.handle(1, BlobGo { id, upto: 9 }.into(), NOW).is_empty(), "it refused");
        assert_eq!(alice.handle(0, BlobGo { id, upto: 9 }.into(), NOW).len(), 1);
        assert_eq!(alice.handle(0, BlobGo { id, upto: u64::MAX }.into(), NOW).len(), 2);
        assert_eq!(alice.refused(0, 1), None, "all is said");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_blob_arrives_whole_and_little_of_it_is_under_way(length in 0_usize..600_000) {
            let (mut pair, id, bytes) = Pair::of(length);
            let mut arrived = None;
            while !pair.is_idle() {
                if let Some(news) = pair.turn() {
                    prop_assert!(arrived.replace(news).is_none());
                }
                prop_assert!(pair.under_way <= WINDOW);
            }
            prop_assert_eq!(arrived, Some(BlobStep::Arrived((ALICE, id), bytes)));
        }

        #[test]
        fn whatever_a_relay_says_nothing_breaks(
            said in proptest::collection::vec((0_usize..3, 0_u8..4, 0_u64..300_000), 0..60),
        ) {
            let (mut pair, id, bytes) = Pair::of(100_000);
            for (relay, what, number) in said {
                let frame: Frame = match what {
                    0 => BlobOpen { rid: None, id, to: BOB, size: bytes.len() as u64 }.into(),
                    1 => BlobGo { id, upto: number }.into(),
                    2 => BlobData { id, bytes: Blob(vec![0; number as usize]) }.into(),
                    _ => BlobEnd { hash: id }.into(),
                };
                for step in pair.bob.handle(relay, frame.clone(), NOW) {
                    prop_assert!(!matches!(step, BlobStep::Arrived(..)), "zeros are not the blob");
                }
                let _ = pair.alice.handle(relay, frame, NOW);
            }
        }
    }
}
