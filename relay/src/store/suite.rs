//! What every engine must do, run on the log and on a real NATS server.

use threadline::Fingerprint;

use super::queue::{Accept, Accepted, QueueAnswer, QueueFull, QueueOp, QueueRules, QueueTotals, Standing};
use super::{BodyCipher, Custody, JournalRules, Media, Memory, Peers, StoreFailed, peers};
use crate::cluster::rig::Keeper;
use crate::config::RelayConfig;

const NOW: i64 = 1_768_478_400_000;

pub(crate) trait Engine {
    fn new(rules: QueueRules) -> Self;
    fn apply(&mut self, ops: &[QueueOp]) -> Vec<Result<QueueAnswer, StoreFailed>>;
    /// The process ends and starts again, with other rules.
    fn restart(&mut self, rules: QueueRules);
    fn totals(&self) -> QueueTotals;
    fn tidy(&mut self);
}

struct Log(Option<Custody<Memory>>);

impl Log {
    fn open(media: Media<Memory>, peers: Peers, rules: QueueRules) -> Self {
        let log = JournalRules { sync: true, segment: 4 << 10, boot: [1; 16], accept_data_loss: false };
        let opened = Custody::open(media, log, peers, rules, BodyCipher::new(&[0; 32]), NOW);
        Self(Some(opened.expect("opens")))
    }

    fn custody(&mut self) -> &mut Custody<Memory> {
        self.0.as_mut().expect("open")
    }
}

impl Engine for Log {
    fn new(rules: QueueRules) -> Self {
        let connection = rusqlite::Connection::open_in_memory().expect("memory");
        connection.execute_batch(peers::MIGRATIONS[0].sql).expect("schema");
        Self::open(Media::default(), Peers::load(connection).expect("tables"), rules)
    }

    fn apply(&mut self, ops: &[QueueOp]) -> Vec<Result<QueueAnswer, StoreFailed>> {
        self.custody().apply(ops.iter())
    }

    fn restart(&mut self, rules: QueueRules) {
        let (media, peers) = self.0.take().expect("open").into_parts();
        *self = Self::open(media, peers, rules);
    }

    fn totals(&self) -> QueueTotals {
        self.0.as_ref().expect("open").totals()
    }

    fn tidy(&mut self) {
        while self.custody().tidy() {}
    }
}

impl Engine for Keeper {
    fn new(rules: QueueRules) -> Self {
        Self::new(rules)
    }

    fn apply(&mut self, ops: &[QueueOp]) -> Vec<Result<QueueAnswer, StoreFailed>> {
        self.apply(ops)
    }

    fn restart(&mut self, rules: QueueRules) {
        self.restart(rules);
    }

    fn totals(&self) -> QueueTotals {
        self.totals()
    }

    fn tidy(&mut self) {}
}

struct Bench<E> {
    engine: E,
    rules: QueueRules,
    seq: u64,
    /// Numbers of what was stored, in order.
    numbers: Vec<u64>,
}

fn addr(n: u8) -> Fingerprint {
    Fingerprint::from_bytes([n; 16])
}

impl<E: Engine> Bench<E> {
    fn new() -> Self {
        let rules = QueueRules { queue: RelayConfig::default().queue };
        Self { engine: E::new(rules.clone()), rules, seq: 0, numbers: Vec::new() }
    }

    fn restart(&mut self) {
        self.engine.restart(self.rules.clone());
    }

    fn run(&mut self, op: QueueOp) -> QueueAnswer {
        self.engine.apply(&[op]).remove(0).expect("stored")
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
        let QueueAnswer::Accepted(outcome) = self.run(op) else { panic!("accept") };
        if let Accepted::Stored { seq, .. } = outcome {
            self.numbers.push(seq);
        }
        outcome
    }

    fn send(&mut self, from: u8, to: u8, id: &str) -> Accepted {
        self.send_body(from, to, id, "{}")
    }

