//! Runs every fuzz body over its corpus and over mutations of it.

use std::collections::BTreeSet;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use instar_tests::fuzz::{BODIES, Body};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Mutated inputs per body; the seed is fixed, so a failure repeats.
const MUTATIONS: u64 = 4_000;
const LONGEST_INPUT: usize = 8 * 1024;

#[test]
fn every_body_has_a_corpus_and_every_corpus_a_body() {
    let folders = std::fs::read_dir(fuzz_dir().join("corpus")).expect("tests/fuzz/corpus");
    let folders: BTreeSet<String> =
        folders.map(|folder| folder.expect("a folder").file_name().to_string_lossy().into_owned()).collect();
    let bodies: BTreeSet<String> = BODIES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(folders, bodies, "folders of tests/fuzz/corpus against BODIES of tests/src/fuzz.rs");
    for name in bodies {
        assert!(!corpus(&name).is_empty(), "tests/fuzz/corpus/{name} holds no seed");
    }
}

#[test]
fn bodies_hold_on_corpus_and_mutations() {
    for (name, body) in BODIES {
        let seeds = corpus(name);
        for seed in &seeds {
            check(name, *body, seed);
        }
        for number in 0..MUTATIONS {
            let mut random = StdRng::seed_from_u64(number);
            check(name, *body, &mutated(&seeds, &mut random));
        }
    }
}

fn check(name: &str, body: Body, input: &[u8]) {
    if catch_unwind(|| body(input)).is_err() {
        let shown = String::from_utf8_lossy(&input[..input.len().min(2_000)]);
        panic!("fuzz body {name} failed on {} bytes: {shown:?}\nhex: {}", input.len(), hex::encode(input));
    }
}

/// A seed with a few changes of the kinds libFuzzer makes: flips, cuts, repeats, inserts, splices.
fn mutated(seeds: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
    let pick = |random: &mut StdRng| match seeds.len() {
        0 => Vec::new(),
        count => seeds[random.random_range(0..count)].clone(),
    };
    let mut input = pick(random);
    for _ in 0..random.random_range(1..=8) {
        let at = random.random_range(0..=input.len());
        match random.random_range(0..6) {
            0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            1 if at < input.len() => input[at] = random.random(),
            2 => input.truncate(at),
            3 => {
                let upto = random.random_range(at..=input.len());
                input.drain(at..upto);
            }
            4 => {
                let upto = random.random_range(at..=input.len().min(at + 64));
                let part = input[at..upto].to_vec();
                input.splice(at..at, part);
            }
            _ => {
                let other = pick(random);
                let from = random.random_range(0..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
        input.truncate(LONGEST_INPUT);
    }
    input
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(fuzz_dir().join("corpus").join(name)) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("a readable seed")).collect()
}

fn fuzz_dir() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz"))
}
