//! Authenticate: who is asking.
//!
//! A route with `auth` requires one proof:
//!
//! - a token: one `Authorization: Bearer` from one of the route's issuers, signed with an algorithm on the issuer's
//!   list, not expired, already valid, for our audience, with a subject, or
//! - an API key that the permission service knows, in `X-API-Key`, or in `Authorization` as `ApiKey` or `Bearer`.
//!
//! A proof that was revoked is never accepted. A route without `auth` is open, and ignores any proof. Only this file
//! makes a [`Subject`], so no rule that needs one can be judged before.

pub(crate) mod claims;
pub mod issuer;
pub mod token;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::rules::authenticate::claims::{TokenRefusal, plain};
use crate::rules::authenticate::issuer::Issuer;
use crate::rules::authenticate::token::{MAX_TOKEN, Token, TokenFault};
use crate::rules::permissions::PermissionRule;
use crate::values::refusal::{Code, Refusal};
use crate::values::request::Request;
use crate::values::stage::Stage;
use crate::values::time::Timestamp;

/// The prefix of every API key.
pub const KEY_PREFIX: &str = "pal_";

/// The longest API key that is accepted, in bytes.
const LONGEST_KEY: usize = 128;

/// The header field for an API key, and for nothing else.
pub const KEY_FIELD: &str = "x-api-key";

/// Who is asking. Only this file makes one.
#[derive(Clone, Debug)]
pub struct Subject(Option<Arc<Known>>);

#[derive(Clone, Debug)]
struct Known {
    id: String,
    /// The id; where there are several issuers, followed by the issuer's name.
    identity: String,
    roles: Vec<String>,
    headers: Vec<(Arc<str>, String)>,
    proof: Proven,
}

/// How a subject proved who it is.
#[derive(Clone, Debug)]
enum Proven {
    ByToken {
        issuer: Arc<Issuer>,
        /// The `iss` that the policy requires; empty where it requires none.
        iss: String,
        jti: Option<String>,
        issued_at: Option<Timestamp>,
        begins: Timestamp,
        ends: Timestamp,
    },
    ByKey(Arc<KeyHolder>),
}

/// The things that a revocation may name.
#[derive(Clone, Copy, Debug)]
pub struct Credential<'a> {
    /// The subject.
    pub sub: &'a str,
    /// The subject; where there are several issuers, followed by the issuer's name.
    pub identity: &'a str,
    /// The id of the token or of the API key.
    pub jti: Option<&'a str>,
    /// When the token was issued, if it says so.
    pub issued_at: Option<Timestamp>,
    /// Whether it is an API key, which has no time of issue and lasts as long as its owner wants.
    pub is_key: bool,
}

/// Why a signature was not verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyFault {
    /// The key did not make this signature.
    Forged,
    /// There is no such key.
    UnknownKey,
    /// The keys are unavailable.
    Unavailable,
}

/// The holder of an API key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyHolder {
    /// The id of the key.
    pub id: String,
    /// The owner of the key.
    pub user: String,
    /// The owner's roles.
    pub roles: Vec<String>,
    /// The permissions and resources to which the key is limited. A resource may end in `*`. Empty: no limit.
    pub scopes: Vec<(String, String)>,
    /// When the key expires.
    pub expires_at: Option<Timestamp>,
}

/// The holder of an API key could not be looked up.
#[derive(Clone, Copy, Debug)]
pub struct HolderUnavailable;

/// What authentication asks of the outside. An implementation never waits without a bound.
pub trait Proofs: Sync {
    /// The subject of a token that was verified before, if it is cached.
    fn recall(&self, token: &str) -> Option<Subject>;

    /// Caches that a token was verified.
    fn remember(&self, token: &str, subject: &Subject);

    /// Whether the credential was revoked.
    fn revoked(&self, credential: &Credential<'_>) -> bool;

    /// The holder of an API key; `None` when the key is unknown or expired, or its owner is not active.
    fn key_holder(
        &self,
        rule: &PermissionRule,
        key: &str,
    ) -> impl Future<Output = Result<Option<Arc<KeyHolder>>, HolderUnavailable>> + Send;

    /// Verifies that a key of the issuer made the token's signature.
    fn verify(
        &self,
        issuer: &Arc<Issuer>,
        token: &Token<'_>,
    ) -> impl Future<Output = Result<(), VerifyFault>> + Send;
}

impl Subject {
    fn of(known: Known) -> Self {
        Self(Some(Arc::new(known)))
    }

