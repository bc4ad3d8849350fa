//! What the gateway says to its own backend, signed: which request this is and who asks. A JSON Web Token (RFC 7519) in
//! `x-palisade-assertion`, for one method, target and request id, good for half a minute. The secret that both know never
//! leaves the gateway, and who goes round it has nothing to show.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;

use crate::secrets::Secret;

/// The field that carries it.
pub const FIELD: &str = "x-palisade-assertion";

/// An assertion is good for so long.
const LIFETIME: Duration = Duration::from_secs(30);

/// Signs assertions.
pub struct Signer {
    key: EncodingKey,
    header: Header,
}

/// What is asserted of a request.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Assertion<'a> {
    /// The method.
    pub method: &'a str,
    /// The path and the query, as they are sent.
    pub target: &'a str,
    /// `x-request-id`, as it is sent; empty when there is none.
    pub request_id: &'a str,
    /// Whether the gateway asks for itself.
    pub own: bool,
    /// The subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub: Option<&'a str>,
    /// Its roles.
    pub roles: &'a [String],
    /// The client's address.
    pub address: &'a str,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'static str,
    aud: &'static str,
    iat: u64,
    exp: u64,
    #[serde(flatten)]
    assertion: &'a Assertion<'a>,
}

impl Signer {
    /// Signs with the secret that the backend knows, too.
    pub fn new(gateway_token: &Secret) -> Self {
        Self { key: EncodingKey::from_secret(gateway_token.expose()), header: Header::new(Algorithm::HS256) }
    }

    /// The value of the field.
    pub fn sign(&self, assertion: &Assertion<'_>) -> anyhow::Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let exp = now + LIFETIME.as_secs();
        let claims = Claims { iss: "palisade-gateway", aud: "palisade-backend", iat: now, exp, assertion };
        Ok(encode(&self.header, &claims, &self.key)?)
    }
}
