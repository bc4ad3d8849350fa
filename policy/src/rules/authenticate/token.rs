//! Parses a JSON Web Token strictly, without trusting anything in it (RFC 7515, 7519, 8725).
//!
//! Base64url is strict, duplicate keys are refused at any depth, and the size is checked before anything is decoded.
//! Header parameters that carry keys or point to them (`jku`, `x5u`, `x5c`, `jwk`) are never used. The world verifies
//! the signature, and `claims` judges the claims.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::words;

/// The largest token that is accepted, in bytes.
pub const MAX_TOKEN: usize = 8 * 1024;

/// The signature algorithms that are accepted. `none` is not one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    HS256,
    /// RSA PKCS #1 v1.5 with SHA-256.
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

impl Algorithm {
    /// The name in a token's header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HS256 => "HS256",
            Self::RS256 => "RS256",
            Self::ES256 => "ES256",
            Self::EdDSA => "EdDSA",
        }
    }
}

words! {
    Algorithm { "HS256" => HS256, "RS256" => RS256, "ES256" => ES256, "EdDSA" => EdDSA } or "HS256, RS256, ES256 or EdDSA"
}

/// Why a text is not an acceptable token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// More than [`MAX_TOKEN`] bytes.
    #[error("the token is longer than 8 KiB")]
    TooLong,
    /// It has not three parts, they are not base64url or not JSON objects, or a key is duplicate.
    #[error("the token is not a signed JSON Web Token")]
    Malformed,
    /// `alg` is missing or not accepted.
    #[error("the token's algorithm is not accepted")]
    Algorithm,
    /// `crit` or `b64`: an extension that the gateway would have to support.
    #[error("the token asks for an extension that is not supported")]
    Extension,
}

impl TokenFault {
    /// One word for the log.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::Extension => "extension",
        }
    }
}

/// A token in parts. Nothing in it is trusted yet.
#[derive(Debug)]
pub struct Token<'t> {
    /// `alg` of the header. The caller compares it with the accepted algorithms.
    pub algorithm: Algorithm,
    /// `kid` of the header: the key that is said to have signed it.
    pub kid: Option<String>,
    /// The payload.
    pub claims: Map<String, Value>,
    /// The part that was signed.
    pub signed: &'t str,
    /// The signature, still encoded.
    pub signature: &'t str,
}

impl<'t> Token<'t> {
    /// Parses `text`.
    pub fn parse(text: &'t str) -> Result<Self, TokenFault> {
        if text.len() > MAX_TOKEN {
            return Err(TokenFault::TooLong);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(TokenFault::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenFault::Malformed)?;
        URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenFault::Malformed)?;
        let header = object(header)?;
        if header.contains_key("crit") || header.contains_key("b64") {
            return Err(TokenFault::Extension);
        }
        let algorithm = header.get("alg").and_then(Value::as_str).and_then(|name| name.parse().ok());
        let kid = match header.get("kid") {
            None => None,
            Some(Value::String(kid)) => Some(kid.clone()),
            Some(_) => return Err(TokenFault::Malformed),
        };
        Ok(Self {
            algorithm: algorithm.ok_or(TokenFault::Algorithm)?,
            kid,
            claims: object(payload)?,
            signed,
            signature,
        })
    }
}

fn object(part: &str) -> Result<Map<String, Value>, TokenFault> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenFault::Malformed)?;
    match serde_json::from_slice(&bytes) {
        Ok(Strict(Value::Object(map))) => Ok(map),
        _ => Err(TokenFault::Malformed),
    }
}

/// JSON without duplicate keys, because two readers must never read the same token differently.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without duplicate keys")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Strict(value))) = entries.next_entry::<String, Strict>()? {
            if map.insert(key, value).is_some() {
                return Err(A::Error::custom("duplicate key"));
            }
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, payload: &str) -> Result<(), TokenFault> {
        let text = format!("{}.{}.c2ln", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        Token::parse(&text).map(|_| ())
    }

    #[test]
    fn a_token_is_parsed() {
        assert_eq!(token(r#"{"alg":"EdDSA","kid":"a"}"#, r#"{"sub":"u"}"#), Ok(()));
    }

    #[test]
    fn a_token_that_could_be_read_in_two_ways_is_refused() {
        let fine = r#"{"alg":"EdDSA"}"#;
        assert_eq!(token(fine, r#"{"sub":"a","sub":"b"}"#), Err(TokenFault::Malformed));
        assert_eq!(token(fine, r#"{"a":{"b":1,"b":2}}"#), Err(TokenFault::Malformed));
        assert_eq!(token(r#"{"alg":"none"}"#, "{}"), Err(TokenFault::Algorithm));
        assert_eq!(token(r#"{"alg":"EdDSA","crit":["b64"],"b64":false}"#, "{}"), Err(TokenFault::Extension));
        assert_eq!(token(r#"{"alg":"EdDSA","kid":7}"#, "{}"), Err(TokenFault::Malformed));
        assert_eq!(token(fine, "[]"), Err(TokenFault::Malformed));
        for text in ["", "a", "a.b", "e30.e30.", "e30=.e30=.c2ln", "e30.e30.c2ln.c2ln", "e30.e30.c2ln\n"] {
            assert!(Token::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(Token::parse(&"a".repeat(MAX_TOKEN + 1)).err(), Some(TokenFault::TooLong));
    }
}