    /// The `sub` of the token, or the owner of the key. `None` on an open route.
    pub fn id(&self) -> Option<&str> {
        self.0.as_ref().map(|known| known.id.as_str())
    }

    /// The name of the subject in limits and logs: its id, and where there are several issuers also `@` and the
    /// issuer's name in the policy, because two issuers may use the same `sub` for two people.
    pub fn identity(&self) -> Option<&str> {
        self.0.as_ref().map(|known| known.identity.as_str())
    }

    /// The issuer that vouches for the id, where there are several: the `iss` that the policy requires. `None` where
    /// the id alone is unambiguous, as for the owner of an API key.
    pub fn issuer(&self) -> Option<&str> {
        match &self.0.as_ref()?.proof {
            Proven::ByToken { issuer, iss, .. } => issuer.is_one_of_several.then_some(iss.as_str()),
            Proven::ByKey(_) => None,
        }
    }

    /// Whether the roles of its token are forwarded to the service.
    pub(crate) fn forwards_roles(&self) -> bool {
        self.roles_field().is_some()
    }

    /// The header field in which the roles of its token are forwarded.
    fn roles_field(&self) -> Option<&Arc<str>> {
        match &self.0.as_ref()?.proof {
            Proven::ByToken { issuer, .. } => {
                issuer.forward.iter().find(|(claim, _)| *claim == issuer.roles_claim).map(|(_, field)| field)
            }
            Proven::ByKey(_) => None,
        }
    }

    /// The same subject with its current roles, in place of those in its token.
    pub(crate) fn with_roles(self, roles: &[String]) -> Self {
        if self.roles() == roles {
            return self;
        }
        let field = self.roles_field().cloned();
        let Some(known) = self.0 else { return self };
        let mut known = Arc::unwrap_or_clone(known);
        roles.clone_into(&mut known.roles);
        if let Some(field) = field {
            known.headers.retain(|(name, _)| *name != field);
            let joined = roles.join(",");
            if !roles.is_empty() && plain(&joined) {
                known.headers.push((field, joined));
            }
        }
        Self::of(known)
    }

    /// Whether its proof is a token.
    pub(crate) fn has_token(&self) -> bool {
        self.0.as_ref().is_some_and(|known| matches!(known.proof, Proven::ByToken { .. }))
    }

    /// Its roles.
    pub fn roles(&self) -> &[String] {
        self.0.as_ref().map_or(&[], |known| &known.roles)
    }

    /// The identity headers for the upstream.
    pub fn headers(&self) -> &[(Arc<str>, String)] {
        self.0.as_ref().map_or(&[], |known| &known.headers)
    }

    /// How it proved who it is, for metrics: `jwt` or `api_key`.
    pub fn method(&self) -> Option<&'static str> {
        self.0.as_ref().map(|known| match known.proof {
            Proven::ByToken { .. } => "jwt",
            Proven::ByKey(_) => "api_key",
        })
    }

    /// The id of its API key, if its proof is one.
    pub fn key(&self) -> Option<&str> {
        self.holder().map(|holder| &*holder.id)
    }

    /// The permissions to which its API key is limited. Empty when it may do whatever its owner may do.
    pub fn scopes(&self) -> &[(String, String)] {
        self.holder().map_or(&[], |holder| &holder.scopes)
    }

    fn holder(&self) -> Option<&KeyHolder> {
        match &self.0.as_ref()?.proof {
            Proven::ByKey(holder) => Some(holder),
            Proven::ByToken { .. } => None,
        }
    }

    /// The things that a revocation may name. `None` on an open route.
    pub fn credential(&self) -> Option<Credential<'_>> {
        let known = self.0.as_ref()?;
        Some(match &known.proof {
            Proven::ByToken { jti, issued_at, .. } => Credential {
                sub: &known.id,
                identity: &known.identity,
                jti: jti.as_deref(),
                issued_at: *issued_at,
                is_key: false,
            },
            Proven::ByKey(holder) => Credential {
                sub: &known.id,
                identity: &known.identity,
                jti: Some(&holder.id),
                issued_at: None,
                is_key: true,
            },
        })
    }

    /// When its token or key ends. `None` when there is no proof, or a key that never expires.
    pub fn ends(&self) -> Option<Timestamp> {
        match &self.0.as_ref()?.proof {
            Proven::ByToken { ends, .. } => Some(*ends),
            Proven::ByKey(holder) => holder.expires_at,
        }
    }

    /// Whether a token that was verified before is valid for this route now.
    fn serves(&self, rule: &AuthRule, now: Timestamp) -> bool {
        match self.0.as_ref().map(|known| &known.proof) {
            // `begins` is checked too, because the clock may have been set back.
            Some(Proven::ByToken { issuer, begins, ends, .. }) => {
                *ends > now && *begins <= now && rule.issuers.iter().any(|ours| Arc::ptr_eq(ours, issuer))
            }
            _ => false,
        }
    }
}

