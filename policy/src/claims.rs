//! What the claims of a token mean, once its signature is good (RFC 7519, 4.1).

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::issuer::Issuer;
use crate::refusal::Code;
use crate::time::Timestamp;
use crate::token::Token;

/// What a token says that can be believed.
#[derive(Debug)]
pub(crate) struct Claims {
    pub(crate) id: String,
    pub(crate) roles: Vec<String>,
    pub(crate) headers: Vec<(Arc<str>, String)>,
    pub(crate) jti: Option<String>,
    pub(crate) issued_at: Option<Timestamp>,
    /// When it stops to be believed, leeway and all.
    pub(crate) ends: Timestamp,
}

/// Why a token is not believed.
#[derive(Debug)]
pub(crate) struct TokenRefusal {
    pub(crate) code: Code,
    pub(crate) detail: String,
}

impl TokenRefusal {
    pub(crate) fn invalid(detail: &str) -> Self {
        Self { code: Code::TokenInvalid, detail: detail.to_owned() }
    }

    pub(crate) fn expired() -> Self {
        Self { code: Code::TokenExpired, detail: "the token has expired".to_owned() }
    }
}

impl Issuer {
    /// Judges the claims of a token whose signature is good.
    pub(crate) fn judge(&self, token: &Token<'_>, now: Timestamp) -> Result<Claims, TokenRefusal> {
        let claims = &token.claims;
        let ends = date(claims, "exp")?.ok_or(TokenRefusal::invalid("the token has no `exp`"))? + self.leeway;
        if ends <= now {
            return Err(TokenRefusal::expired());
        }
        if date(claims, "nbf")?.is_some_and(|from| from > now + self.leeway) {
            return Err(TokenRefusal::invalid("the token is not valid yet"));
        }
        let issued_at = date(claims, "iat")?;
        if issued_at.is_some_and(|issued| issued > now + self.leeway) {
            return Err(TokenRefusal::invalid("the token was issued in the future"));
        }
        if self.issuer.is_some() && self.issuer.as_deref() != claims.get("iss").and_then(Value::as_str) {
            return Err(TokenRefusal::invalid("the token is from another issuer"));
        }
        if !self.audience.is_empty() && !self.audience.iter().any(|ours| holds(claims.get("aud"), ours)) {
            return Err(TokenRefusal::invalid("the token is for another audience"));
        }
        let id = claims.get("sub").and_then(Value::as_str).filter(|sub| !sub.is_empty() && plain(sub));
        let id = id.ok_or(TokenRefusal::invalid("the token has no usable `sub`"))?.to_owned();
        let (roles, headers) = (self.roles(claims)?, self.headers(claims)?);
        let jti = claims.get("jti").and_then(Value::as_str).map(str::to_owned);
        Ok(Claims { id, roles, headers, jti, issued_at, ends })
    }

    fn roles(&self, claims: &Map<String, Value>) -> Result<Vec<String>, TokenRefusal> {
        let unfit = || TokenRefusal::invalid("the token's roles are not a list of strings");
        match claims.get(&self.roles_claim) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => {
                list.iter().map(|role| role.as_str().map(str::to_owned).ok_or_else(unfit)).collect()
            }
            Some(_) => Err(unfit()),
        }
    }

    fn headers(&self, claims: &Map<String, Value>) -> Result<Vec<(Arc<str>, String)>, TokenRefusal> {
        let mut headers = Vec::with_capacity(self.forward.len());
        for (claim, field) in &self.forward {
            let Some(value) = claims.get(claim) else { continue };
            let text = header_value(value)
                .ok_or_else(|| TokenRefusal::invalid(&format!("claim `{claim}` cannot be forwarded")))?;
            headers.push((Arc::clone(field), text));
        }
        Ok(headers)
    }
}

/// A `NumericDate`: seconds since the epoch, perhaps with a fraction.
fn date(claims: &Map<String, Value>, name: &str) -> Result<Option<Timestamp>, TokenRefusal> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let seconds = value.as_f64().ok_or_else(|| TokenRefusal::invalid(&format!("`{name}` is no date")))?;
    // Before the epoch is long ago, and after what can be counted is far away.
    let since_epoch = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
    Ok(Some(Timestamp::EPOCH + since_epoch))
}

fn holds(claim: Option<&Value>, wanted: &str) -> bool {
    match claim {
        Some(Value::String(one)) => one == wanted,
        Some(Value::Array(list)) => list.iter().any(|one| one.as_str() == Some(wanted)),
        _ => false,
    }
}

/// A blank at an end would be lost in a header field, and another identity would arrive.
pub(crate) fn plain(text: &str) -> bool {
    !text.chars().any(char::is_control) && text.trim() == text
}

/// A claim as a header value: a list is joined with commas, so no element may hold one.
fn header_value(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Array(list) => {
            let items: Option<Vec<_>> =
                list.iter().map(|item| if item.is_array() { None } else { header_value(item) }).collect();
            return items.map(|items| items.join(","));
        }
        Value::Null | Value::Object(_) => return None,
    };
    (plain(&text) && !text.contains(',')).then_some(text)
}
