//! What the claims of a token mean, after its signature was verified (RFC 7519, 4.1).

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::rules::authenticate::issuer::Issuer;
use crate::rules::authenticate::token::Token;
use crate::values::refusal::Code;
use crate::values::time::Timestamp;

/// The claims of a token that can be trusted.
#[derive(Debug)]
pub(crate) struct Claims {
    pub(crate) id: String,
    pub(crate) roles: Vec<String>,
    pub(crate) headers: Vec<(Arc<str>, String)>,
    pub(crate) jti: Option<String>,
    pub(crate) issued_at: Option<Timestamp>,
    /// The token is not valid before this time. The leeway is included.
    pub(crate) begins: Timestamp,
    /// The token is not accepted from this time on. The leeway is included.
    pub(crate) ends: Timestamp,
}

/// Why a token is not accepted.
#[derive(Debug)]
pub(crate) struct TokenRefusal {
    pub(crate) code: Code,
    pub(crate) detail: String,
    /// The claim that is wrong, as `claims.aud`.
    pub(crate) reason: String,
}

impl TokenRefusal {
    fn invalid(claim: &str, detail: &str) -> Self {
        Self { code: Code::TokenInvalid, detail: detail.to_owned(), reason: format!("claims.{claim}") }
    }

    fn expired() -> Self {
        Self { code: Code::TokenExpired, ..Self::invalid("exp", "the token has expired") }
    }
}

impl Issuer {
    /// Judges the claims of a token whose signature was verified.
    pub(crate) fn judge(&self, token: &Token<'_>, now: Timestamp) -> Result<Claims, TokenRefusal> {
        let claims = &token.claims;
        let ends =
            date(claims, "exp")?.ok_or(TokenRefusal::invalid("exp", "the token has no `exp`"))? + self.leeway;
        if ends <= now {
            return Err(TokenRefusal::expired());
        }
        let not_before = date(claims, "nbf")?;
        if not_before.is_some_and(|from| from > now + self.leeway) {
            return Err(TokenRefusal::invalid("nbf", "the token is not valid yet"));
        }
        let issued_at = date(claims, "iat")?;
        if issued_at.is_some_and(|issued| issued > now + self.leeway) {
            return Err(TokenRefusal::invalid("iat", "the token was issued in the future"));
        }
        if self.issuer.is_some() && self.issuer.as_deref() != claims.get("iss").and_then(Value::as_str) {
            return Err(TokenRefusal::invalid("iss", "the token is from another issuer"));
        }
        if !self.audience.is_empty() && !self.audience.iter().any(|ours| holds(claims.get("aud"), ours)) {
            return Err(TokenRefusal::invalid("aud", "the token is for another audience"));
        }
        let id = claims.get("sub").and_then(Value::as_str).filter(|sub| !sub.is_empty() && plain(sub));
        let id = id.ok_or(TokenRefusal::invalid("sub", "the token has no usable `sub`"))?.to_owned();
        let (roles, headers) = (self.roles(claims), self.headers(claims)?);
        let jti = claims.get("jti").and_then(Value::as_str).map(str::to_owned);
        let begins = not_before.max(issued_at).unwrap_or_default() - self.leeway;
        Ok(Claims { id, roles, headers, jti, issued_at, begins, ends })
    }

    /// The roles. Providers send a list of strings or one string.
    fn roles(&self, claims: &Map<String, Value>) -> Vec<String> {
        let strings = |list: &[Value]| list.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        match claim(claims, &self.roles_claim) {
            Some(Value::String(role)) => vec![role.clone()],
            Some(Value::Array(list)) => strings(list),
            // Anything else gives no role. Routes that require no role still accept the token.
            _ => Vec::new(),
        }
    }

    fn headers(&self, claims: &Map<String, Value>) -> Result<Vec<(Arc<str>, String)>, TokenRefusal> {
        let mut headers = Vec::with_capacity(self.forward.len());
        for (name, field) in &self.forward {
            let Some(value) = claim(claims, name).filter(|value| !value.is_null() && !value.is_object())
            else {
                continue;
            };
            let text = header_value(value)
                .ok_or_else(|| TokenRefusal::invalid(name, &format!("claim `{name}` cannot be forwarded")))?;
            headers.push((Arc::clone(field), text));
        }
        Ok(headers)
    }
}

/// The claim `name`: a claim with exactly this name or, if there is none, the claim at this path
/// (`realm_access.roles`).
fn claim<'c>(claims: &'c Map<String, Value>, name: &str) -> Option<&'c Value> {
    claims.get(name).or_else(|| {
        let (first, rest) = name.split_once('.')?;
        rest.split('.').try_fold(claims.get(first)?, |value, part| value.get(part))
    })
}

/// A `NumericDate`: seconds since the epoch, possibly with a fraction.
fn date(claims: &Map<String, Value>, name: &str) -> Result<Option<Timestamp>, TokenRefusal> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let seconds =
        value.as_f64().ok_or_else(|| TokenRefusal::invalid(name, &format!("`{name}` is not a date")))?;
    // A date before the epoch counts as the epoch, one that would overflow as the last time that can be counted.
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

/// Whether a header field carries `text` unchanged. A space at either end would be lost, and the service would see
/// another identity.
pub(crate) fn plain(text: &str) -> bool {
    !text.chars().any(char::is_control) && text.trim() == text
}

/// A claim as a header value. A list is joined with commas, so no element may contain a comma.
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Policy;

    #[test]
    fn roles_are_read_as_providers_send_them() {
        let roles = |name: &str, claims: Value| {
            let text = format!(
                "version = 1\n[jwt.a]\nalgorithms = [\"ES256\"]\njwks = \"http://a/\"\nroles = {name:?}\n[[routes]]\n\
                 name = \"a\"\npath = \"/\"\nupstream = \"u\"\n"
            );
            let policy = Policy::parse("p", &text, None).unwrap();
            policy.issuers[0].roles(claims.as_object().unwrap())
        };
        for (name, claims) in [
            ("realm_access.roles", json!({"realm_access": {"roles": ["admin"]}})), // Keycloak
            ("roles", json!({"roles": ["admin"]})),                                // Entra ID
            ("https://shop.example/roles", json!({"https://shop.example/roles": ["admin"]})), // Auth0
            ("cognito:groups", json!({"cognito:groups": ["admin"]})),              // Cognito
            ("role", json!({"role": "admin"})),                                    // AD FS
            ("a.b", json!({"a.b": "admin", "a": {"b": "other"}})),
        ] {
            assert_eq!(roles(name, claims), ["admin"], "{name}");
        }
        for claims in
            [json!({}), json!({"roles": null}), json!({"roles": {"a": 1}}), json!({"roles": [7, null]})]
        {
            assert!(roles("roles", claims.clone()).is_empty(), "{claims}");
        }
    }
}
