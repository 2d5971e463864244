//! Blobs pass through the relay, as far as their recipient wants them to.

use std::time::{Duration, Instant};

use threadline::v2::blob::{BlobDesk, BlobStep, MAX_RELAYED, seal};
use threadline::v2::frames::{BlobData, BlobGo, BlobOpen, Frame};
use threadline::v2::{Bin, Blob, Code};

use super::client::PATIENCE;
use super::stores::{House, On, on_every_store};
use super::v2::{Session, key};

fn open_frame(rid: u32, id: Bin<32>, to: u8, size: u64) -> BlobOpen {
    BlobOpen { rid: Some(rid), id, to: key(to), size }
}

async fn fault(session: &mut Session) -> (Option<u32>, Code) {
    session
        .expect(|frame| if let Frame::Fault(fault) = frame { Some((fault.rid, fault.code)) } else { None })
        .await
}

fn is_blob(frame: &Frame) -> bool {
    matches!(frame, Frame::BlobOpen(_) | Frame::BlobGo(_) | Frame::BlobData(_) | Frame::BlobEnd(_))
}

/// A blob on its way from one node to another, each with its session.
pub(crate) struct Passage {
    sends: BlobDesk,
    takes: BlobDesk,
    from: u8,
    to: u8,
    id: Bin<32>,
    bytes: Vec<u8>,
    request: u32,
}

impl Passage {
    pub(crate) fn new(from: u8, to: u8, length: u32) -> Self {
        let plain: Vec<u8> = (0..length).map(|n| n as u8).collect();
        let (id, bytes) = seal(&Bin([5; 32]), &plain);
        let (sends, takes) = (BlobDesk::default(), BlobDesk::default());
        Self { sends, takes, from, to, id, bytes, request: 0 }
    }

    /// The recipient wants it, and the sender asks its relay; again, where a session was lost.
    pub(crate) async fn begin(&mut self, sender: &mut Session, recipient: &mut Session) {
        self.sends.lost(0);
        self.takes.lost(0);
        self.takes.want(key(self.from), self.id, self.bytes.len() as u64, 0);
        self.sends.offer(key(self.to), self.id, self.bytes.clone(), 0);
        let begun = Instant::now();
        loop {
            self.request += 1;
            self.sends.asked(0, self.request, &self.id);
            sender.say(open_frame(self.request, self.id, self.to, self.bytes.len() as u64)).await;
            let id = self.id;
            let opened = recipient.expect(move |frame| match frame {
                Frame::BlobOpen(open) if open.id == id => Some(open),
                _ => None,
            });
            // Whoever is led to a relay that is gone asks again.
            if let Ok(open) = tokio::time::timeout(Duration::from_secs(1), opened).await {
                return self.give(sender, recipient, open.into()).await;
            }
            assert!(begun.elapsed() < PATIENCE, "nobody leads to the recipient");
        }
    }

    /// What the recipient's node says to a frame, and the sender's to that.
    async fn give(&mut self, sender: &mut Session, recipient: &mut Session, frame: Frame) {
        for step in self.takes.handle(0, frame, 0) {
            let BlobStep::Say(_, frame) = step else { panic!("{step:?}") };
            recipient.say(*frame).await;
            let go = sender.expect(|frame| matches!(frame, Frame::BlobGo(_)).then_some(frame)).await;
            for step in self.sends.handle(0, go, 0) {
                let BlobStep::Say(_, frame) = step else { panic!("{step:?}") };
                sender.say(*frame).await;
            }
        }
    }

    /// Passes on so many frames, or all of it.
    pub(crate) async fn pass(&mut self, sender: &mut Session, recipient: &mut Session, most: usize) -> bool {
        for _ in 0..most {
            let frame = recipient.expect(|frame| is_blob(&frame).then_some(frame)).await;
            if matches!(frame, Frame::BlobEnd(_)) {
                let steps = self.takes.handle(0, frame, 0);
                let [BlobStep::Arrived(_, bytes)] = &steps[..] else { panic!("{steps:?}") };
                assert!(*bytes == self.bytes, "it is another one");
                return true;
            }
            self.give(sender, recipient, frame).await;
        }
        false
    }
}

