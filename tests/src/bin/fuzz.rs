//! Checks what is to hold of bytes from outside, with any compiler: of seeds that are changed at
//! random, and of noise.
//!
//! Nothing guides the changes, so a fuzzer finds more in a day; this finds in half a minute what
//! breaks often. Panics with the input of which a property does not hold.

use clap::Parser;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::panic::{catch_unwind, resume_unwind};
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

#[expect(unreachable_pub, reason = "the fuzzer's targets are crates of their own")]
#[path = "../../../node/fuzz/src/lib.rs"]
mod properties;

/// Inputs of a property when no time is given; they take some tenths of a second.
const INPUTS: u64 = 2_000;
/// A seed is changed so often at most: more of it than not stays as it was.
const CHANGES_MAX: usize = 8;
/// Of so many inputs one is noise alone, of up to so many bytes: it seldom gets beyond the first.
const NOISE_EVERY: u64 = 16;
const NOISE_BYTES_MAX: usize = 64;
/// Bytes at which numbers and lengths turn.
const EDGES: [u8; 6] = [0x00, 0x01, 0x7f, 0x80, 0xfe, 0xff];

/// Panics where it does not hold of some bytes.
type Property = fn(&[u8]);

/// What is checked, by the name of its seeds.
const PROPERTIES: [(&str, Property); 4] = [
    ("scan", properties::scan::check),
    ("json", properties::json::check),
    ("frame", properties::frame::check),
    ("config", properties::config::check),
];

/// Checks what is fuzzed, of seeds that are changed at random and of noise.
#[derive(Parser)]
struct Arguments {
    /// Go on for so long in all, with inputs that are others each time; without it, the same few.
    #[arg(long)]
    seconds: Option<u64>,
}

fn main() {
    let share = |seconds| Duration::from_secs(seconds) / PROPERTIES.len() as u32;
    let time = Arguments::parse().seconds.map(share);
    let first = time.map_or(0, |_| RandomState::new().hash_one("first"));
    for (name, property) in PROPERTIES {
        let count = fuzz(name, property, time, first);
        say(&format!("{name} holds of {count} inputs"));
    }
}

#[expect(clippy::print_stdout, reason = "it is what the program is for")]
fn say(text: &str) {
    println!("{text}");
}

/// Checks a property; of how many inputs.
fn fuzz(name: &str, property: Property, time: Option<Duration>, first: u64) -> u64 {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/fuzz/seeds").join(name);
    let files = directory.read_dir().expect("there are seeds");
    let seeds = files.map(|file| std::fs::read(file.expect("it is listed").path()));
    let mut seeds: Vec<_> = seeds.map(|seed| seed.expect("it can be read")).collect();
    seeds.sort_unstable();
    let check = |input: &[u8]| {
        if let Err(panic) = catch_unwind(|| property(input)) {
            say(&format!("{name} does not hold of b\"{}\"", input.escape_ascii()));
            resume_unwind(panic);
        }
    };
    seeds.iter().for_each(|seed| check(seed));
    let begun = Instant::now();
    let mut count = 0;
    while time.map_or(count < INPUTS, |time| begun.elapsed() < time) {
        check(&input(&seeds, first.wrapping_add(count)));
        count += 1;
    }
    count
}

/// The input of a number.
fn input(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(number);
    if number.is_multiple_of(NOISE_EVERY) {
        return noise(&mut random, NOISE_BYTES_MAX);
    }
    let mut input = seeds.choose(&mut random).expect("there are seeds").clone();
    for _ in 0..random.random_range(1..=CHANGES_MAX) {
        change(&mut input, &mut random);
    }
    input
}

fn noise(random: &mut StdRng, bytes_max: usize) -> Vec<u8> {
    let mut bytes = vec![0; random.random_range(1..=bytes_max)];
    random.fill_bytes(&mut bytes);
    bytes
}

fn change(input: &mut Vec<u8>, random: &mut StdRng) {
    let Some(last) = input.len().checked_sub(1) else { return };
    let at = random.random_range(0..=last);
    match random.random_range(0..8) {
        0..=2 => input[at] ^= 1 << random.random_range(0..8),
        3 => input[at] = *EDGES.choose(random).expect("there are some"),
        4 => drop(input.splice(at..at, noise(random, 4))),
        5 => drop(input.drain(piece(at, input.len(), random))),
        6 => {
            let copy = input[piece(at, input.len(), random)].to_vec();
            let target = random.random_range(0..=last);
            input.splice(target..target, copy);
        }
        _ => input.truncate(at),
    }
}

/// A piece that begins at `at`.
fn piece(at: usize, length: usize, random: &mut StdRng) -> Range<usize> {
    at..random.random_range(at..=length.min(at + 32))
}
