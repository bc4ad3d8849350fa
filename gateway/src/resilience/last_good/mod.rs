//! The last good answers of routes that say `when_open = "stale"`: given again while the breaker is open, and never to
//! anybody but those for whom the service made them.
//!
//! RFC 9111, sections 3, 3.5 and 4, decides what is kept and who is given it. On a route with `auth` an answer belongs
//! to the subject that asked. On a route without, nobody here knows who asks: an answer to a request that shows who it
//! is to the service, by `Authorization` or a cookie, is kept only if the service says that it is for everybody.

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

/// Answers that are kept, and the bytes of all of them with their headers.
const MOST: usize = 1_024;
const MOST_BYTES: usize = 32 * 1024 * 1024;

/// The body and the header of one, in bytes.
const LARGEST: usize = 64 * 1024;
const LARGEST_HEADER: usize = 16 * 1024;

/// What a field of a header costs in memory besides its text.
const FIELD: usize = 128;

/// Fields that an answer may vary by, and their names in bytes.
const MOST_VARYING: usize = 16;
const LONGEST_VARYING: usize = 512;

/// An answer is given again for so long.
const OLDEST: Duration = Duration::from_hours(24);

/// Who asks for what, as a digest: nobody can make two that are alike, and each is as long as any other.
type Key = [u8; 32];

/// An answer that was good.
#[derive(Clone, Debug)]
pub struct CachedResponse {
    /// Its status and fields, without those that every answer gets from us.
    pub header: Arc<ResponseHeader>,
    /// Its body.
    pub body: Bytes,
    at: Timestamp,
    /// How old it was when it came.
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
    /// Whether it may be given to requests that show who they are by `Authorization`.
    authorized: bool,
    /// The same, by a cookie.
    with_cookie: bool,
    /// Until it has this age; the service forbids that it is given when it is no longer fresh, or this is our own
    /// bound.
    until: Duration,
}

/// What stands under a key.
#[derive(Clone)]
enum Entry {
    /// The fields by which answers to this vary, in lower case: their values are in the keys of the answers.
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

/// A request, as far as kept answers ask about it.
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
    /// Whether an answer to it may be kept, and whether it may be given one, as far as it says so itself.
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

    /// Everything by which requests for different things, or of different people, differ.
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

    /// Besides what the gateway knows, everything that the service is told: behind one API key there may be many
    /// people, whom the service tells apart.
    fn push_who(&self, push: &mut impl FnMut(&[u8])) {
        let CacheSubject { method, id, key } = self.subject;
        for part in [method, id, key] {
            push(part.unwrap_or_default().as_bytes());
        }
        let told = [(COOKIE, self.is_known()), (AUTHORIZATION, key.is_some())];
        for (name, _) in told.into_iter().filter(|(_, is_told)| *is_told) {
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

/// An answer that is on its way to a client and may be worth keeping.
pub struct PendingEntry {
    /// The key without what it varies by, what that is, and the key with it.
    request: Key,
    varying: Vec<String>,
    key: Key,
    header: Arc<ResponseHeader>,
    body: BytesMut,
    at: Timestamp,
    reuse: Reuse,
}

impl PendingEntry {
    /// Begins to keep an answer, if it may be.
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

    /// Takes in a piece of the body; `false` when it is too large to be kept.
    pub fn take_in(&mut self, piece: &[u8]) -> bool {
        let fits = self.body.len() + piece.len() <= LARGEST;
        if fits {
            self.body.extend_from_slice(piece);
        }
        fits
    }
}

/// Who may be given an answer; `None` when it is not kept (RFC 9111, 3 and 3.5).
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

/// A proof as good as `Authorization`, which a service may take where the gateway asks for none.
const API_KEY: HeaderName = HeaderName::from_static(KEY_FIELD);

impl Reuse {
    fn be_given_to(self, lookup: &CacheLookup<'_>) -> bool {
        let shows_a_proof = lookup.shows(AUTHORIZATION) || lookup.shows(API_KEY);
        (self.authorized || !shows_a_proof) && (self.with_cookie || !lookup.shows(COOKIE))
    }
}

/// The fields by which an answer varies, sorted; `None` when that is nothing that a request says, or too much.
fn varying(answer: &HeaderMap) -> Option<Vec<String>> {
    let says = Directives::read(answer, VARY);
    let mut names: Vec<String> = says.names().map(str::to_owned).collect();
    names.sort_unstable();
    names.dedup();
    let bytes: usize = names.iter().map(String::len).sum();
    let fine = !says.has("*") && names.len() <= MOST_VARYING && bytes <= LONGEST_VARYING;
    fine.then_some(names)
}

/// What a header costs in memory.
fn header_bytes(fields: &HeaderMap) -> usize {
    fields.iter().map(|(name, value)| FIELD + name.as_str().len() + value.len()).sum()
}

impl LastGood {
    /// Keeps an answer that has arrived whole.
    pub fn store(&self, entry: PendingEntry) {
        let PendingEntry { request, varying, key, header, body, at, reuse } = entry;
        // As large as it is and no larger: the buffer has room for more.
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

    /// The last good answer that will do for a request.
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

    /// Bytes of the answers that are kept.
    pub fn bytes(&self) -> usize {
        self.cache.lock().bytes()
    }
}

#[cfg(test)]
mod tests;
