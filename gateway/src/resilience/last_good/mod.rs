//! The last good answers of routes that say `when_open = "stale"`. They are given again while the breaker is open, and
//! only to those for whom the service made them.
//!
//! RFC 9111, sections 3, 3.5 and 4, decides what is stored and who receives it. On a route with `auth`, an answer
//! belongs to the subject that asked. On a route without `auth`, the gateway does not know who asks. If such a request
//! identifies itself to the service by `Authorization` or a cookie, its answer is stored only if the service says that
//! it is for everybody.

mod directives;

use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use bytes::{Bytes, BytesMut};
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, COOKIE, RANGE, SET_COOKIE, VARY,
};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use parking_lot::Mutex;
use pingora_http::{RequestHeader, ResponseHeader};
use policy::routes::Route;
use policy::rules::authenticate::{KEY_FIELD, Subject};
use policy::values::time::Timestamp;
use sha2::{Digest as _, Sha256};

use directives::{Directives, age, freshness};

use crate::collections::s3_fifo::Cache;
use crate::http::fields;

/// The most stored answers, and their bytes together with their headers.
const MOST: usize = 1_024;
const MOST_BYTES: usize = 32 * 1024 * 1024;

/// The largest body and the largest header of one answer, in bytes.
const LARGEST: usize = 64 * 1024;
const LARGEST_HEADER: usize = 16 * 1024;

/// The memory of a header field besides its text, in bytes.
const FIELD: usize = 128;

/// The most fields that an answer may vary by, and the bytes of their names.
const MOST_VARYING: usize = 16;
const LONGEST_VARYING: usize = 512;

/// The longest time for which an answer is given again.
const OLDEST: Duration = Duration::from_hours(24);

/// Who asks for what, as a digest: nobody can make two requests with the same digest, and all digests have the same
/// length.
type Key = [u8; 32];

/// An answer that was good.
#[derive(Clone, Debug)]
pub struct CachedResponse {
    /// Its status and fields, without those that the gateway adds to every answer.
    pub header: Arc<ResponseHeader>,
    /// Its body.
    pub body: Bytes,
    at: Timestamp,
    /// How old it was when it arrived.
    born: Duration,
    reuse: Reuse,
}

impl CachedResponse {
    /// How old it is (RFC 9111, 4.2.3).
    pub fn age(&self, now: Timestamp) -> Duration {
        self.born + now.since(self.at)
    }
}

/// Who may be given an answer, and for how long.
#[derive(Clone, Copy, Debug)]
struct Reuse {
    /// Whether it may be given to requests with `Authorization`.
    authorized: bool,
    /// Whether it may be given to requests with a cookie.
    with_cookie: bool,
    /// The age up to which it may be given: the end of its freshness if the service forbids more, else our own bound.
    until: Duration,
}

/// What is stored under a key.
#[derive(Clone)]
enum Entry {
    /// The fields by which answers to this request vary, in lower case. Their values are in the keys of the answers.
    Varies(Arc<[String]>),
    Answer(CachedResponse),
}

/// The last good answers.
pub struct LastGood {
    cache: Mutex<Cache<Entry>>,
    hasher: RandomState,
}

impl Default for LastGood {
    fn default() -> Self {
        Self { cache: Mutex::new(Cache::new(MOST, MOST_BYTES)), hasher: RandomState::new() }
    }
}

/// The parts of a request that decide which stored answer it may receive.
#[derive(Clone, Copy)]
pub struct CacheLookup<'r> {
    /// The route.
    pub route: &'r Route,
    /// Who asks.
    pub subject: CacheSubject<'r>,
    /// Whether the client came over TLS.
    pub encrypted: bool,
    /// The normal path and the query.
    pub target: &'r str,
    /// Its header.
    pub header: &'r RequestHeader,
}

