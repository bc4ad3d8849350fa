//! Tokens whose signatures were verified: they are not verified again while the same keys are in force.
//!
//! An entry says until when the token is valid. The policy checks that each time, and whether the token was revoked, so
//! this cache never makes a token live longer. When a key set changes, no earlier entry counts.

use ahash::RandomState;
use parking_lot::Mutex;
use policy::rules::authenticate::Subject;

use crate::collections::s3_fifo::Cache;

/// So many locks share the tokens.
const SHARDS: usize = 16;

/// The most cached tokens, and their bytes together with their subjects.
const MOST: usize = 16_384;
const MOST_BYTES: usize = 32 * 1024 * 1024;

/// The most bytes of a subject for each byte of its token. They are bounded because its id, its roles and its fields
/// are claims of the token.
const CLAIMS: usize = 3;

/// The cache of verified tokens.
pub struct VerifiedTokens {
    shards: Vec<Mutex<Cache<Remembered>>>,
    hasher: RandomState,
}

struct Remembered {
    subject: Subject,
    generation: u64,
}

impl Default for VerifiedTokens {
    fn default() -> Self {
        let shard = || Mutex::new(Cache::new(MOST / SHARDS, MOST_BYTES / SHARDS));
        Self { shards: std::iter::repeat_with(shard).take(SHARDS).collect(), hasher: RandomState::new() }
    }
}

impl VerifiedTokens {
    fn shard(&self, hash: u64) -> &Mutex<Cache<Remembered>> {
        let place = usize::try_from(hash >> 32).unwrap_or_default() % SHARDS;
        &self.shards[place]
    }

    /// The subject of a token that was verified with the keys of `generation`.
    pub fn find(&self, token: &str, generation: u64) -> Option<Subject> {
        let hash = self.hasher.hash_one(token);
        let mut shard = self.shard(hash).lock();
        let found = shard.get(hash, token.as_bytes())?;
        (found.generation == generation).then(|| found.subject.clone())
    }

    /// Stores a token that was verified with the keys of `generation`.
    pub fn keep(&self, token: &str, subject: &Subject, generation: u64) {
        let hash = self.hasher.hash_one(token);
        let remembered = Remembered { subject: subject.clone(), generation };
        let heap = token.len() * CLAIMS;
        self.shard(hash).lock().insert(hash, token.as_bytes(), remembered, heap);
    }
}
