//! Authenticate: who is asking.
//!
//! A route with `auth` wants one `Authorization: Bearer` token of one of its issuers: signed with an algorithm on the
//! issuer's list, not expired, already valid, for our audience, with a subject. A route without `auth` is open, and a
//! token sent there is not looked at. Only this file makes a [`Subject`], so nothing that needs one can be asked
//! before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::document::Section;
use crate::limits::is_field_name;
use crate::refusal::{Code, Refusal};
use crate::request::Request;
use crate::routes::Route;
use crate::stage::Stage;
use crate::time::Timestamp;
use crate::token::{Algorithm, Token, TokenFault};
use crate::units::Span;
use crate::world::{VerifyFault, World};

/// `[jwt.NAME]`: one issuer whose tokens are believed.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// The name in the policy: routes say `jwt:NAME`.
    pub name: Arc<str>,
    /// The allow-list; never empty.
    pub algorithms: Vec<Algorithm>,
    /// Where its keys are.
    pub keys: KeySource,
    /// What `iss` must be; anything when `None`.
    pub issuer: Option<String>,
    /// `aud` must hold one of these; anything when empty.
    pub audience: Vec<String>,
    /// How far clocks may differ.
    pub leeway: Duration,
    /// How often a key set is fetched anew.
    pub refresh: Duration,
    /// The claim that holds the roles.
    pub roles_claim: String,
    /// Which claims are forwarded, and in which header fields.
    pub forward: Vec<(String, Arc<str>)>,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// A key set at a URL.
    Jwks(String),
    /// A public key in PEM, or a key set, in a file.
    File(String),
    /// A shared secret by its name.
    Secret(String),
}

/// Header fields that no claim may be written to: the gateway or HTTP itself relies on them.
const RESERVED_FIELDS: [&str; 12] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-request-id",
];

impl Issuer {
    pub(crate) fn read_all(root: &Section<'_>) -> HashMap<String, Arc<Self>> {
        let sections = root.named_sections("jwt");
        let read = |(name, section): (String, _)| Some((name.clone(), Arc::new(Self::read(&name, section)?)));
        sections.into_iter().filter_map(read).collect()
    }

    fn read(name: &str, section: Section<'_>) -> Option<Self> {
        let algorithms =
            section.require::<Vec<Algorithm>>("algorithms", "a list of HS256, RS256, ES256, EdDSA");
        let keys = Self::read_keys(&section);
        if let Some(algorithms) = &algorithms {
            Self::check_algorithms(&section, algorithms, keys.as_ref());
        }
        let issuer = Self {
            name: name.into(),
            algorithms: algorithms.unwrap_or_default(),
            keys: keys?,
            issuer: section.get("issuer"),
            audience: section.get_or("audience", Vec::new()),
            leeway: section.get_or("leeway", Span(Duration::from_secs(30))).0,
            refresh: section
                .get_checked("refresh", Span(Duration::from_mins(5)), |span| {
                    (span.0 >= Duration::from_secs(1))
                        .then_some(())
                        .ok_or(format!("at least 1s (got {span})"))
                })
                .0,
            roles_claim: section.get_or("roles", "roles".to_owned()),
            forward: Self::read_forward(&section),
        };
        section.finish();
        Some(issuer)
    }

    fn read_keys(section: &Section<'_>) -> Option<KeySource> {
        let sources: Vec<_> = [
            section.get::<String>("jwks").map(KeySource::Jwks),
            section.get::<String>("key_file").map(KeySource::File),
            section.get::<String>("secret").map(KeySource::Secret),
        ]
        .into_iter()
        .flatten()
        .collect();
        match sources.as_slice() {
            [KeySource::Jwks(url)] if !url.starts_with("http://") && !url.starts_with("https://") => {
                section.fault("jwks", format!("an http:// or https:// address (got {url:?})"));
                None
            }
            [source] => Some(source.clone()),
            [] => {
                section.fault("", "required: one of jwks, key_file, secret");
                None
            }
            _ => {
                section.fault("", "one of jwks, key_file, secret, not several");
                None
            }
        }
    }

