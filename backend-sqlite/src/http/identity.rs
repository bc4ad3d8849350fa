//! Who asks, by the word of the gateway ([`crate::http::assertion`]). What other header fields say about that is not looked at.

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};

use crate::config::ADMIN;
use crate::http::app::App;
use crate::http::assertion::{Assertion, not_the_gateway};
use crate::model::access_tokens;
use crate::model::login_guard::Whereabouts;
use crate::model::permissions;
use crate::model::sessions::Origin;
use crate::model::users::{self, User};
use crate::problem::{Problem, Result};

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
    parts.extensions.get::<Assertion>().cloned().ok_or_else(not_the_gateway)
}

/// Whether the subject may be an account of ours: another issuer's is not, whatever its id.
fn is_ours(said: &Assertion) -> bool {
    said.sub_issuer.as_deref().is_none_or(|issuer| issuer == access_tokens::ISSUER)
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
        let said = assertion(parts)?;
        let id = said.sub.clone().filter(|_| is_ours(&said)).ok_or_else(missing)?;
        let user = app.database.read(move |transaction| users::by_id(transaction, &id)).await?;
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
        if !said.roles.iter().any(|role| role == ADMIN) {
            return Err(refused());
        }
        let Some(id) = said.sub.clone() else { return Err(refused()) };
        if !is_ours(&said) {
            return Ok(Self);
        }
        let settings = std::sync::Arc::clone(&app.accounts);
        let holds = app.database.read(move |transaction| {
            let Some(user) = users::by_id(transaction, &id)? else { return Ok(true) };
            let all = permissions::all_roles(transaction, &id)?;
            let roles = permissions::counting_roles(&all, &user, &settings.require_totp_for);
            Ok(user.active && roles.iter().any(|role| role == ADMIN))
        });
        if holds.await? { Ok(Self) } else { Err(refused()) }
    }
}
