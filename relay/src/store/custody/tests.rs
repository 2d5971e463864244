use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use rusqlite::Connection;

use super::*;
use crate::config::RelayConfig;
use crate::store::medium::{Media, Memory};
use crate::store::peers::MIGRATIONS;
use crate::store::queue::Depth;

const NOW: i64 = 1_768_478_400_000;

struct Bench {
    custody: Custody<Memory>,
    rules: QueueRules,
    seq: u64,
}

fn peers() -> Peers {
    let connection = Connection::open_in_memory().expect("memory");
    connection.execute_batch(MIGRATIONS[0].sql).expect("schema");
    Peers::load(connection).expect("tables")
}

fn log() -> JournalRules {
    JournalRules { sync: true, segment: 4 << 10, boot: [1; 16], accept_data_loss: false }
}

fn open(
    media: Media<Memory>,
    peers: Peers,
    rules: &QueueRules,
    log: JournalRules,
) -> Result<Custody<Memory>, JournalError> {
    Custody::open(media, log, peers, rules.clone(), BodyCipher::new(&[0; 32]), NOW)
}

fn addr(n: u8) -> Fingerprint {
    Fingerprint::from_bytes([n; 16])
}

impl Bench {
    fn new() -> Self {
        let rules = QueueRules { queue: RelayConfig::default().queue };
        let custody = open(Media::default(), peers(), &rules, log()).expect("opens");
        Self { custody, rules, seq: 0 }
    }

    fn generous() -> Self {
        let mut bench = Self::new();
        let queue = &mut bench.rules.queue;
        (queue.stranger_each, queue.strangers, queue.unknown_recipient) = (10_000, 10_000, 10_000);
        (queue.per_pair, queue.per_recipient) = (10_000, 10_000);
        bench.restart();
        bench
    }

    /// SIGKILL and a new start on the same bytes.
    fn restart(&mut self) {
        self.try_restart(log()).expect("opens again");
    }

    fn try_restart(&mut self, log: JournalRules) -> Result<(), JournalError> {
        let empty = open(Media::default(), peers(), &self.rules, log).expect("opens");
        let (media, peers) = std::mem::replace(&mut self.custody, empty).into_parts();
        self.custody = open(media, peers, &self.rules, log)?;
        Ok(())
    }

    fn run(&mut self, op: &QueueOp) -> QueueAnswer {
        self.try_run(op).expect("stored")
    }

    fn try_run(&mut self, op: &QueueOp) -> Result<QueueAnswer, StoreFailed> {
        self.custody.apply(std::iter::once(op)).remove(0)
    }

    fn message(&mut self, from: u8, to: u8, id: &str, body: &str) -> QueueOp {
        self.seq += 1;
        QueueOp::Accept(Accept {
            seq: self.seq,
            sender: addr(from),
            recipient: addr(to),
            id: id.parse().expect("id"),
            body: body.as_bytes().into(),
            now_ms: NOW,
            expires_ms: NOW + 1000,
            control: false,
        })
    }

    fn send_body(&mut self, from: u8, to: u8, id: &str, body: &str) -> Accepted {
        let op = self.message(from, to, id, body);
        let QueueAnswer::Accepted(outcome) = self.run(&op) else { panic!("accept") };
        outcome
    }

    fn send(&mut self, from: u8, to: u8, id: &str) -> Accepted {
        self.send_body(from, to, id, "{}")
    }

    fn arrive(&mut self, who: u8) {
        self.run(&QueueOp::Arrived { recipient: addr(who), siblings: Vec::new(), now_ms: NOW });
    }

    fn confirm(&mut self, to: u8, seqs: &[u64]) -> usize {
        let op = QueueOp::Confirm { recipient: addr(to), seqs: seqs.to_vec(), now_ms: NOW };
        let QueueAnswer::Confirmed(gone) = self.run(&op) else { panic!("confirm") };
        gone.len()
    }