/// The proof that a client sent.
enum Proof<'r> {
    Token(&'r str),
    Key(&'r str),
}

fn refuse(code: Code, detail: &str) -> Refusal {
    Refusal::new(Stage::Authenticate, code, detail)
}

/// `auth` of a route: the proofs that it accepts. Without any the route is open.
#[derive(Clone, Debug, Default)]
pub struct AuthRule {
    /// The issuers whose tokens are accepted.
    pub issuers: Vec<Arc<Issuer>>,
    /// Whether API keys are accepted.
    pub api_keys: bool,
}

impl AuthRule {
    /// Whether a client has to prove who it is.
    pub fn wants_proof(&self) -> bool {
        self.api_keys || !self.issuers.is_empty()
    }

    /// Finds out who is asking, by the route's `auth`.
    pub async fn authenticate<W: Proofs>(
        &self,
        rule: &PermissionRule,
        request: &Request<'_>,
        world: &W,
        now: Timestamp,
    ) -> Result<Subject, Refusal> {
        if !self.wants_proof() {
            return Ok(Subject(None));
        }
        let subject = match self.proof(request)? {
            Proof::Token(text) => self.by_token(text, world, now).await?,
            Proof::Key(key) => self.by_key(rule, key, world, now).await?,
        };
        match subject.credential() {
            Some(credential) if world.revoked(&credential) => {
                Err(refuse(Code::TokenRevoked, "what proves who you are was revoked: log in again"))
            }
            _ => Ok(subject),
        }
    }

    async fn by_token<W: Proofs>(&self, text: &str, world: &W, now: Timestamp) -> Result<Subject, Refusal> {
        if text.len() <= MAX_TOKEN
            && let Some(subject) = world.recall(text).filter(|subject| subject.serves(self, now))
        {
            return Ok(subject);
        }
        let malformed =
            |fault: TokenFault| refuse(Code::TokenInvalid, &fault.to_string()).because(fault.reason());
        let token = Token::parse(text).map_err(malformed)?;
        let claimed = token.claims.get("iss").and_then(Value::as_str);
        let ours = |issuer: &&Arc<Issuer>| issuer.issuer.is_none() || issuer.issuer.as_deref() == claimed;
        // Issuers without `issuer` in the policy can be distinguished only by their keys, so each is tried.
        let mut verdict =
            Err(refuse(Code::TokenInvalid, "the token is from another issuer").because("claims.iss"));
        for (tried, issuer) in self.issuers.iter().filter(ours).enumerate() {
            let judged = judge(issuer, &token, world, now).await;
            if judged.is_ok() || tried == 0 {
                verdict = judged;
            }
            if verdict.is_ok() {
                break;
            }
        }
        verdict.inspect(|subject| world.remember(text, subject))
    }

    async fn by_key<W: Proofs>(
        &self,
        rule: &PermissionRule,
        key: &str,
        world: &W,
        now: Timestamp,
    ) -> Result<Subject, Refusal> {
        let invalid = |reason: &'static str| {
            refuse(Code::ApiKeyInvalid, "the API key is unknown, expired or its owner is inactive")
                .because(reason)
        };
        if !key.starts_with(KEY_PREFIX) || key.len() > LONGEST_KEY {
            return Err(invalid("malformed"));
        }
        let holder = world.key_holder(rule, key).await.map_err(|_| {
            refuse(Code::ApiKeyUnavailable, "API keys cannot be checked now")
                .retry_after(Some(Duration::from_secs(1)))
        })?;
        let holder = holder.ok_or_else(|| invalid("unknown"))?;
        if holder.expires_at.is_some_and(|end| end <= now) {
            return Err(invalid("expired"));
        }
        let (user, roles) = self.identity_fields();
        let joined = holder.roles.join(",");
        if !plain(&holder.user) || !plain(&joined) {
            return Err(invalid("owner"));
        }
        let headers = vec![(user, holder.user.clone()), (roles, joined)];
        let (id, roles) = (holder.user.clone(), holder.roles.clone());
        let identity = id.clone();
        Ok(Subject::of(Known { id, identity, roles, headers, proof: Proven::ByKey(holder) }))
    }

    /// The header fields for the owner of a key and the owner's roles. They are the same as for the route's tokens.
    fn identity_fields(&self) -> (Arc<str>, Arc<str>) {
        let field = |claim: &str| {
            let forward = self.issuers.first().map(|issuer| &issuer.forward)?;
            forward.iter().find(|(name, _)| name == claim).map(|(_, field)| Arc::clone(field))
        };
        let roles_claim = self.issuers.first().map_or("roles", |issuer| &issuer.roles_claim);
        (
            field("sub").unwrap_or_else(|| "x-auth-user".into()),
            field(roles_claim).unwrap_or_else(|| "x-auth-roles".into()),
        )
    }

    /// The proof of a request. More than one is refused.
    fn proof<'r>(&self, request: &Request<'r>) -> Result<Proof<'r>, Refusal> {
        let missing = || {
            refuse(
                Code::TokenMissing,
                if self.api_keys {
                    "send `Authorization: Bearer TOKEN` or `X-API-Key: KEY`"
                } else {
                    "send `Authorization: Bearer TOKEN`"
                },
            )
        };
        let one = |name| {
            let mut fields = request.headers.all(name);
            match (fields.next(), fields.next()) {
                (first, None) => Ok(first),
                _ => Err(refuse(Code::TokenInvalid, "send one proof of who you are, not several")
                    .because("several")),
            }
        };
        let text = |field: &'r [u8]| {
            let fault = || refuse(Code::TokenInvalid, "the proof is not ASCII").because("malformed");
            std::str::from_utf8(field).map_err(|_| fault())
        };
        let key = if self.api_keys { one(KEY_FIELD)? } else { None };
        match (one("authorization")?, key) {
            (Some(_), Some(_)) => {
                Err(refuse(Code::TokenInvalid, "send one proof of who you are, not several")
                    .because("several"))
            }
            (None, Some(key)) => text(key).map(Proof::Key),
            (None, None) => Err(missing()),
            (Some(field), None) => {
                let (scheme, proof) = text(field)?.split_once(' ').ok_or_else(missing)?;
                let proof = proof.trim_start_matches(' ');
                let bearer = scheme.eq_ignore_ascii_case("bearer");
                let is_key =
                    scheme.eq_ignore_ascii_case("apikey") || (bearer && proof.starts_with(KEY_PREFIX));
                match (self.api_keys && is_key, bearer && !self.issuers.is_empty()) {
                    (true, _) => Ok(Proof::Key(proof)),
                    (false, true) => Ok(Proof::Token(proof)),
                    (false, false) => Err(missing()),
                }
            }
        }
    }
}