    fn receipt(&mut self, from: u8, to: u8, n: u8) -> Accepted {
        let QueueOp::Accept(message) = self.message(from, to, &format!("r{n}"), "{}") else {
            panic!("accept")
        };
        let op = QueueOp::Accept(Accept { control: true, ..message });
        let QueueAnswer::Accepted(outcome) = self.run(op) else { panic!("accept") };
        if let Accepted::Stored { seq, .. } = outcome {
            self.numbers.push(seq);
        }
        outcome
    }

    fn arrive(&mut self, who: u8) {
        self.run(QueueOp::Arrived { recipient: addr(who), siblings: Vec::new(), now_ms: NOW });
    }

    fn confirm(&mut self, to: u8, seqs: &[u64]) -> usize {
        let op = QueueOp::Confirm { recipient: addr(to), seqs: seqs.to_vec(), now_ms: NOW };
        let QueueAnswer::Confirmed(gone) = self.run(op) else { panic!("confirm") };
        gone.len()
    }

    /// Which of the stored messages are read, counted from 1.
    fn read(&mut self, to: u8, after: u64, limit: u32, bytes: u64) -> (Vec<usize>, bool) {
        let op = QueueOp::Backlog { recipient: addr(to), after, now_ms: NOW, limit, bytes };
        let QueueAnswer::Backlog { rows, more } = self.run(op) else { panic!("backlog") };
        let which = |seq| self.numbers.iter().position(|number| *number == seq).expect("stored") + 1;
        (rows.iter().map(|row| which(row.seq)).collect(), more)
    }
}

fn stored(outcome: Accepted) -> bool {
    matches!(outcome, Accepted::Stored { reply: false, .. })
}

fn a_repeat_gets_the_answer_it_had_and_other_bytes_are_refused<E: Engine>() {
    let mut bench = Bench::<E>::new();
    assert!(stored(bench.send(1, 2, "a")));
    let seq = bench.numbers[0];
    for _ in 0..2 {
        let queued = Accepted::Repeat(Standing::Queued { seq, expires_ms: NOW + 1000 });
        assert_eq!(bench.send(1, 2, "a"), queued);
        assert_eq!(bench.send_body(1, 2, "a", "{   }"), Accepted::Repeat(Standing::OtherBytes));
        bench.restart();
    }
    assert!(stored(bench.send(1, 3, "a")), "ids are per pair");
    assert_eq!(bench.confirm(2, &[seq, seq, seq + 1600]), 1);
    assert_eq!(bench.send_body(1, 2, "a", "{   }"), Accepted::Repeat(Standing::OtherBytes));
    for _ in 0..2 {
        assert_eq!(bench.send(1, 2, "a"), Accepted::Repeat(Standing::Delivered));
        bench.restart();
    }
}

fn a_stranger_has_ten_and_all_strangers_share_a_hundred<E: Engine>() {
    let mut bench = Bench::<E>::new();
    bench.arrive(200);
    for n in 0..10 {
        assert!(matches!(bench.send(1, 200, &format!("m{n}")), Accepted::Stored { .. }));
    }
    assert_eq!(bench.send(1, 200, "m10"), Accepted::Full(QueueFull::Recipient));
    for sender in 2..=10 {
        for n in 0..10 {
            assert!(matches!(bench.send(sender, 200, &format!("m{n}")), Accepted::Stored { .. }));
        }
    }
    let used_up = bench.send(11, 200, "m0");
    assert_eq!(used_up, Accepted::Full(QueueFull::Recipient), "strangers' share is used up");
    bench.arrive(50);
    assert!(stored(bench.send(200, 50, "hello")));
    bench.engine.tidy();
    bench.restart();
    for n in 0..100 {
        let outcome = bench.send(50, 200, &format!("m{n}"));
        assert!(matches!(outcome, Accepted::Stored { reply: true, .. }), "{n}: {outcome:?}");
    }
    assert_eq!(bench.send(50, 200, "m100"), Accepted::Full(QueueFull::Sender));
}