    fn read(&mut self, to: u8, after: u64, limit: u32, bytes: u64) -> (Vec<(u64, String)>, bool) {
        let op = QueueOp::Backlog { recipient: addr(to), after, now_ms: NOW, limit, bytes };
        let QueueAnswer::Backlog { rows, more } = self.run(&op) else { panic!("backlog") };
        (rows.iter().map(|row| (row.seq, String::from_utf8_lossy(&row.body).into_owned())).collect(), more)
    }

    fn seqs(&mut self, to: u8) -> Vec<u64> {
        self.read(to, 0, 10_000, u64::MAX).0.into_iter().map(|(seq, _)| seq).collect()
    }

    fn tidy(&mut self) {
        while self.custody.tidy() {}
    }
}

fn stored(outcome: Accepted) -> bool {
    matches!(outcome, Accepted::Stored { reply: false, .. })
}

#[test]
fn a_confirmed_message_is_remembered_for_five_minutes_and_over_restarts() {
    let mut bench = Bench::new();
    assert!(stored(bench.send(1, 2, "a")));
    assert_eq!(bench.confirm(2, &[1, 1, 99]), 1);
    for _ in 0..2 {
        assert_eq!(bench.send(1, 2, "a"), Accepted::Repeat(Standing::Delivered));
        assert_eq!(bench.send_body(1, 2, "a", "{   }"), Accepted::Repeat(Standing::OtherBytes));
        bench.restart();
    }
    bench.run(&QueueOp::Expire { now_ms: NOW + RECENT_MS, limit: 10 });
    assert!(stored(bench.send(1, 2, "a")), "forgotten after five minutes");
}

#[test]
fn a_memory_is_written_once_more_when_its_segment_goes_and_forgotten_when_it_is_old() {
    let mut bench = Bench::generous();
    let body = format!("\"{}\"", "x".repeat(700));
    for n in 0..300u64 {
        bench.send_body(1, 2, &format!("m{n}"), &body);
        bench.confirm(2, &[n + 1]);
        bench.tidy();
    }
    let written = bench.custody.memories.bytes();
    assert!((300 * 20..300 * 60).contains(&written), "{written} bytes for 300 memories of 20");
    bench.restart();
    assert_eq!(bench.send_body(1, 2, "m0", &body), Accepted::Repeat(Standing::Delivered));
    bench.run(&QueueOp::Expire { now_ms: NOW + RECENT_MS, limit: 10 });
    assert!(bench.custody.memories.bytes() < 200, "{} bytes are left", bench.custody.memories.bytes());
    assert!(stored(bench.send_body(1, 2, "m0", &body)));
}

#[test]
fn space_is_freed_from_the_front_and_what_lives_there_moves_on() {
    let mut bench = Bench::generous();
    bench.send(7, 8, "stays");
    let body = format!("\"{}\"", "x".repeat(700));
    for n in 0..400u64 {
        bench.send_body(1, 2, &format!("m{n}"), &body);
        bench.confirm(2, &[n + 2]);
        bench.tidy();
    }
    let most = (SPARE_SEGMENTS + 4) * (4 << 10) + 8192;
    assert!(bench.custody.bytes() < most, "{} bytes for one message", bench.custody.bytes());
    for _ in 0..2 {
        assert_eq!(bench.read(8, 0, 9, 999).0, vec![(1, "{}".to_owned())]);
        assert_eq!(
            bench.send_body(1, 2, "m0", &body),
            Accepted::Repeat(Standing::Delivered),
            "still remembered"
        );
        bench.restart();
    }
    assert_eq!(bench.confirm(8, &[1]), 1);
    bench.restart();
    bench.tidy();
    assert!(bench.seqs(8).is_empty());
}

