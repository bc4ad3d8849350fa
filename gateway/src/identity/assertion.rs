//! What the gateway says to its own backend, signed: which request this is and who asks. A JSON Web Token (RFC 7519) in
//! `x-palisade-assertion`, for one method, target, request id and body, good once and for half a minute. The secret that
//! both know never leaves the gateway, and who goes round it has nothing to show. docs/decisions/0005 says what binds a body
//! that is too long to be known beforehand.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use protocol::assertion::{AUDIENCE, Assertion, BodyBinding, Claims, ISSUER, LIFETIME};
use sha2::{Digest as _, Sha256};

use crate::config::secrets::Secret;
use crate::http::problem;

/// Signs assertions.
pub struct Signer {
    key: EncodingKey,
    header: Header,
}

/// Binds an assertion to a body that is known whole.
pub fn bound_to(body: &[u8]) -> BodyBinding {
    BodyBinding { body_sha256: Some(URL_SAFE_NO_PAD.encode(Sha256::digest(body))), body_length: None }
}

impl Signer {
    /// Signs with the secret that the backend knows, too.
    pub fn new(gateway_token: &Secret) -> Self {
        Self { key: EncodingKey::from_secret(gateway_token.expose()), header: Header::new(Algorithm::HS256) }
    }

    /// The value of the field.
    pub fn sign(&self, assertion: Assertion<'_>) -> anyhow::Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let exp = now + LIFETIME.as_secs();
        let jti = problem::new_request_id();
        let claims =
            Claims { iss: ISSUER.into(), aud: AUDIENCE.into(), iat: now, exp, jti: jti.into(), assertion };
        Ok(encode(&self.header, &claims, &self.key)?)
    }
}