fn receipts_of_correspondents_have_room_of_their_own<E: Engine>() {
    let mut bench = Bench::<E>::new();
    (bench.rules.queue.per_pair, bench.rules.queue.per_recipient) = (5, 6);
    (bench.rules.queue.control, bench.rules.queue.control_each) = (7, 4);
    bench.restart();
    bench.arrive(2);
    // Who is named by the recipient is its correspondent, like those it wrote to.
    let siblings = vec![addr(3), addr(4)];
    bench.run(QueueOp::Arrived { recipient: addr(2), siblings, now_ms: NOW });
    assert!(matches!(bench.send(2, 1, "hello"), Accepted::Stored { .. }));
    for n in 0..5 {
        assert!(matches!(bench.send(1, 2, &format!("m{n}")), Accepted::Stored { reply: true, .. }));
    }
    assert_eq!(bench.send(1, 2, "m5"), Accepted::Full(QueueFull::Sender));
    assert!(matches!(bench.send(3, 2, "m"), Accepted::Stored { reply: true, .. }));
    assert_eq!(bench.send(4, 2, "m"), Accepted::Full(QueueFull::Recipient));
    for n in 0..4 {
        assert!(matches!(bench.receipt(1, 2, n), Accepted::Stored { reply: true, .. }), "{n}");
    }
    assert_eq!(bench.receipt(1, 2, 4), Accepted::Full(QueueFull::Sender));
    bench.engine.tidy();
    bench.restart();
    assert_eq!(bench.receipt(1, 2, 4), Accepted::Full(QueueFull::Sender), "also after a restart");
    for n in 0..3 {
        assert!(matches!(bench.receipt(3, 2, n), Accepted::Stored { .. }), "{n}");
    }
    assert_eq!(bench.receipt(4, 2, 0), Accepted::Full(QueueFull::Recipient));
    // Of a stranger the word counts for nothing.
    assert_eq!(bench.receipt(9, 2, 0), Accepted::Full(QueueFull::Recipient));
    // All of it comes in the order in which it was taken, and goes.
    let (read, more) = bench.read(2, 0, 99, 999);
    assert_eq!((read.len(), read.is_sorted(), more), (13, true, false));
    let numbers = bench.numbers.split_off(1);
    assert_eq!(bench.confirm(2, &numbers), 13);
    for n in 10..14 {
        assert!(matches!(bench.receipt(1, 2, n), Accepted::Stored { .. }), "room again: {n}");
        assert!(matches!(bench.send(1, 2, &format!("m{n}")), Accepted::Stored { .. }), "room again: {n}");
    }
}

fn a_recipient_never_seen_gets_twenty<E: Engine>() {
    let mut bench = Bench::<E>::new();
    for sender in 1..=2 {
        for n in 0..10 {
            assert!(matches!(bench.send(sender, 9, &format!("m{n}")), Accepted::Stored { .. }));
        }
    }
    assert_eq!(bench.send(3, 9, "m"), Accepted::Full(QueueFull::Recipient));
    bench.arrive(9);
    assert!(matches!(bench.send(3, 9, "m"), Accepted::Stored { .. }));
}

fn bytes_are_counted_and_given_back<E: Engine>() {
    let mut bench = Bench::<E>::new();
    bench.rules.queue.bytes_per_recipient = 10;
    bench.restart();
    assert!(matches!(bench.send_body(1, 2, "a", "123456"), Accepted::Stored { .. }));
    assert_eq!(bench.send_body(1, 2, "b", "12345"), Accepted::Full(QueueFull::Bytes));
    assert_eq!(bench.engine.totals().messages, 1);
    bench.restart();
    assert_eq!(bench.send_body(1, 2, "b", "12345"), Accepted::Full(QueueFull::Bytes));
    let seq = bench.numbers[0];
    assert_eq!(bench.confirm(2, &[seq]), 1);
    assert_eq!(bench.engine.totals(), QueueTotals::default());
    assert!(matches!(bench.send_body(1, 2, "b", "12345"), Accepted::Stored { .. }));
}

fn the_backlog_comes_in_order_and_in_portions<E: Engine>() {
    let mut bench = Bench::<E>::new();
    for n in 0..5 {
        bench.send(n, 9, "a");
        bench.send(n, 10, "b");
    }
    bench.numbers = bench.numbers.iter().copied().step_by(2).collect();
    let third = bench.numbers[2];
    assert_eq!(bench.read(9, 0, 3, 1000), (vec![1, 2, 3], true));
    assert_eq!(bench.read(9, third - 1, 1, 1000), (vec![3], true), "exactly behind a number");
    assert_eq!(bench.read(9, third, 3, 1000), (vec![4, 5], false));
    assert_eq!(bench.read(9, 0, 9, 1), (vec![1], true), "one message passes whatever its size");
}

