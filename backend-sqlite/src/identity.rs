//! Whose word is believed: the gateway's, which signs what it says, and through it the user's.
//!
//! Every call but health, metrics and the public keys carries an assertion: a JSON Web Token in `x-palisade-assertion`
//! that the gateway signs with the secret that both know, for this method, this target and this request id alone, good
//! for half a minute. It says who asks. What other header fields say about that is not looked at, so that going round the
//! gateway gives nothing, and what is overheard on the way is soon worth nothing.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::Deserialize;

use crate::accounts::{self, User};
use crate::login_guard::Whereabouts;
use crate::permissions;
use crate::problem::{Problem, Result};
use crate::roles::ADMIN;
use crate::serve::App;
use crate::sessions::Origin;

/// The field that carries the assertion.
const FIELD: &str = "x-palisade-assertion";

/// Who signs assertions, and for whom.
const ISSUER: &str = "palisade-gateway";
const AUDIENCE: &str = "palisade-backend";

/// How far the clocks of the two may differ, in seconds.
const LEEWAY: u64 = 5;

/// What the gateway asserts.
#[derive(Clone, Debug, Deserialize)]
struct Assertion {
    method: String,
    target: String,
    request_id: String,
    /// Whether the gateway asks for itself.
    #[serde(default)]
    own: bool,
    sub: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    address: String,
}

/// Verifies assertions.
pub(crate) struct Verifier {
    key: DecodingKey,
    validation: Validation,
}

impl Verifier {
    pub(crate) fn new(gateway_token: &[u8]) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY;
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        Self { key: DecodingKey::from_secret(gateway_token), validation }
    }

    fn assertion(&self, request: &Request) -> Option<Assertion> {
        let mut fields = request.headers().get_all(FIELD).iter();
        let (field, None) = (fields.next()?.to_str().ok()?, fields.next()) else { return None };
        let said = decode::<Assertion>(field, &self.key, &self.validation).ok()?.claims;
        let target = request.uri().path_and_query()?.as_str();
        let id = request.headers().get("x-request-id").map_or(&b""[..], |id| id.as_bytes());
        let about_this = said.method == request.method().as_str()
            && said.target == target
            && said.request_id.as_bytes() == id;
        about_this.then_some(said)
    }
}

/// Refuses whoever does not show the gateway's word for this very request.
pub(crate) async fn from_gateway(
    State(app): State<App>,
    mut request: Request,
    next: Next,
) -> Result<Response> {
    match app.verifier.as_ref().as_ref().and_then(|verifier| verifier.assertion(&request)) {
        Some(assertion) => {
            request.extensions_mut().insert(assertion);
            Ok(next.run(request).await)
        }
        None => Err(Problem::unauthorized("not_the_gateway", "this address answers the gateway alone")),
    }
}

/// Who asks, as the gateway found out.
pub(crate) struct Caller {
    /// Where the request came from.
    pub(crate) whereabouts: Whereabouts,
    user_agent: String,
}

impl Caller {
    /// Where the request came from, as it is shown to the account's owner.
    pub(crate) fn origin(&self) -> Origin {
        Origin { address: self.whereabouts.address.clone(), user_agent: self.user_agent.clone() }
    }
}

fn assertion(parts: &Parts) -> Result<Assertion> {
    let missing = || Problem::unauthorized("not_the_gateway", "this address answers the gateway alone");
    parts.extensions.get::<Assertion>().cloned().ok_or_else(missing)
}

fn user_agent(headers: &HeaderMap) -> String {
    const LONGEST: usize = 256;
    let sent = headers.get("user-agent").and_then(|value| value.to_str().ok()).unwrap_or_default();
    sent.chars().take(LONGEST).collect()
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let whereabouts = Whereabouts::new(&assertion(parts)?.address, &parts.headers);
        Ok(Self { whereabouts, user_agent: user_agent(&parts.headers) })
    }
}

/// The gateway, asking for itself.
pub(crate) struct Gateway;

impl<S: Sync> FromRequestParts<S> for Gateway {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        if assertion(parts)?.own {
            return Ok(Self);
        }
        Err(Problem::new(StatusCode::FORBIDDEN, "not_the_gateway", "this address answers the gateway alone"))
    }
}

/// An account of ours that asks for itself.
pub(crate) struct Account(pub(crate) User);

impl FromRequestParts<App> for Account {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let missing =
            || Problem::new(StatusCode::FORBIDDEN, "account_missing", "needs an account of this service");
        let id = assertion(parts)?.sub.ok_or_else(missing)?;
        let user = app.database.read(move |session| accounts::by_id(session, &id)).await?;
        user.filter(|user| user.active).map(Self).ok_or_else(missing)
    }
}

/// An account of ours that asks for itself, and how lately its owner proved to be that.
pub(crate) struct Holder {
    pub(crate) user: User,
    pub(crate) caller: Caller,
    /// Seconds since the Unix epoch, by an access token of ours; `None`: something else let the request in.
    pub(crate) auth_time: Option<i64>,
}

impl FromRequestParts<App> for Holder {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let Account(user) = Account::from_request_parts(parts, app).await?;
        let caller = Caller::from_request_parts(parts, app).await?;
        let mut fields = parts.headers.get_all(header::AUTHORIZATION).iter();
        let token = match (fields.next(), fields.next()) {
            (Some(field), None) => field.to_str().ok().and_then(|field| field.split_once(' ')),
            _ => None,
        };
        let auth_time = token
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .and_then(|(_, token)| app.signer.auth_time(token.trim(), &user.id));
        Ok(Self { user, caller, auth_time })
    }
}

/// An administrator. For an account of ours the role is looked up: one that was taken back is not believed until the
/// token has expired. Somebody else's roles are those that the gateway vouches for.
pub(crate) struct Administrator;

impl FromRequestParts<App> for Administrator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let said = assertion(parts)?;
        let refused = || Problem::new(StatusCode::FORBIDDEN, "role_missing", "needs the role admin");
        let Some(id) = said.sub.filter(|_| said.roles.iter().any(|role| role == ADMIN)) else {
            return Err(refused());
        };
        let settings = std::sync::Arc::clone(&app.accounts);
        let holds = app.database.read(move |session| {
            let Some(user) = accounts::by_id(session, &id)? else { return Ok(true) };
            let all = permissions::all_roles(session, &id)?;
            let roles = permissions::counting_roles(&all, &user, &settings.require_totp_for);
            Ok(user.active && roles.iter().any(|role| role == ADMIN))
        });
        if holds.await? { Ok(Self) } else { Err(refused()) }
    }
}
