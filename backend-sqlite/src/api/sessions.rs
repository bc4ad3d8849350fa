//! `/v1/auth/sessions`: an account's own sessions.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::http::app::App;
use crate::http::extract::Path;
use crate::http::identity::Account;
use crate::model::sessions;
use crate::problem::Result;

/// `GET /v1/auth/sessions`: one's own.
pub(crate) async fn list(Account(user): Account, State(app): State<App>) -> Result<Json<Value>> {
    let items = app.database.read(move |transaction| sessions::list(transaction, &user.id)).await?;
    Ok(Json(json!({"items": items})))
}

/// `DELETE /v1/auth/sessions/{id}`: one of one's own.
pub(crate) async fn remove(
    Account(user): Account,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    app.database.write(move |transaction| sessions::end_own(transaction, &id, &user.id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /v1/auth/sessions`: all of one's own, this one included.
pub(crate) async fn remove_all(Account(user): Account, State(app): State<App>) -> Result<StatusCode> {
    app.database.write(move |transaction| sessions::end_all(transaction, &user.id)).await?;
    Ok(StatusCode::NO_CONTENT)
}