#[test]
fn a_full_disk_refuses_mail_and_still_lets_it_go() {
    let mut bench = Bench::generous();
    for n in 0..20 {
        bench.send_body(1, 2, &format!("m{n}"), &"x".repeat(500));
    }
    let used = bench.custody.journal.bytes();
    bench.custody.medium().room = Some(used + 400);
    let before = bench.custody.totals();
    let refused = bench.message(1, 2, "late", &"x".repeat(500));
    let confirm = QueueOp::Confirm { recipient: addr(2), seqs: vec![3], now_ms: NOW };
    let answers = bench.custody.apply([refused.clone(), confirm].iter());
    assert_eq!(answers[0].as_ref().err(), Some(&StoreFailed));
    assert!(matches!(&answers[1], Ok(QueueAnswer::Confirmed(gone)) if gone.len() == 1), "{answers:?}");
    assert_eq!(bench.custody.totals().messages, before.messages - 1);
    bench.custody.medium().room = None;
    assert!(matches!(bench.run(&refused), QueueAnswer::Accepted(Accepted::Stored { .. })));
    let expected = bench.seqs(2);
    assert_eq!(expected.len(), 20);
    bench.restart();
    assert_eq!(bench.seqs(2), expected);
}

#[test]
fn nothing_is_stored_when_nothing_can_be_written() {
    let mut bench = Bench::generous();
    bench.send(1, 2, "a");
    let used = bench.custody.journal.bytes();
    bench.custody.medium().room = Some(used);
    let late = bench.message(1, 2, "b", "{}");
    assert!(bench.try_run(&late).is_err());
    let confirm = QueueOp::Confirm { recipient: addr(2), seqs: vec![1], now_ms: NOW };
    assert!(bench.try_run(&confirm).is_err());
    assert_eq!(bench.seqs(2), vec![1], "a confirmation that is not stored changes nothing");
    bench.custody.medium().room = None;
    assert_eq!(bench.confirm(2, &[1]), 1);
}

#[test]
fn a_torn_end_is_taken_back_and_rot_stops_the_start() {
    let mut bench = Bench::generous();
    for n in 0..3 {
        bench.send(1, 2, &format!("m{n}"));
    }
    let head = bench.custody.journal.segments().back().expect("head").id;
    let bytes = bench.custody.medium().bytes(head).expect("segment");
    bytes.truncate(bytes.len() - 5);
    bench.restart();
    assert_eq!(bench.seqs(2), vec![1, 2], "the last write was never answered, or it would be whole");

    let bytes = bench.custody.medium().bytes(head).expect("segment");
    bytes[SEGMENT + 40] ^= 1;
    let refused = bench.try_restart(log()).expect_err("damaged");
    assert!(matches!(refused, JournalError::Damaged { .. }), "{refused}");
}

const SEGMENT: usize = crate::store::record::SEGMENT_HEADER;

#[test]
fn with_accepted_loss_the_good_batches_are_kept() {
    let mut bench = Bench::generous();
    for n in 0..3 {
        bench.send(1, 2, &format!("m{n}"));
    }
    let head = bench.custody.journal.segments().back().expect("head").id;
    bench.custody.medium().bytes(head).expect("segment")[SEGMENT + 40] ^= 1;
    let lossy = JournalRules { accept_data_loss: true, ..log() };
    bench.try_restart(lossy).expect("starts");
    assert_eq!(bench.seqs(2), vec![2, 3]);
    bench.restart();
    assert_eq!(bench.seqs(2), vec![2, 3], "it is repaired");
}

#[test]
fn a_power_cut_without_sync_loses_the_unsynced_and_no_more() {
    let mut bench = Bench::generous();
    let process = JournalRules { sync: false, ..log() };
    bench.try_restart(process).expect("opens");
    for n in 0..3 {
        bench.send(1, 2, &format!("m{n}"));
    }
    let head = bench.custody.journal.segments().back().expect("head").id;
    bench.custody.medium().bytes(head).expect("segment")[SEGMENT + 40..SEGMENT + 60].fill(0);
    assert!(bench.try_restart(process).is_err(), "without a power cut it is damage");
}

#[test]
fn after_a_power_cut_in_process_mode_the_relay_starts() {
    let mut bench = Bench::generous();
    let process = JournalRules { sync: false, ..log() };
    bench.try_restart(process).expect("opens");
    for n in 0..3 {
        bench.send(1, 2, &format!("m{n}"));
    }
    let head = bench.custody.journal.segments().back().expect("head").id;
    bench.custody.medium().bytes(head).expect("segment")[SEGMENT + 40..SEGMENT + 60].fill(0);
    bench.try_restart(JournalRules { boot: [2; 16], ..process }).expect("starts");
    assert_eq!(bench.seqs(2), vec![2, 3]);
}