fn expired_messages_are_reported_once<E: Engine>() {
    let mut bench = Bench::<E>::new();
    bench.send(1, 2, "a");
    bench.send(1, 2, "b");
    let mut sweep = |now_ms, limit| {
        let QueueAnswer::Expired(list) = bench.run(QueueOp::Expire { now_ms, limit }) else {
            panic!("expire")
        };
        list.len()
    };
    assert_eq!(sweep(NOW + 999, 10), 0);
    assert_eq!(sweep(NOW + 1000, 1), 1);
    assert_eq!(sweep(NOW + 1000, 10), 1);
    assert_eq!(sweep(NOW + 1000, 10), 0);
    assert_eq!(bench.engine.totals(), QueueTotals::default());
    bench.restart();
    assert_eq!(bench.engine.totals(), QueueTotals::default());
}

fn one_group_decides_in_order<E: Engine>() {
    let mut bench = Bench::<E>::new();
    bench.send(1, 2, "a");
    let seq = bench.numbers[0];
    let (again, next) = (bench.message(1, 2, "a", "{}"), bench.message(1, 2, "b", "{}"));
    let confirm = QueueOp::Confirm { recipient: addr(2), seqs: vec![seq], now_ms: NOW };
    let late = bench.message(1, 2, "a", "{}");
    let answers = bench.engine.apply(&[again, next, confirm, late]);
    let texts: Vec<String> = answers.iter().map(|answer| format!("{answer:?}")).collect();
    assert!(texts[0].contains("Queued {"), "{texts:?}");
    assert!(texts[1].contains("Stored {"), "{texts:?}");
    assert!(texts[2].contains("Departed"), "{texts:?}");
    assert!(texts[3].contains("Repeat(Delivered)"), "{texts:?}");
}

/// A purge takes everything of a sender up to a message, so none of it may be unconfirmed.
fn what_nobody_confirmed_stays<E: Engine>() {
    let mut bench = Bench::<E>::new();
    bench.arrive(2);
    for n in 0..9 {
        bench.send(1, 2, &format!("m{n}"));
    }
    let numbers = bench.numbers.clone();
    let all_but_the_third: Vec<u64> = numbers.iter().copied().filter(|seq| *seq != numbers[2]).collect();
    assert_eq!(bench.confirm(2, &all_but_the_third), 8);
    bench.restart();
    assert_eq!(bench.read(2, 0, 9, 999), (vec![3], false));
    assert_eq!(bench.confirm(2, &[numbers[2]]), 1);
    for n in 10..15 {
        bench.send(3, 2, &format!("m{n}"));
    }
    let numbers = bench.numbers.split_off(9);
    assert_eq!(bench.confirm(2, &numbers), 5, "all together");
    bench.restart();
    assert_eq!(bench.engine.totals().messages, 0);
}

macro_rules! on {
    ($module:ident, $engine:ty; $($test:ident),* $(,)?) => {
        mod $module {
            $(#[test]
            fn $test() {
                super::$test::<$engine>();
            })*
        }
    };
}

macro_rules! on_every_engine {
    ($($test:ident),* $(,)?) => {
        on!(log, super::Log; $($test),*);
        on!(nats, super::Keeper; $($test),*);
    };
}

on_every_engine!(
    a_repeat_gets_the_answer_it_had_and_other_bytes_are_refused,
    a_stranger_has_ten_and_all_strangers_share_a_hundred,
    receipts_of_correspondents_have_room_of_their_own,
    a_recipient_never_seen_gets_twenty,
    bytes_are_counted_and_given_back,
    the_backlog_comes_in_order_and_in_portions,
    expired_messages_are_reported_once,
    one_group_decides_in_order,
    what_nobody_confirmed_stays,
);