    /// A shared secret and a public key never serve the same issuer: that is how a public key becomes a secret.
    fn check_algorithms(section: &Section<'_>, algorithms: &[Algorithm], keys: Option<&KeySource>) {
        let symmetric = matches!(keys, Some(KeySource::Secret(_)));
        if algorithms.is_empty() {
            section.fault("algorithms", "at least one of HS256, RS256, ES256, EdDSA");
        } else if keys.is_some() && algorithms.iter().any(|one| (*one == Algorithm::HS256) != symmetric) {
            section.fault("algorithms", "HS256 goes with `secret`, the others go with `jwks` or `key_file`");
        }
    }

    fn read_forward(section: &Section<'_>) -> Vec<(String, Arc<str>)> {
        let Some(table) = section.section("forward") else { return Vec::new() };
        let mut forward = Vec::new();
        for (claim, field, _) in table.free_strings() {
            let field = field.to_ascii_lowercase();
            if !is_field_name(&field) || RESERVED_FIELDS.contains(&field.as_str()) {
                section.fault("forward", format!("the name of a header field that is free (got {field:?})"));
            }
            forward.push((claim, field.into()));
        }
        forward
    }

    /// Judges the claims of a token whose signature is good.
    fn judge(&self, token: Token<'_>, now: Timestamp) -> Result<Subject, TokenRefusal> {
        let claims = token.claims;
        let leeway = self.leeway.as_secs_f64();
        let seconds = now.since(Timestamp::EPOCH).as_secs_f64();
        let date = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => {
                value.as_f64().map(Some).ok_or(TokenRefusal::invalid(&format!("`{name}` is no date")))
            }
        };
        let expires = date("exp")?.ok_or(TokenRefusal::invalid("the token has no `exp`"))?;
        if expires + leeway <= seconds {
            return Err(TokenRefusal {
                code: Code::TokenExpired,
                detail: "the token has expired".to_owned(),
            });
        }
        if date("nbf")?.is_some_and(|from| from - leeway > seconds) {
            return Err(TokenRefusal::invalid("the token is not valid yet"));
        }
        if date("iat")?.is_some_and(|issued| issued - leeway > seconds) {
            return Err(TokenRefusal::invalid("the token was issued in the future"));
        }
        if self.issuer.is_some() && self.issuer.as_deref() != claims.get("iss").and_then(Value::as_str) {
            return Err(TokenRefusal::invalid("the token is from another issuer"));
        }
        if !self.audience.is_empty() && !self.audience.iter().any(|ours| holds(claims.get("aud"), ours)) {
            return Err(TokenRefusal::invalid("the token is for another audience"));
        }
        self.subject(&claims)
    }

    fn subject(&self, claims: &Map<String, Value>) -> Result<Subject, TokenRefusal> {
        let id = claims.get("sub").and_then(Value::as_str).filter(|sub| !sub.is_empty() && plain(sub));
        let id = id.ok_or(TokenRefusal::invalid("the token has no usable `sub`"))?;
        let roles = match claims.get(&self.roles_claim) {
            None => Vec::new(),
            Some(Value::Array(list)) => list
                .iter()
                .map(|role| role.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or(TokenRefusal::invalid("the token's roles are not a list of strings"))?,
            Some(_) => return Err(TokenRefusal::invalid("the token's roles are not a list of strings")),
        };
        let mut headers = Vec::with_capacity(self.forward.len());
        for (claim, field) in &self.forward {
            let Some(value) = claims.get(claim) else { continue };
            let text = header_value(value)
                .ok_or_else(|| TokenRefusal::invalid(&format!("claim `{claim}` cannot be forwarded")))?;
            headers.push((Arc::clone(field), text));
        }
        Ok(Subject(Some(Box::new(Known {
            id: id.to_owned(),
            roles,
            headers,
            issuer: Arc::clone(&self.name),
        }))))
    }
}

fn holds(claim: Option<&Value>, wanted: &str) -> bool {
    match claim {
        Some(Value::String(one)) => one == wanted,
        Some(Value::Array(list)) => list.iter().any(|one| one.as_str() == Some(wanted)),
        _ => false,
    }
}

