//! `/v1/auth/totp`: an account's own second factor.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::app::App;
use crate::http::extract::{Body, Optional};
use crate::http::identity::{Account, Holder};
use crate::http::proof::{self, Admitted};
use crate::http::reauthentication::{self, Proof};
use crate::model::second_factor::{self, NotDisabled, enrolled, wrong_code};
use crate::problem::{Result, internal};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Code {
    code: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Disable {
    code: String,
    /// The account's password, where the last login is more than five minutes ago.
    password: Option<String>,
}

/// `POST /v1/auth/totp/enroll`: a secret for an authenticator app. It counts once it is confirmed.
pub(crate) async fn enroll(
    holder: Holder,
    State(app): State<App>,
    Optional(proof): Optional<Proof>,
) -> Result<Json<Value>> {
    if holder.user.totp_secret.is_some() {
        return Err(enrolled());
    }
    reauthentication::require(&app, &holder, proof).await?;
    let user = holder.user;
    let secret = second_factor::new_secret(&user.username).map_err(internal)?;
    let shown = json!({"secret": secret.base32, "otpauth_url": secret.otpauth_url});
    app.database
        .write(move |transaction| second_factor::enroll(transaction, &user.id, &secret.bytes))
        .await?;
    Ok(Json(shown))
}

/// `POST /v1/auth/totp/confirm`: shows that the app has the secret; from now on logins need a code. The recovery codes
/// in the response are shown this once.
pub(crate) async fn confirm(
    Account(user): Account,
    State(app): State<App>,
    Body(Code { code }): Body<Code>,
) -> Result<Json<Value>> {
    let codes = second_factor::recovery_codes().map_err(internal)?;
    let shown = json!({"recovery_codes": codes});
    app.database
        .write(move |transaction| second_factor::confirm(transaction, &user.id, &code, &codes))
        .await?;
    app.metrics.user_operations.with_label_values(&["totp_confirm"]).inc();
    Ok(Json(shown))
}

/// `POST /v1/auth/totp/disable`: needs a code, and a password that was proved lately. A wrong one counts as a failed
/// login.
pub(crate) async fn disable(
    holder: Holder,
    State(app): State<App>,
    Body(Disable { code, password }): Body<Disable>,
) -> Result<StatusCode> {
    if holder.user.totp_secret.is_none() {
        return Err(wrong_code());
    }
    if password.is_some() {
        // Password and code are proved together, which uses the code up.
        reauthentication::require(&app, &holder, Proof { password, totp: Some(code) }).await?;
        app.database.write(move |transaction| second_factor::remove(transaction, &holder.user.id)).await?;
    } else {
        reauthentication::require(&app, &holder, Proof::default()).await?;
        disable_with_code(&app, &holder, code).await?;
    }
    app.metrics.user_operations.with_label_values(&["totp_disable"]).inc();
    Ok(StatusCode::NO_CONTENT)
}

async fn disable_with_code(app: &App, holder: &Holder, code: String) -> Result<()> {
    let Holder { user, caller, .. } = holder;
    let Admitted { attempt, ticket, .. } = proof::admit(app, &user.username, &caller.client).await?;
    let (rule, id) = (app.rules.lockout, user.id.clone());
    let disabled = app.database.write_and_commit_refusal(move |transaction| {
        second_factor::disable(transaction, &id, &code, &attempt, &rule)
    });
    match disabled.await? {
        Ok(()) => {
            ticket.succeeded();
            Ok(())
        }
        Err(NotDisabled::NotEnrolled) => {
            ticket.give_back();
            Err(wrong_code())
        }
        Err(NotDisabled::WrongCode(failed)) => {
            proof::count(app, failed);
            ticket.failed(failed.in_a_row);
            Err(wrong_code())
        }
    }
}