async fn judge<W: Proofs>(
    issuer: &Arc<Issuer>,
    token: &Token<'_>,
    world: &W,
    now: Timestamp,
) -> Result<Subject, Refusal> {
    let refuse = |code, detail: &str| refuse(code, detail).by(&issuer.name);
    if !issuer.algorithms.contains(&token.algorithm) {
        return Err(refuse(Code::TokenInvalid, "the token's algorithm is not accepted").because("algorithm"));
    }
    world.verify(issuer, token).await.map_err(|fault| match fault {
        VerifyFault::Forged => {
            refuse(Code::TokenInvalid, "the token's signature is wrong").because("signature")
        }
        VerifyFault::UnknownKey => {
            refuse(Code::TokenInvalid, "the token is signed with an unknown key").because("unknown_key")
        }
        VerifyFault::Unavailable => {
            refuse(Code::KeysUnavailable, "the keys that verify tokens are unavailable")
                .retry_after(Some(Duration::from_secs(5)))
        }
    })?;
    let judged = issuer.judge(token, now);
    let claims =
        judged.map_err(|TokenRefusal { code, detail, reason }| refuse(code, &detail).because(reason))?;
    // From the policy, not from the token: an issuer without `iss` in the policy may write any `iss` into its tokens.
    let iss = issuer.issuer.as_deref().unwrap_or_default();
    let identity =
        if issuer.is_one_of_several { format!("{}@{}", claims.id, issuer.name) } else { claims.id.clone() };
    Ok(Subject::of(Known {
        id: claims.id,
        identity,
        roles: claims.roles,
        headers: claims.headers,
        proof: Proven::ByToken {
            issuer: Arc::clone(issuer),
            iss: iss.to_owned(),
            jti: claims.jti,
            issued_at: claims.issued_at,
            begins: claims.begins,
            ends: claims.ends,
        },
    }))
}