/// A blank at an end would be lost in a header field, and another identity would arrive.
fn plain(text: &str) -> bool {
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

/// Who is asking; made here and nowhere else.
#[derive(Clone, Debug)]
pub struct Subject(Option<Box<Known>>);

#[derive(Clone, Debug)]
struct Known {
    id: String,
    roles: Vec<String>,
    headers: Vec<(Arc<str>, String)>,
    issuer: Arc<str>,
}

impl Subject {
    /// The `sub` of the token; `None` on an open route.
    pub fn id(&self) -> Option<&str> {
        self.0.as_ref().map(|known| known.id.as_str())
    }

    /// The roles in the token.
    pub fn roles(&self) -> &[String] {
        self.0.as_ref().map_or(&[], |known| &known.roles)
    }

    /// The identity headers that the upstream gets.
    pub fn headers(&self) -> &[(Arc<str>, String)] {
        self.0.as_ref().map_or(&[], |known| &known.headers)
    }

    /// The issuer whose token it was.
    pub fn issuer(&self) -> Option<&Arc<str>> {
        self.0.as_ref().map(|known| &known.issuer)
    }
}

struct TokenRefusal {
    code: Code,
    detail: String,
}

impl TokenRefusal {
    fn invalid(detail: &str) -> Self {
        Self { code: Code::TokenInvalid, detail: detail.to_owned() }
    }
}

impl Route {
    /// Finds out who is asking, as the route's `auth` wants it.
    pub async fn authenticate<W: World>(
        &self,
        request: &Request<'_>,
        world: &W,
        now: Timestamp,
    ) -> Result<Subject, Refusal> {
        if self.issuers.is_empty() {
            return Ok(Subject(None));
        }
        let refuse = |code, detail: &str| Refusal::new(Stage::Authenticate, code, detail);
        let text = bearer(request).map_err(|(code, detail)| refuse(code, detail))?;
        let token = Token::parse(text).map_err(|fault: TokenFault| {
            refuse(Code::TokenInvalid, &fault.to_string()).by(&self.issuers[0].name)
        })?;
        let claimed = token.claims.get("iss").and_then(Value::as_str);
        let ours = |issuer: &&Arc<Issuer>| issuer.issuer.is_none() || issuer.issuer.as_deref() == claimed;
        let issuer = self
            .issuers
            .iter()
            .find(ours)
            .ok_or_else(|| refuse(Code::TokenInvalid, "the token is from another issuer"))?;
        if !issuer.algorithms.contains(&token.algorithm) {
            return Err(refuse(Code::TokenInvalid, "the token's algorithm is not accepted").by(&issuer.name));
        }
        world.verify(issuer, &token).await.map_err(|fault| match fault {
            VerifyFault::Forged => {
                refuse(Code::TokenInvalid, "the token's signature is wrong").by(&issuer.name)
            }
            VerifyFault::UnknownKey => {
                refuse(Code::TokenInvalid, "the token is signed with an unknown key").by(&issuer.name)
            }
            VerifyFault::Away => refuse(Code::KeysUnavailable, "the keys that verify tokens are away")
                .by(&issuer.name)
                .retry_after(Some(Duration::from_secs(5))),
        })?;
        issuer.judge(token, now).map_err(|fault| refuse(fault.code, &fault.detail).by(&issuer.name))
    }
}

/// The one bearer token of a request.
fn bearer<'r>(request: &Request<'r>) -> Result<&'r str, (Code, &'static str)> {
    let mut fields = request.headers.all("authorization");
    let field = fields.next().ok_or((Code::TokenMissing, "send `Authorization: Bearer TOKEN`"))?;
    if fields.next().is_some() {
        return Err((Code::TokenInvalid, "send one Authorization field, not several"));
    }
    let text = std::str::from_utf8(field).map_err(|_| (Code::TokenInvalid, "the token is not ASCII"))?;
    let (scheme, token) =
        text.split_once(' ').ok_or((Code::TokenMissing, "send `Authorization: Bearer TOKEN`"))?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err((Code::TokenMissing, "send `Authorization: Bearer TOKEN`"));
    }
    Ok(token.trim_start_matches(' '))
}
