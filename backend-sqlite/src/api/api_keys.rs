//! `/v1/api-keys`: an account's own API keys; and whose key it is that the gateway asks about.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use protocol::keys::{KeyHolder, WhoseKey};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clock::{now, seconds};
use crate::http::app::App;
use crate::http::extract::{Body, Path};
use crate::http::identity::{Account, Gateway, Holder};
use crate::http::reauthentication::{self, Proof};
use crate::model::api_keys::{self, MOST};
use crate::model::grants::Grant;
use crate::problem::{Problem, Result, internal};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewKey {
    name: String,
    /// Without: whatever its owner may do.
    scopes: Option<Vec<Grant>>,
    /// `"30d"`; without: until it is deleted.
    expires_in: Option<String>,
    /// The account's password, where the last login is more than five minutes ago.
    password: Option<String>,
    /// A code of the second factor beside the password.
    totp: Option<String>,
}

/// `POST /v1/api-keys`
pub(crate) async fn create(
    holder: Holder,
    State(app): State<App>,
    Body(mut new): Body<NewKey>,
) -> Result<Response> {
    if new.name.is_empty() || new.name.len() > 128 || new.name.chars().any(char::is_control) {
        return Err(Problem::unprocessable(
            "invalid_name",
            "a name has 1 to 128 bytes and no control characters",
        ));
    }
    if let Some(scopes) = &new.scopes {
        if scopes.is_empty() || scopes.len() > MOST {
            let detail = format!("from 1 to {MOST} scopes; without any, leave `scopes` out");
            return Err(Problem::unprocessable("invalid_scopes", detail));
        }
        scopes.iter().try_for_each(Grant::check)?;
    }
    let expires_at = new.expires_in.as_deref().map(end_of).transpose()?;
    let proof = Proof { password: new.password.take(), totp: new.totp.take() };
    reauthentication::require(&app, &holder, proof).await?;
    let (id, key) = api_keys::generate().map_err(internal)?;
    let shown = json!({
        "id": id, "key": key, "name": new.name, "scopes": new.scopes, "expires_at": expires_at,
    });
    let NewKey { name, scopes, .. } = new;
    let new = api_keys::NewKey { id, key, user: holder.user.id, name, scopes, expires_at };
    app.database.write(move |transaction| api_keys::add(transaction, &new)).await?;
    app.metrics.user_operations.with_label_values(&["create_api_key"]).inc();
    Ok((StatusCode::CREATED, Json(shown)).into_response())
}

fn end_of(text: &str) -> Result<i64> {
    const LONGEST: Duration = Duration::from_hours(10 * 365 * 24);
    let lasts = humantime::parse_duration(text).ok().filter(|lasts| !lasts.is_zero() && *lasts <= LONGEST);
    let lasts = lasts.ok_or_else(|| {
        let detail = format!("expires_in is a duration like \"30d\", at most 10 years (got {text:?})");
        Problem::unprocessable("invalid_expiry", detail)
    })?;
    Ok(now().saturating_add(seconds(lasts)))
}

/// `GET /v1/api-keys`: one's own, without the keys themselves.
pub(crate) async fn list(Account(user): Account, State(app): State<App>) -> Result<Json<Value>> {
    let items = app.database.read(move |transaction| api_keys::list(transaction, &user.id)).await?;
    Ok(Json(json!({"items": items})))
}

/// `DELETE /v1/api-keys/{id}`: one of one's own.
pub(crate) async fn remove(
    Account(user): Account,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    app.database.write(move |transaction| api_keys::remove(transaction, &id, &user.id)).await?;
    app.metrics.user_operations.with_label_values(&["delete_api_key"]).inc();
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /internal/api-keys`, for the gateway.
pub(crate) async fn verify(
    _: Gateway,
    State(app): State<App>,
    Body(shown): Body<WhoseKey>,
) -> Result<Json<KeyHolder>> {
    let hash = unhex(&shown.sha256).ok_or_else(|| Problem::bad_request("sha256 is 64 hexadecimal digits"))?;
    let rules = Arc::clone(&app.rules);
    let holder =
        app.database.read(move |transaction| api_keys::holder(transaction, &hash, &rules.require_totp_for));
    Ok(Json(holder.await?))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (text.len() == 64).then(|| (0..64).step_by(2).map(digits).collect())?
}
