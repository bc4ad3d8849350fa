//! Inputs for fuzz targets: what is stored in `tests/corpus`, and mutations of it from a seed. A stable compiler has no
//! coverage to go by, so the corpus and the words of each target say what is interesting.
//!
//! `FUZZ_SECONDS` says for how long each target runs; without it a fixed number of inputs is tried. `FUZZ_SEED` repeats a
//! run. An input that fails is written to the corpus, where it is tried first from then on.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Inputs that are tried where no time is given.
const INPUTS: u32 = 2_000;

/// The longest input, in bytes.
const LONGEST: usize = 16 << 10;

/// No input may take longer: what does is a way to stop a service.
const PATIENCE: Duration = Duration::from_secs(5);

/// xorshift64*, by Marsaglia and Vigna: chance enough, and the same everywhere.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `end`; 0 when that is 0.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or_default() % end.max(1)
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let at = self.below(from.len());
        from.get(at)
    }
}

/// Runs `target` with the corpus of `name`, with `seeds`, and with mutations of both in which `words` are put.
///
/// # Panics
///
/// When the target does, or takes too long, with the file that repeats it.
pub fn fuzz(name: &str, seeds: &[&[u8]], words: &[&str], target: impl Fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus").join(name);
    let mut corpus = kept(&dir);
    corpus.extend(seeds.iter().map(|seed| seed.to_vec()));
    for input in &corpus {
        try_input(&dir, input, &target);
    }
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let chosen: u64 = seed.unwrap_or_else(|| match seconds {
        Some(_) => std::time::UNIX_EPOCH.elapsed().map_or(1, |since| u64::from(since.subsec_nanos())),
        None => 1,
    });
    let mut chance = Chance(chosen.max(1));
    let (begun, lasts, mut tried) = (Instant::now(), seconds.map(Duration::from_secs), 0);
    while lasts.map_or(tried < INPUTS, |lasts| begun.elapsed() < lasts) {
        let input = mutated(&corpus, words, &mut chance);
        try_input(&dir, &input, &target);
        tried += 1;
    }
    println!("{name}: {tried} inputs, FUZZ_SEED={chosen}");
}

/// The inputs in `dir`, in the order of their names.
fn kept(dir: &Path) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    files.iter().filter_map(|file| std::fs::read(file).ok()).collect()
}

fn try_input(dir: &Path, input: &[u8], target: &impl Fn(&[u8])) {
    let begun = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
    let took = begun.elapsed();
    if outcome.is_ok() && took < PATIENCE {
        return;
    }
    let digest = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3) // FNV-1a
    });
    let file = dir.join(format!("found-{digest:016x}"));
    let written = std::fs::create_dir_all(dir).and_then(|()| std::fs::write(&file, input));
    eprintln!("the input is in {} ({written:?}); it took {took:?}", file.display());
    match outcome {
        Err(panic) => resume_unwind(panic),
        Ok(()) => panic!("an input takes {took:?}"),
    }
}

/// One of the corpus with one to eight changes.
fn mutated(corpus: &[Vec<u8>], words: &[&str], chance: &mut Chance) -> Vec<u8> {
    let mut input = chance.pick(corpus).cloned().unwrap_or_default();
    for _ in 0..=chance.below(8) {
        change(&mut input, corpus, words, chance);
    }
    input.truncate(LONGEST);
    input
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&str], chance: &mut Chance) {
    let at = chance.below(input.len() + 1);
    let end = (at + chance.below(16)).min(input.len());
    match chance.below(9) {
        0 => drop(input.drain(at..end)),
        1 => drop(input.splice(at..at, std::iter::once(chance.next().to_le_bytes()[0]))),
        2 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (chance.next() % 8)),
        3 => input
            .iter_mut()
            .skip(at)
            .take(1)
            .for_each(|byte| *byte = [0, 1, 0x7f, 0x80, 0xff][chance.below(5)]),
        4 => {
            let word = chance.pick(words).copied().unwrap_or_default();
            drop(input.splice(at..at, word.bytes()));
        }
        5 => {
            let word = chance.pick(words).copied().unwrap_or_default();
            drop(input.splice(at..end, word.bytes()));
        }
        6 => {
            let piece = input.get(at..end).unwrap_or_default().repeat(1 + chance.below(64));
            drop(input.splice(at..at, piece));
        }
        7 => {
            let other = chance.pick(corpus).cloned().unwrap_or_default();
            let from = chance.below(other.len() + 1);
            input.truncate(at);
            input.extend(other.get(from..).unwrap_or_default());
        }
        _ => {
            let number = ["0", "-1", "1e308", "18446744073709551616", "9223372036854775807", "4294967296"];
            drop(input.splice(at..end, number[chance.below(number.len())].bytes()));
        }
    }
}
