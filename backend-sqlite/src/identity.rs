//! Whose word is believed: the gateway's, which shows its token, and through it the user's.
//!
//! Every call but health, metrics and the public keys must come through the gateway: going round it gives nothing.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;

use crate::problem::{Problem, Result};
use crate::serve::App;

/// Refuses whoever does not show the gateway's token.
pub(crate) async fn from_gateway(State(app): State<App>, request: Request, next: Next) -> Result<Response> {
    let shown = request.headers().get("x-gateway-token").map(axum::http::HeaderValue::as_bytes);
    match (&app.secrets.gateway_token, shown) {
        (Some(token), Some(shown)) if token.matches(shown) => Ok(next.run(request).await),
        _ => Err(Problem::unauthorized("not_the_gateway", "this address answers the gateway alone")),
    }
}

/// The administrator who asks, as the gateway found out.
pub(crate) struct Administrator;

impl<S: Sync> FromRequestParts<S> for Administrator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let roles =
            parts.headers.get("x-auth-roles").and_then(|value| value.to_str().ok()).unwrap_or_default();
        if roles.split(',').any(|role| role == "admin") {
            return Ok(Self);
        }
        let status = axum::http::StatusCode::FORBIDDEN;
        Err(Problem::new(status, "role_missing", "needs the role admin"))
    }
}
