//! Sealed mail with a virtual clock: kills before and after commits, cut connections, relays that lose everything.

use std::time::Instant;

use instar_tests::sim::{SealedDefect, SealedStats, SealedViolation, run_sealed};

/// Kills of one run.
const KILLS: u64 = 200;

fn lose_nothing(seeds: std::ops::Range<u64>) {
    let started = Instant::now();
    for seed in seeds {
        let stats = run_sealed(seed, KILLS, SealedDefect::None)
            .unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        let SealedStats {
            messages,
            kills,
            kills_before_commit,
            cuts,
            moves,
            wiped,
            commits,
            envelopes,
            marked,
            took_ms,
        } = stats;
        println!(
            "seed {seed}, {:.1} s for {} s: {messages} messages, {kills} kills ({kills_before_commit} before a commit), \
             {cuts} cuts, {moves} moves, {wiped} full relays wiped, {commits} commits, {envelopes} envelopes, {marked} marked",
            started.elapsed().as_secs_f64(),
            took_ms / 1_000,
        );
        assert!(kills >= KILLS && messages >= 150 && kills_before_commit > 20, "{stats:?}");
    }
}

#[test]
fn two_hundred_kills_lose_double_and_reorder_nothing() {
    lose_nothing(0..1);
}

#[test]
#[ignore = "section simulation"]
fn two_thousand_kills_lose_double_and_reorder_nothing() {
    lose_nothing(1..11);
}

fn violation(defect: SealedDefect) -> SealedViolation {
    (0..20).find_map(|seed| run_sealed(seed, KILLS, defect).err()).expect("nothing noticed it")
}

#[test]
fn a_ratchet_that_is_not_stored_before_its_bytes_leave_is_seen() {
    let seen = violation(SealedDefect::SessionNotStored);
    assert!(matches!(seen, SealedViolation::KeyReused(_)), "{seen}");
}

#[test]
fn a_node_that_forgets_what_it_opened_is_seen() {
    let seen = violation(SealedDefect::SeenForgotten);
    assert!(matches!(seen, SealedViolation::Twice(_)), "{seen}");
}

#[test]
fn a_relay_word_taken_for_delivery_is_seen() {
    let seen = violation(SealedDefect::AcceptedIsEnough);
    assert!(matches!(seen, SealedViolation::Lost(_)), "{seen}");
}
