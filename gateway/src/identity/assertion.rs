//! What the gateway says to its own backend, signed: which request this is and who asks. A JSON Web Token (RFC 7519) in
//! `x-palisade-assertion`, for one method, target, request id and body, good once and for half a minute. The secret that
//! both know never leaves the gateway, and who goes round it has nothing to show. docs/decisions/0005 says what binds a body
//! that is too long to be known beforehand.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::config::secrets::Secret;
use crate::http::problem;

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
#[derive(Clone, Debug, Default, Serialize)]
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
    /// Whose word that is, where there are several issuers: the token's `iss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_issuer: Option<&'a str>,
    /// Its roles.
    pub roles: &'a [String],
    /// The client's address.
    pub address: &'a str,
    /// The body.
    #[serde(flatten)]
    pub body: BodyBinding,
}

/// What binds an assertion to a body.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BodyBinding {
    /// SHA-256 of a body that is known whole, in base64url.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_sha256: Option<String>,
    /// The length of one that is sent as it comes, where the client announced it.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_length: Option<u64>,
}

impl BodyBinding {
    /// A body that is known whole.
    pub fn whole(body: &[u8]) -> Self {
        Self { body_sha256: Some(URL_SAFE_NO_PAD.encode(Sha256::digest(body))), body_length: None }
    }

    /// One that is sent as it comes.
    pub fn streamed(announced: Option<u64>) -> Self {
        Self { body_sha256: None, body_length: announced }
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'static str,
    aud: &'static str,
    iat: u64,
    exp: u64,
    /// Each is accepted once.
    jti: &'a str,
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
        let jti = problem::new_request_id();
        let (iss, aud) = ("palisade-gateway", "palisade-backend");
        let claims = Claims { iss, aud, iat: now, exp, jti: &jti, assertion };
        Ok(encode(&self.header, &claims, &self.key)?)
    }
}
