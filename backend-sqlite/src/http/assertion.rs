//! What the gateway asserts of a request: who asks, and that it is this request.
//!
//! Every call but health, metrics and the public keys carries an assertion: a JSON Web Token in `x-palisade-assertion`
//! that the gateway signs with the secret that both know. It is valid for one method, target, request id and body,
//! once, and for half a minute (docs/decisions/0005). So it does not help an attacker to bypass the gateway, nor to
//! send again what was read on the network.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use parking_lot::Mutex;
use protocol::assertion::{AUDIENCE, Claims, FIELD, ISSUER};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use uuid::Uuid;

use crate::problem::{Problem, Result};

/// How far the clocks of the two may differ, in seconds.
const LEEWAY: u64 = 5;

/// The largest body of which the gateway asserts a digest, in bytes.
const LARGEST_DIGESTED: usize = 64 * 1024;

/// Longer than an assertion is valid, with the difference of the clocks.
const GENERATION: Duration = Duration::from_secs(45);

/// Assertions that are remembered in one generation, some 40 MB at most.
const MOST: usize = 1_000_000;

/// What the gateway asserts.
pub(crate) type Assertion = protocol::assertion::Assertion<'static>;

/// Verifies assertions.
pub(crate) struct Verifier {
    key: DecodingKey,
    validation: Validation,
    accepted: Mutex<Accepted>,
    /// Assertions that were accepted before this are not known.
    started: Instant,
}

impl Verifier {
    pub(crate) fn new(gateway_token: &[u8]) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY;
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let key = DecodingKey::from_secret(gateway_token);
        let started = Instant::now();
        Self { key, validation, accepted: Mutex::new(Accepted::new(started)), started }
    }

    /// In seconds since the Unix epoch by the wall clock as it is now: it may have been set since.
    fn started_at(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.saturating_sub(self.started.elapsed()).as_secs()
    }

    /// What is asserted of this request, the first time.
    fn assertion(&self, request: &Request) -> Option<Assertion> {
        let mut fields = request.headers().get_all(FIELD).iter();
        let (field, None) = (fields.next()?.to_str().ok()?, fields.next()) else { return None };
        let claims = decode::<Claims<'static>>(field, &self.key, &self.validation).ok()?.claims;
        let target = request.uri().path_and_query()?.as_str();
        let id = request.headers().get("x-request-id").map_or(&b""[..], |id| id.as_bytes());
        let asserted = claims.assertion;
        let about_this = asserted.method == request.method().as_str()
            && asserted.target == target
            && asserted.request_id.as_bytes() == id;
        let is_new = claims.iat.saturating_add(LEEWAY) >= self.started_at();
        let number = Uuid::parse_str(&claims.jti).ok()?.as_u128();
        (about_this && is_new && self.accepted.lock().accept(number, Instant::now())).then_some(asserted)
    }
}

/// Assertions that were accepted lately, in two generations.
struct Accepted {
    current: HashSet<u128>,
    previous: HashSet<u128>,
    rotated_at: Instant,
}

impl Accepted {
    fn new(now: Instant) -> Self {
        Self { current: HashSet::new(), previous: HashSet::new(), rotated_at: now }
    }

    /// Whether this is the first time; `false` as well while too many are remembered.
    fn accept(&mut self, id: u128, now: Instant) -> bool {
        if now.duration_since(self.rotated_at) >= GENERATION {
            self.previous = std::mem::take(&mut self.current);
            if now.duration_since(self.rotated_at) >= GENERATION * 2 {
                self.previous = HashSet::new();
            }
            self.rotated_at = now;
        }
        self.current.len() < MOST && !self.previous.contains(&id) && self.current.insert(id)
    }
}

/// Refuses a request without the gateway's assertion of this very request.
pub(crate) async fn from_gateway(
    State(verifier): State<Arc<Option<Verifier>>>,
    request: Request,
    next: Next,
) -> Result<Response> {
    let asserted = Option::as_ref(&verifier).and_then(|verifier| verifier.assertion(&request));
    let Some(asserted) = asserted else { return Err(not_the_gateway()) };
    let (parts, body) = request.into_parts();
    let body = if let Some(digest) = &asserted.body.body_sha256 {
        let body = to_bytes(body, LARGEST_DIGESTED).await.map_err(|_| not_the_gateway())?;
        if URL_SAFE_NO_PAD.encode(Sha256::digest(&body)) != *digest {
            return Err(not_the_gateway());
        }
        Body::from(body)
    } else {
        let length = parts.headers.get(CONTENT_LENGTH);
        if length.and_then(|length| length.to_str().ok()?.parse().ok()) != asserted.body.body_length {
            return Err(not_the_gateway());
        }
        body
    };
    let mut request = Request::from_parts(parts, body);
    request.extensions_mut().insert(asserted);
    Ok(next.run(request).await)
}

/// The response to a request that bypasses the gateway.
pub(crate) fn not_the_gateway() -> Problem {
    Problem::unauthorized("not_the_gateway", "this address answers the gateway alone")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_accepted_once_as_long_as_its_assertion_may_be_good() {
        let start = Instant::now();
        let mut accepted = Accepted::new(start);
        assert!(accepted.accept(1, start) && !accepted.accept(1, start) && accepted.accept(2, start));
        for seconds in [30, 44, 45, 60, 89] {
            assert!(!accepted.accept(1, start + Duration::from_secs(seconds)), "{seconds}");
        }
        assert!(accepted.accept(3, start + Duration::from_secs(89)));
        assert!(!accepted.accept(3, start + Duration::from_secs(91)), "the one after the rotation");
        assert!(accepted.accept(1, start + Duration::from_secs(1_000)), "and nothing is remembered forever");
        assert_eq!(accepted.previous.len() + accepted.current.len(), 1);
    }
}