impl CacheLookup<'_> {
    /// Whether the request itself allows that its answer is stored, and that it receives a stored one.
    fn allows(&self) -> bool {
        let method = &self.header.method;
        let directives = Directives::read(&self.header.headers, CACHE_CONTROL);
        (method == Method::GET || method == Method::HEAD)
            && !self.header.headers.contains_key(RANGE)
            && !directives.has("no-store")
            && !directives.has("no-cache")
    }

    fn shows(&self, field: http::HeaderName) -> bool {
        self.header.headers.contains_key(field)
    }

    /// Whether the gateway knows who asks.
    fn is_known(&self) -> bool {
        self.subject.id.is_some()
    }

    /// The digest of everything in which requests for different things, or of different people, differ.
    fn key(&self, varying: &[String]) -> Key {
        let mut digest = Sha256::new();
        let mut push = |part: &[u8]| {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        };
        push(self.route.name.as_bytes());
        push(if self.encrypted { b"https" } else { b"http" });
        push(fields::host(self.header).unwrap_or_default().to_ascii_lowercase().as_bytes());
        push(self.target.as_bytes());
        self.push_who(&mut push);
        for name in varying {
            push(name.as_bytes());
            let values = self.header.headers.get_all(name.as_str());
            push(&(values.iter().count() as u64).to_le_bytes());
            values.iter().for_each(|value| push(value.as_bytes()));
        }
        digest.finalize().into()
    }

    /// Adds who asks: what the gateway knows, and what the service receives besides. Behind one API key there may be
    /// many people whom the service can distinguish.
    fn push_who(&self, push: &mut impl FnMut(&[u8])) {
        let CacheSubject { method, id, key } = self.subject;
        for part in [method, id, key] {
            push(part.unwrap_or_default().as_bytes());
        }
        let sent = [(COOKIE, self.is_known()), (AUTHORIZATION, key.is_some())];
        for (name, _) in sent.into_iter().filter(|(_, is_sent)| *is_sent) {
            self.header.headers.get_all(name).iter().for_each(|value| push(value.as_bytes()));
            push(b"");
        }
    }
}

/// Who asks, as far as the gateway knows. Two people differ in one of these.
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheSubject<'r> {
    /// How that was proved.
    pub method: Option<&'static str>,
    /// The subject.
    pub id: Option<&'r str>,
    /// Its API key.
    pub key: Option<&'r str>,
}

impl<'r> CacheSubject<'r> {
    /// A subject.
    pub fn of(subject: &'r Subject) -> Self {
        Self { method: subject.method(), id: subject.identity(), key: subject.key() }
    }
}

/// An answer that is being sent to a client and may be stored when it is complete.
pub struct PendingEntry {
    /// The key without the fields that the answer varies by; these fields; and the key with them.
    request: Key,
    varying: Vec<String>,
    key: Key,
    header: Arc<ResponseHeader>,
    body: BytesMut,
    at: Timestamp,
    reuse: Reuse,
}

impl PendingEntry {
    /// Begins to collect an answer, if it may be stored.
    pub fn begin(lookup: &CacheLookup<'_>, answer: &ResponseHeader, at: Timestamp) -> Option<Self> {
        if lookup.header.method != Method::GET || !lookup.allows() || answer.status != StatusCode::OK {
            return None;
        }
        let reuse = reuse_rule(lookup, &answer.headers)?;
        let varying = varying(&answer.headers)?;
        let length = answer.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let is_small = length.is_none_or(|length: usize| length <= LARGEST)
            && header_bytes(&answer.headers) <= LARGEST_HEADER;
        is_small.then(|| Self {
            request: lookup.key(&[]),
            key: lookup.key(&varying),
            varying,
            header: Arc::new(answer.clone()),
            body: BytesMut::new(),
            at,
            reuse,
        })
    }

    /// Adds a piece of the body; `false` when the body is too large to be stored.
    pub fn take_in(&mut self, piece: &[u8]) -> bool {
        let fits = self.body.len() + piece.len() <= LARGEST;
        if fits {
            self.body.extend_from_slice(piece);
        }
        fits
    }
}

