//! API keys: made by an account for a program that acts for it. Shown once, kept as a hash, with a scope and an end where
//! wanted.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use rusqlite::params;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::{now, seconds};
use crate::http::app::App;
use crate::http::extract::{Body, Path};
use crate::http::identity::{Account, Gateway, Holder};
use crate::http::reauthentication::{self, Proof};
use crate::model::changes::{self, Subject};
use crate::model::grants::Grant;
use crate::model::permissions;
use crate::model::users;
use crate::problem::{Problem, Result, internal};
use crate::random::{fingerprint, random_token};
use crate::storage::sql;
use crate::storage::{Result as DbResult, Transaction};

/// What every key begins with, so that scanners of source code and the gateway know it for one.
const PREFIX: &str = "pal_";

/// Of a key, what its owner is shown later.
const HINT: usize = PREFIX.len() + 6;

/// The most keys of one account, and scopes of one key.
const MOST: usize = 100;

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
    let user = holder.user;
    let key = format!("{PREFIX}{}", random_token().map_err(internal)?);
    let (id, hash, hint) = (uuid::Uuid::now_v7().to_string(), fingerprint(&key), key[..HINT].to_owned());
    let shown = json!({
        "id": id, "key": key, "name": new.name, "scopes": new.scopes, "expires_at": expires_at,
    });
    let kept = new.scopes.map(|scopes| json!(scopes).to_string());
    let made = app.database.write(move |transaction| {
        if transaction.rows(sql::API_KEYS_OF_USER, [&user.id], |_| Ok(()))?.len() >= MOST {
            return Ok(Err(Problem::new(
                StatusCode::CONFLICT,
                "too_many_keys",
                format!("an account has at most {MOST} keys: delete one"),
            )));
        }
        let values = params![id, user.id, new.name, hash, hint, kept, now(), expires_at];
        transaction.run(sql::ADD_API_KEY, values)?;
        // Gateways may remember that there is no such key.
        changes::note(transaction, Subject::ApiKey(&id)).map(Ok)
    });
    made.await??;
    app.metrics.user_operations.with_label_values(&["create_api_key"]).inc();
    Ok((StatusCode::CREATED, Json(shown)).into_response())
}

/// Deletes every key of an account, and has gateways know it.
pub(crate) fn remove_all(transaction: &Transaction<'_>, user: &str) -> DbResult<()> {
    let all: Vec<String> = transaction.rows(sql::API_KEYS_OF_USER, [user], |row| row.get(0))?;
    for id in &all {
        transaction.run(sql::DROP_API_KEY, [id.as_str(), user])?;
        changes::note(transaction, Subject::ApiKey(id))?;
    }
    Ok(())
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

/// The scopes of a key as they are kept: an empty list where it has no limit, `None` when they cannot be read.
fn scopes(text: Option<String>) -> Option<Vec<Grant>> {
    text.map_or(Some(Vec::new()), |text| {
        serde_json::from_str(&text).ok().filter(|all: &Vec<Grant>| !all.is_empty())
    })
}

/// `GET /v1/api-keys`: one's own, without the keys themselves.
pub(crate) async fn list(Account(user): Account, State(app): State<App>) -> Result<Json<Value>> {
    let items = app.database.read(move |transaction| {
        transaction.rows(sql::API_KEYS_OF_USER, [&user.id], |row| {
            Ok(json!({
                "id": row.get::<_, String>(0)?,
                "name": row.get::<_, String>(1)?,
                "hint": row.get::<_, String>(2)?,
                "scopes": scopes(row.get(3)?),
                "created_at": row.get::<_, i64>(4)?,
                "expires_at": row.get::<_, Option<i64>>(5)?,
            }))
        })
    });
    Ok(Json(json!({"items": items.await?})))
}

/// `DELETE /v1/api-keys/{id}`: one of one's own.
pub(crate) async fn remove(
    Account(user): Account,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    let removed = app.database.write(move |transaction| {
        if transaction.run(sql::DROP_API_KEY, [&id, &user.id])? == 0 {
            return Ok(Err(Problem::not_found("key")));
        }
        changes::note(transaction, Subject::ApiKey(&id)).map(Ok)
    });
    removed.await??;
    app.metrics.user_operations.with_label_values(&["delete_api_key"]).inc();
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shown {
    /// SHA-256 of the key, hexadecimal: the key itself goes no further than the gateway.
    sha256: String,
}

/// What the gateway is told of a key.
#[derive(Serialize)]
pub(crate) struct KeyHolder {
    revision: i64,
    #[serde(flatten)]
    key: Option<Key>,
}

#[derive(Serialize)]
struct Key {
    id: String,
    user: String,
    roles: Vec<String>,
    groups: Vec<String>,
    scopes: Vec<Grant>,
    expires_at: Option<i64>,
}

/// `POST /internal/api-keys`, for the gateway: whose key it is; nothing but the revision when it is no good.
pub(crate) async fn verify(
    _: Gateway,
    State(app): State<App>,
    Body(shown): Body<Shown>,
) -> Result<Json<KeyHolder>> {
    let hash = unhex(&shown.sha256).ok_or_else(|| Problem::bad_request("sha256 is 64 hexadecimal digits"))?;
    let settings = std::sync::Arc::clone(&app.accounts);
    let holder = app.database.read(move |transaction| {
        let revision = changes::revision(transaction)?; // first, as in `permissions::judge`
        let found: Option<(String, String, Option<String>, Option<i64>)> =
            transaction.row(sql::API_KEY_BY_HASH, [&hash], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })?;
        let found = found.filter(|(.., ends)| ends.is_none_or(|ends| ends > now()));
        let Some((id, owner, kept, expires_at)) = found else { return Ok(KeyHolder { revision, key: None }) };
        let Some(user) = users::by_id(transaction, &owner)?.filter(|user| user.active) else {
            return Ok(KeyHolder { revision, key: None });
        };
        let all = permissions::all_roles(transaction, &owner)?;
        let roles = permissions::counting_roles(&all, &user, &settings.require_totp_for);
        let Some(scopes) = scopes(kept) else { return Ok(KeyHolder { revision, key: None }) };
        let groups = permissions::groups(transaction, &owner)?;
        let key = Key { id, user: owner, roles, groups, scopes, expires_at };
        Ok(KeyHolder { revision, key: Some(key) })
    });
    Ok(Json(holder.await?))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (text.len() == 64).then(|| (0..64).step_by(2).map(digits).collect())?
}
