//! The assertion: a JSON Web Token (RFC 7519) by which the gateway says who asks, and that it is this request.
//! docs/decisions/0005 says what binds it.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The field that carries it.
pub const FIELD: &str = "x-palisade-assertion";

/// Who signs it.
pub const ISSUER: &str = "palisade-gateway";

/// For whom.
pub const AUDIENCE: &str = "palisade-backend";

/// How long it is valid.
pub const LIFETIME: Duration = Duration::from_secs(30);

/// The claims of the token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims<'a> {
    /// [`ISSUER`].
    pub iss: Cow<'a, str>,
    /// [`AUDIENCE`].
    pub aud: Cow<'a, str>,
    /// When it was signed, in seconds since the epoch.
    pub iat: u64,
    /// When it ends.
    pub exp: u64,
    /// A UUID; each is accepted once.
    pub jti: Cow<'a, str>,
    /// What is asserted.
    #[serde(flatten)]
    pub assertion: Assertion<'a>,
}

/// What is asserted of a request.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Assertion<'a> {
    /// The method.
    pub method: Cow<'a, str>,
    /// The path and the query, as they are sent.
    pub target: Cow<'a, str>,
    /// `x-request-id`, as it is sent; empty when there is none.
    pub request_id: Cow<'a, str>,
    /// Whether the gateway asks for itself.
    #[serde(default)]
    pub own: bool,
    /// The subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub: Option<Cow<'a, str>>,
    /// Who issued the subject, where the gateway accepts several issuers' tokens: the token's `iss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_issuer: Option<Cow<'a, str>>,
    /// Its roles.
    #[serde(default)]
    pub roles: Cow<'a, [String]>,
    /// The client's address.
    #[serde(default)]
    pub address: Cow<'a, str>,
    /// The body.
    #[serde(flatten)]
    pub body: BodyBinding,
}

/// What binds an assertion to a body.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BodyBinding {
    /// SHA-256 of a body that is known whole, in base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_sha256: Option<String>,
    /// The length of one that is sent as it comes, where the client announced it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_length: Option<u64>,
}
