//! The last good answers of routes that say `when_open = "stale"`: given again while the breaker is open, to the one who
//! had it before and to nobody else.
//!
//! Only a 200 to a GET is kept, one that its service lets be kept (`Cache-Control`, RFC 9111) and that depends on nothing but
//! who asks for what in which encoding (`Vary`). How much is kept has a bound.

use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, VARY};
use parking_lot::Mutex;
use pingora_http::{RequestHeader, ResponseHeader};
use policy::authenticate::Subject;
use policy::routes::Route;
use policy::time::Timestamp;

use crate::cache::Cache;

/// Answers that are kept, each of at most so many bytes: together at most 64 MiB.
const MOST: usize = 1_024;
const LARGEST: usize = 64 * 1024;

/// An answer is given again for so long.
const OLDEST: Duration = Duration::from_hours(24);

/// What forbids that an answer is kept, or given again without asking.
const FORBIDDING: [&str; 4] = ["no-store", "no-cache", "must-revalidate", "proxy-revalidate"];

/// What an answer may vary by: it is part of the key.
const VARYING: [&str; 3] = ["accept", "accept-encoding", "origin"];

/// An answer that was good.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its status and fields, as the client got them.
    pub header: Arc<ResponseHeader>,
    /// Its body.
    pub body: Bytes,
    /// When it was given.
    pub at: Timestamp,
}

/// The last good answers.
pub struct LastGood {
    cache: Mutex<Cache<Kept>>,
    hasher: RandomState,
}

impl Default for LastGood {
    fn default() -> Self {
        Self { cache: Mutex::new(Cache::new(MOST, MOST * LARGEST)), hasher: RandomState::new() }
    }
}

/// An answer that is on its way to a client and may be worth keeping.
pub struct Keeping {
    key: Vec<u8>,
    header: Arc<ResponseHeader>,
    body: BytesMut,
    at: Timestamp,
}

impl Keeping {
    /// Begins to keep an answer, if it may be.
    pub fn begin(key: Vec<u8>, header: &ResponseHeader, at: Timestamp) -> Option<Self> {
        let may = header.status == http::StatusCode::OK && may_be_kept(&header.headers);
        may.then(|| Self { key, header: Arc::new(header.clone()), body: BytesMut::new(), at })
    }

    /// Takes in a piece of the body; `false` when it is too large to be kept.
    pub fn take_in(&mut self, piece: &[u8]) -> bool {
        self.body.extend_from_slice(piece);
        self.body.len() <= LARGEST
    }
}

fn may_be_kept(headers: &HeaderMap) -> bool {
    let words = |name| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values
            .flat_map(|value| value.split(','))
            .map(|word| word.trim().to_ascii_lowercase())
            .collect::<Vec<_>>()
    };
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    length.is_none_or(|length| length <= LARGEST)
        && !headers.contains_key("set-cookie")
        && !words(CACHE_CONTROL).iter().any(|word| FORBIDDING.contains(&word.as_str()))
        && words(VARY).iter().all(|word| VARYING.contains(&word.as_str()))
}

/// Who asks for what: nobody is given another's answer.
pub fn key(route: &Route, subject: &Subject, target: &str, request: &RequestHeader) -> Vec<u8> {
    let mut key = Vec::new();
    let mut push = |part: &[u8]| {
        key.extend_from_slice(&(part.len() as u64).to_le_bytes());
        key.extend_from_slice(part);
    };
    push(route.name.as_bytes());
    push(if subject.id().is_some() { b"known" } else { b"anybody" });
    for part in [subject.id(), subject.key(), Some(target)] {
        push(part.unwrap_or_default().as_bytes());
    }
    push(request.headers.get("host").map_or(b"", |host| host.as_bytes()));
    for name in VARYING {
        push(request.headers.get(name).map_or(b"", |value| value.as_bytes()));
    }
    key
}

impl LastGood {
    /// Keeps an answer that has arrived whole.
    pub fn keep(&self, keeping: Keeping) {
        let Keeping { key, header, body, at } = keeping;
        let hash = self.hasher.hash_one(&key);
        let heap = body.capacity();
        self.cache.lock().insert(hash, &key, Kept { header, body: body.freeze(), at }, heap);
    }

    /// The last good answer.
    pub fn find(&self, key: &[u8], now: Timestamp) -> Option<Kept> {
        let mut cache = self.cache.lock();
        let kept = cache.get(self.hasher.hash_one(key), key)?;
        (now.since(kept.at) < OLDEST).then(|| kept.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(fields: &[(&'static str, &'static str)]) -> bool {
        let mut header = ResponseHeader::build(200, None).unwrap();
        for (name, value) in fields {
            header.append_header(*name, *value).unwrap();
        }
        may_be_kept(&header.headers)
    }

    #[test]
    fn what_a_service_does_not_let_be_kept_is_not() {
        assert!(may(&[]) && may(&[("cache-control", "private, max-age=60"), ("vary", "Accept-Encoding")]));
        for word in FORBIDDING {
            assert!(!may(&[("cache-control", "max-age=60"), ("cache-control", word)]), "{word}");
        }
        assert!(
            !may(&[("vary", "*")]) && !may(&[("vary", "accept, cookie")]) && !may(&[("set-cookie", "a=b")])
        );
        assert!(!may(&[("content-length", "1000000")]));
    }
}