#[test]
fn a_missing_segment_is_noticed() {
    let mut bench = Bench::generous();
    for n in 0..40 {
        bench.send_body(1, 2, &format!("m{n}"), &"x".repeat(500));
    }
    let ids: Vec<u32> = bench.custody.journal.segments().iter().map(|segment| segment.id).collect();
    assert!(ids.len() > 3);
    bench.custody.medium().remove(ids[2]).expect("removes");
    assert!(matches!(bench.try_restart(log()), Err(JournalError::Damaged { .. })));
}

#[test]
fn in_process_mode_too_a_segment_may_only_be_missing_after_a_power_cut() {
    let mut bench = Bench::generous();
    let process = JournalRules { sync: false, ..log() };
    bench.try_restart(process).expect("opens");
    for n in 0..40 {
        bench.send_body(1, 2, &format!("m{n}"), &"x".repeat(500));
    }
    let ids: Vec<u32> = bench.custody.journal.segments().iter().map(|segment| segment.id).collect();
    bench.custody.medium().remove(ids[ids.len() - 2]).expect("removes");
    assert!(matches!(bench.try_restart(process), Err(JournalError::Damaged { .. })), "no power cut");
}

#[test]
fn a_segment_that_a_power_cut_took_in_process_mode_does_not_stop_the_start() {
    let mut bench = Bench::generous();
    let process = JournalRules { sync: false, ..log() };
    bench.try_restart(process).expect("opens");
    for n in 0..40 {
        bench.send_body(1, 2, &format!("m{n}"), &"x".repeat(500));
    }
    let ids: Vec<u32> = bench.custody.journal.segments().iter().map(|segment| segment.id).collect();
    bench.custody.medium().remove(ids[ids.len() - 2]).expect("removes");
    bench.try_restart(JournalRules { boot: [2; 16], ..process }).expect("starts");
    assert!(bench.seqs(2).len() < 40);
}

#[test]
fn mail_of_the_first_version_moves_into_the_log() {
    let mut bench = Bench::generous();
    let cipher = BodyCipher::new(&[0; 32]);
    let mut sealed = 41_u64.to_be_bytes().to_vec();
    cipher.seal(0, b"{\"old\":1}", &mut sealed);
    let insert = "INSERT INTO msg(seq, rcpt, sender, id, body, size, stranger, stored_at, expires_at, hash)
                  VALUES (41, ?1, ?2, 'old', ?3, 9, 1, ?4, ?5, ?6)";
    let (to, from) = (addr(2), addr(1));
    let values = rusqlite::params![to.as_bytes(), from.as_bytes(), &sealed[8..], NOW, NOW + 1000, [9_u8; 32]];
    bench.custody.peers.connection().execute(insert, values).expect("row");
    assert_eq!(bench.custody.import().expect("imports"), 1);
    assert_eq!(bench.custody.import().expect("imports"), 0);
    assert_eq!(bench.custody.last_seq(), 41);
    bench.restart();
    assert_eq!(bench.read(2, 0, 9, 999).0, vec![(41, "{\"old\":1}".to_owned())]);
}