async fn a_blob_arrives_whole_and_is_counted(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let (mut alice, mut bob) = (Session::log_in(relay.at, 1).await, Session::log_in(relay.at, 2).await);
    let mut passage = Passage::new(1, 2, 3_000_000);
    passage.begin(&mut alice, &mut bob).await;
    assert!(passage.pass(&mut alice, &mut bob, usize::MAX).await);
    let metrics = reqwest::get(format!("http://{}/health", relay.at)).await.expect("answers");
    assert!(metrics.status().is_success());
}

async fn no_more_passes_than_the_recipient_wants(on: On) {
    let house = House::on(on);
    let relay = house.relay_with(&["limits.blob_mib_per_hour=40"]);
    let (mut alice, mut bob) = (Session::log_in(relay.at, 1).await, Session::log_in(relay.at, 2).await);
    let id = |n: u8| Bin([n; 32]);
    alice.say(open_frame(1, id(1), 2, MAX_RELAYED + 1)).await;
    assert_eq!(fault(&mut alice).await, (Some(1), Code::TooLarge));
    alice.say(open_frame(2, id(2), 1, 10)).await;
    assert_eq!(fault(&mut alice).await, (Some(2), Code::BadRequest), "to oneself");
    alice.say(open_frame(3, id(3), 9, 10)).await;
    assert!(alice.rest().await.is_empty(), "who is not there is not told");

    alice.say(open_frame(4, id(4), 2, 100)).await;
    let asked = bob.expect(|frame| if let Frame::BlobOpen(open) = frame { Some(open) } else { None }).await;
    assert_eq!((asked.id, asked.rid, asked.size), (id(4), None, 100));
    alice.say(BlobData { id: id(4), bytes: Blob(vec![1; 10]) }).await;
    assert_eq!(fault(&mut alice).await, (Some(4), Code::BadRequest), "nobody said go");
    alice.say(open_frame(5, id(5), 2, 100)).await;
    alice.rest().await;
    bob.say(BlobGo { id: id(5), upto: 1_000 }).await;
    let upto = alice.expect(|frame| if let Frame::BlobGo(go) = frame { Some(go.upto) } else { None }).await;
    assert_eq!(upto, 100);
    alice.say(BlobData { id: id(5), bytes: Blob(vec![1; 100]) }).await;
    let piece =
        bob.expect(|frame| if let Frame::BlobData(data) = frame { Some(data.bytes.0) } else { None }).await;
    assert_eq!(piece, [1; 100]);
    alice.say(BlobData { id: id(5), bytes: Blob(vec![1]) }).await;
    assert_eq!(fault(&mut alice).await, (Some(5), Code::BadRequest));
    // What was given up may come late: it reaches nobody and costs nothing.
    alice.say(BlobData { id: id(5), bytes: Blob(vec![1]) }).await;
    assert!(alice.rest().await.is_empty());

    for n in 6..10 {
        alice.say(open_frame(u32::from(n), id(n), 2, 100)).await;
    }
    alice.say(open_frame(10, id(10), 2, 100)).await;
    assert_eq!(fault(&mut alice).await, (Some(10), Code::Busy), "four at a time");
    let mut carol = Session::log_in(relay.at, 3).await;
    carol.say(open_frame(1, id(6), 2, 100)).await;
    assert_eq!(fault(&mut carol).await, (Some(1), Code::Busy), "it is another one's");
    carol.say(open_frame(2, id(20), 2, 30 << 20)).await;
    carol.say(open_frame(3, id(21), 2, 11 << 20)).await;
    assert_eq!(fault(&mut carol).await, (Some(3), Code::RateLimited));

    bob.rest().await;
    bob.say(BlobGo { id: id(7), upto: 50 }).await;
    alice.expect(|frame| if let Frame::BlobGo(go) = frame { Some(go) } else { None }).await;
    drop(bob);
    let mut again = Session::log_in(relay.at, 2).await;
    alice.say(BlobData { id: id(7), bytes: Blob(vec![1; 10]) }).await;
    assert_eq!(fault(&mut alice).await, (Some(7), Code::UnknownRecipient), "a session is not its successor");
    assert!(!again.rest().await.iter().any(is_blob));
}

on_every_store!(a_blob_arrives_whole_and_is_counted, no_more_passes_than_the_recipient_wants,);
