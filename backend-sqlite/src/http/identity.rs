//! Who asks, as the gateway asserts ([`crate::http::assertion`]). No other header field is trusted for that.

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::header;
use axum::http::request::Parts;

use crate::config::ADMIN;
use crate::http::app::App;
use crate::http::assertion::{Assertion, not_the_gateway};
use crate::http::client::Client;
use crate::model::sessions::Origin;
use crate::model::users::{self, User};
use crate::model::{access_tokens, permissions};
use crate::problem::{Problem, Result};

/// Who asks, as the gateway found out.
pub(crate) struct Caller {
    pub(crate) client: Client,
    user_agent: String,
}

impl Caller {
    /// Where the request came from, as it is shown to the account's owner.
    pub(crate) fn origin(&self) -> Origin {
        Origin { address: self.client.address.clone(), user_agent: self.user_agent.clone() }
    }
}

fn assertion(parts: &Parts) -> Result<Assertion> {
    parts.extensions.get::<Assertion>().cloned().ok_or_else(not_the_gateway)
}

/// Whether the subject may be an account of ours: another issuer's is not, whatever its id.
fn is_ours(asserted: &Assertion) -> bool {
    asserted.sub_issuer.as_deref().is_none_or(|issuer| issuer == access_tokens::ISSUER)
}

fn user_agent(headers: &HeaderMap) -> String {
    const LONGEST: usize = 256;
    let sent = headers.get("user-agent").and_then(|value| value.to_str().ok()).unwrap_or_default();
    sent.chars().take(LONGEST).collect()
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let client = Client::new(&assertion(parts)?.address, &parts.headers);
        Ok(Self { client, user_agent: user_agent(&parts.headers) })
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
        Err(Problem::forbidden("not_the_gateway", "this address answers the gateway alone"))
    }
}

/// An account of ours that asks for itself.
pub(crate) struct Account(pub(crate) User);

impl FromRequestParts<App> for Account {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let missing = || Problem::forbidden("account_missing", "needs an account of this service");
        let asserted = assertion(parts)?;
        let id = asserted.sub.clone().filter(|_| is_ours(&asserted)).ok_or_else(missing)?;
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

/// An administrator. For an account of ours the role is looked up, because a token may still carry one that was taken
/// back. The roles of other issuers' subjects are those that the gateway asserts.
pub(crate) struct Administrator;

impl FromRequestParts<App> for Administrator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let asserted = assertion(parts)?;
        let refused = || Problem::forbidden("role_missing", "needs the role admin");
        if !asserted.roles.iter().any(|role| role == ADMIN) {
            return Err(refused());
        }
        let Some(id) = asserted.sub.clone() else { return Err(refused()) };
        if !is_ours(&asserted) {
            return Ok(Self);
        }
        let rules = std::sync::Arc::clone(&app.rules);
        let holds = app.database.read(move |transaction| {
            permissions::holds_role(transaction, &id, ADMIN, &rules.require_totp_for)
        });
        // A subject without an account here has the roles that the gateway asserts.
        if holds.await?.unwrap_or(true) { Ok(Self) } else { Err(refused()) }
    }
}