/// Who may receive an answer; `None` when it may not be stored (RFC 9111, 3 and 3.5).
fn reuse_rule(lookup: &CacheLookup<'_>, answer: &HeaderMap) -> Option<Reuse> {
    let says = Directives::read(answer, CACHE_CONTROL);
    let is_another_s = says.has("private") && !lookup.is_known();
    let never = says.has("no-store") || says.has("no-cache") || is_another_s;
    if never || answer.contains_key(SET_COOKIE) || answer.contains_key(CONTENT_RANGE) {
        return None;
    }
    let ends_when_stale =
        ["must-revalidate", "proxy-revalidate", "s-maxage"].iter().any(|word| says.has(word));
    let with_cookie = lookup.is_known() || says.has("public");
    let authorized = with_cookie || says.has("must-revalidate") || says.has("s-maxage");
    let until = if ends_when_stale { freshness(&says).min(OLDEST) } else { OLDEST };
    let reuse = Reuse { authorized, with_cookie, until };
    (reuse.be_given_to(lookup) && age(answer) < until).then_some(reuse)
}

/// An API key identifies a client like `Authorization`; a service may accept it where the gateway requires nothing.
const API_KEY: HeaderName = HeaderName::from_static(KEY_FIELD);

impl Reuse {
    fn be_given_to(self, lookup: &CacheLookup<'_>) -> bool {
        let shows_a_proof = lookup.shows(AUTHORIZATION) || lookup.shows(API_KEY);
        (self.authorized || !shows_a_proof) && (self.with_cookie || !lookup.shows(COOKIE))
    }
}

/// The fields by which an answer varies, sorted; `None` when it varies by something outside the request (`*`), or by
/// too many fields.
fn varying(answer: &HeaderMap) -> Option<Vec<String>> {
    let says = Directives::read(answer, VARY);
    let mut names: Vec<String> = says.names().map(str::to_owned).collect();
    names.sort_unstable();
    names.dedup();
    let bytes: usize = names.iter().map(String::len).sum();
    let fine = !says.has("*") && names.len() <= MOST_VARYING && bytes <= LONGEST_VARYING;
    fine.then_some(names)
}

/// The memory of a header, in bytes.
fn header_bytes(fields: &HeaderMap) -> usize {
    fields.iter().map(|(name, value)| FIELD + name.as_str().len() + value.len()).sum()
}

impl LastGood {
    /// Stores a complete answer.
    pub fn store(&self, entry: PendingEntry) {
        let PendingEntry { request, varying, key, header, body, at, reuse } = entry;
        // Copied to its exact size, because the buffer has room for more.
        let body = Bytes::copy_from_slice(&body);
        let heap = size_of::<ResponseHeader>() + header_bytes(&header.headers) + body.len();
        let born = age(&header.headers);
        let mut cache = self.cache.lock();
        if !varying.is_empty() {
            let heap = varying.iter().map(|name| size_of::<String>() + name.len()).sum();
            let varies = Entry::Varies(varying.into());
            cache.insert(self.hasher.hash_one(request), &request, varies, heap);
        }
        let kept = Entry::Answer(CachedResponse { header, body, at, born, reuse });
        cache.insert(self.hasher.hash_one(key), &key, kept, heap);
    }

    /// The last good answer that fits a request.
    pub fn find(&self, lookup: &CacheLookup<'_>, now: Timestamp) -> Option<CachedResponse> {
        if !lookup.allows() {
            return None;
        }
        let mut cache = self.cache.lock();
        let mut get = |key: Key| cache.get(self.hasher.hash_one(key), &key).cloned();
        let entry = match get(lookup.key(&[]))? {
            Entry::Varies(names) => get(lookup.key(&names))?,
            entry @ Entry::Answer(_) => entry,
        };
        let Entry::Answer(kept) = entry else { return None };
        (kept.reuse.be_given_to(lookup) && kept.age(now) < kept.reuse.until).then_some(kept)
    }

    /// Bytes of the stored answers.
    pub fn bytes(&self) -> usize {
        self.cache.lock().bytes()
    }
}

#[cfg(test)]
mod tests;