#[derive(Debug, Clone)]
enum Step {
    Send { from: u8, to: u8, id: u8, size: usize },
    Confirm { to: u8, which: usize },
    Kill { torn: usize },
    Full(bool),
    Tidy,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..3, 3u8..6, any::<u8>(), 2usize..900).prop_map(|(from, to, id, size)| Step::Send { from, to, id, size }),
        4 => (3u8..6, any::<usize>()).prop_map(|(to, which)| Step::Confirm { to, which }),
        1 => (1usize..200).prop_map(|torn| Step::Kill { torn }),
        1 => any::<bool>().prop_map(Step::Full),
        2 => Just(Step::Tidy),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Against a map: whatever was accepted is there, in order, until it was confirmed; kills lose and double nothing.
    #[test]
    fn the_log_keeps_what_a_map_keeps(steps in proptest::collection::vec(step(), 1..120)) {
        let mut bench = Bench::generous();
        let mut waiting: BTreeMap<u8, Vec<(u64, String)>> = BTreeMap::new();
        let mut accepted = HashSet::new();
        for step in steps {
            match step {
                Step::Send { from, to, id, size } => {
                    let body = "x".repeat(size);
                    let op = bench.message(from, to, &format!("m{id}"), &body);
                    match bench.try_run(&op) {
                        Ok(QueueAnswer::Accepted(Accepted::Stored { .. })) => {
                            prop_assert!(accepted.insert((from, to, id)), "taken twice");
                            waiting.entry(to).or_default().push((bench.seq, body));
                        }
                        Ok(QueueAnswer::Accepted(Accepted::Repeat(_))) => {
                            prop_assert!(accepted.contains(&(from, to, id)), "never seen");
                        }
                        Ok(other) => prop_assert!(false, "{other:?}"),
                        Err(StoreFailed) => prop_assert!(bench.custody.medium().room.is_some()),
                    }
                }
                Step::Confirm { to, which } => {
                    let list = waiting.entry(to).or_default();
                    if list.is_empty() { continue; }
                    let at = which % list.len();
                    let op = QueueOp::Confirm { recipient: addr(to), seqs: vec![list[at].0], now_ms: NOW };
                    match bench.try_run(&op) {
                        Ok(QueueAnswer::Confirmed(gone)) => {
                            prop_assert_eq!(gone.len(), 1);
                            list.remove(at);
                        }
                        other => prop_assert!(other.is_err() && bench.custody.medium().room.is_some()),
                    }
                }
                Step::Kill { torn } => {
                    // A write that was under way when the process died.
                    bench.custody.medium().room = None;
                    let head = bench.custody.journal.segments().back().expect("head").id;
                    let bytes = bench.custody.medium().bytes(head).expect("segment");
                    let mut half = vec![0; crate::store::record::BATCH_HEADER];
                    half.resize(200, 7);
                    crate::store::record::seal_batch(&mut half);
                    bytes.extend_from_slice(&half[..torn.min(199)]);
                    bench.restart();
                }
                Step::Full(full) => {
                    let used = bench.custody.journal.bytes();
                    bench.custody.medium().room = full.then_some(used + 600);
                }
                Step::Tidy => bench.tidy(),
            }
            for (to, list) in &waiting {
                prop_assert_eq!(&bench.read(*to, 0, 10_000, u64::MAX).0, list);
            }
            let count: usize = waiting.values().map(Vec::len).sum();
            prop_assert_eq!(bench.custody.totals().messages, count as u64);
        }
    }
}

#[test]
fn an_operator_sees_the_fullest_mailboxes_and_can_empty_one() {
    let mut bench = Bench::new();
    for (to, id, size) in [(2, "a", 10), (2, "b", 10), (3, "c", 100), (4, "d", 1)] {
        bench.arrive(to);
        bench.send_body(1, to, id, &"x".repeat(size));
    }
    let look = |bench: &mut Bench, of| match bench.run(&QueueOp::Look { most: 2, of }) {
        QueueAnswer::Look(look) => look,
        other => panic!("{other:?}"),
    };
    let seen = look(&mut bench, Some(addr(4)));
    assert_eq!(seen.oldest_ms, Some(NOW));
    assert_eq!(seen.by_messages[0], Depth { recipient: addr(2), messages: 2, bytes: 20 });
    let by_bytes: Vec<_> = seen.by_bytes.iter().map(|depth| depth.recipient).collect();
    assert_eq!(by_bytes, [addr(3), addr(2)]);
    assert_eq!(seen.of, Some(Depth { recipient: addr(4), messages: 1, bytes: 1 }));
    let op = QueueOp::Drop { recipient: addr(2), now_ms: NOW, limit: 10 };
    let QueueAnswer::Dropped(gone) = bench.run(&op) else { panic!("dropped") };
    assert_eq!(gone.iter().map(|gone| gone.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(look(&mut bench, Some(addr(2))).of.map(|depth| depth.messages), Some(0));
    assert!(matches!(bench.send(1, 2, "a"), Accepted::Stored { .. }), "what was dropped may come again");
}
