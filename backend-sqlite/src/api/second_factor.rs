//! The second factor: time-based one-time passwords (RFC 6238) and recovery codes. A code is good once.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use rusqlite::params;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use totp_rs::{Builder, Totp};

use crate::clock::now;
use crate::http::app::App;
use crate::http::extract::{Body, Optional};
use crate::http::identity::{Account, Holder};
use crate::http::proof::{self, Admitted};
use crate::http::reauthentication::{self, Proof};
use crate::model::changes::{self, Subject};
use crate::model::lockout::{self, Failed};
use crate::model::users::{self, User};
use crate::problem::{Problem, Result, internal};
use crate::random::{fingerprint, random_bytes};
use crate::storage::sql;
use crate::storage::{Result as DbResult, Transaction};

/// What authenticator apps show beside the account.
const ISSUER: &str = "Palisade";

/// Codes that help once when the device is lost.
const RECOVERY_CODES: usize = 10;

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

/// Six digits, 30 s, SHA-1, one step of drift either way: what every authenticator app understands.
fn totp(secret: &[u8], account: &str) -> anyhow::Result<Totp> {
    let builder = Builder::new().with_secret(secret).with_account_name(account).with_issuer(Some(ISSUER));
    builder.build().map_err(|error| anyhow::anyhow!("totp: {error}"))
}

/// Steps that a code may be ahead of ours.
const DRIFT: i64 = 1;

/// The used steps that are remembered of an account: more than a clock is set back while one code is good.
const REMEMBERED: i64 = 16;

/// The step that a code is of, when it is right now.
fn step_of(secret: &[u8], code: &str) -> Option<i64> {
    let now = u64::try_from(now()).ok()?;
    // Apps show a code in groups, and people send it so.
    let digits: String = code.chars().filter(|char| !char.is_whitespace() && *char != '-').collect();
    let step = totp(secret, "account").ok()?.check(&digits, now)?;
    i64::try_from(step).ok()
}

/// Uses up a step: whether neither it nor a later one was used. A step that nobody could have used by now was used under a
/// clock that was set back since, and says nothing.
fn use_step(transaction: &Transaction<'_>, user: &str, step: i64) -> DbResult<bool> {
    let latest = step.saturating_add(2 * DRIFT);
    if transaction.row(sql::TOTP_STEP_USED, params![user, step, latest], |_| Ok(()))?.is_some() {
        return Ok(false);
    }
    transaction.run(sql::USE_TOTP_STEP, params![user, step])?;
    transaction.run(sql::FORGET_TOTP_STEPS, params![user, REMEMBERED])?;
    Ok(true)
}

/// Uses up a code of the app or a recovery code; whether it was good.
pub(crate) fn use_code(transaction: &Transaction<'_>, user: &User, code: &str) -> DbResult<bool> {
    let Some(secret) = &user.totp_secret else { return Ok(false) };
    if let Some(step) = step_of(secret, code) {
        return use_step(transaction, &user.id, step);
    }
    Ok(transaction.run(sql::USE_RECOVERY_CODE, params![user.id, recovery_hash(code)])? > 0)
}

/// A recovery code, however it is typed.
fn recovery_hash(code: &str) -> Vec<u8> {
    let plain: String = code.chars().filter(char::is_ascii_alphanumeric).collect();
    fingerprint(&plain.to_ascii_lowercase())
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
    let secret = random_bytes::<20>().map_err(internal)?;
    // A colon would end the issuer's name in the address.
    let url = totp(&secret, &user.username.replace(':', "_")).map_err(internal)?;
    let otpauth_url = url.to_url().map_err(|error| internal(anyhow::anyhow!("totp: {error}")))?;
    let shown = url.secret().to_base32();
    app.database
        .write(move |transaction| transaction.run(sql::SET_TOTP_PENDING, params![user.id, secret]))
        .await?;
    Ok(Json(json!({"secret": shown, "otpauth_url": otpauth_url})))
}

fn enrolled() -> Problem {
    Problem::new(StatusCode::CONFLICT, "totp_enrolled", "there is a second factor: disable it first")
}

fn wrong_code() -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "totp_invalid", "the code is wrong, too old or used up")
}

/// `POST /v1/auth/totp/confirm`: shows that the app has the secret; from now on logins need a code. The recovery codes in
/// the answer are shown this once.
pub(crate) async fn confirm(
    Account(user): Account,
    State(app): State<App>,
    Body(Code { code }): Body<Code>,
) -> Result<Json<Value>> {
    let codes = (0..RECOVERY_CODES).map(|_| recovery_code()).collect::<anyhow::Result<Vec<_>>>();
    let codes = codes.map_err(internal)?;
    let shown = codes.clone();
    let confirmed = app.database.write(move |transaction| {
        let Some(user) = users::by_id(transaction, &user.id)? else { return Ok(Err(wrong_code())) };
        if user.totp_secret.is_some() {
            return Ok(Err(enrolled()));
        }
        let step = user.totp_pending.as_ref().and_then(|secret| step_of(secret, &code));
        let Some(step) = step else { return Ok(Err(wrong_code())) };
        transaction.run(sql::CONFIRM_TOTP, [&user.id])?;
        use_step(transaction, &user.id, step)?;
        transaction.run(sql::CLEAR_RECOVERY_CODES, [&user.id])?;
        for code in &codes {
            transaction.run(sql::ADD_RECOVERY_CODE, params![user.id, recovery_hash(code)])?;
        }
        // Roles that need a second factor count from now on.
        changes::note(transaction, Subject::User(&user.id)).map(Ok)
    });
    confirmed.await??;
    app.metrics.user_operations.with_label_values(&["totp_confirm"]).inc();
    Ok(Json(json!({"recovery_codes": shown})))
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
        let off = move |transaction: &Transaction<'_>| take_off(transaction, &holder.user.id);
        app.database.write(off).await?;
    } else {
        reauthentication::require(&app, &holder, Proof::default()).await?;
        disable_with_code(&app, &holder, code).await?;
    }
    app.metrics.user_operations.with_label_values(&["totp_disable"]).inc();
    Ok(StatusCode::NO_CONTENT)
}

fn take_off(transaction: &Transaction<'_>, user: &str) -> DbResult<()> {
    transaction.run(sql::DISABLE_TOTP, [user])?;
    transaction.run(sql::CLEAR_RECOVERY_CODES, [user])?;
    changes::note(transaction, Subject::User(user)).map(drop)
}

async fn disable_with_code(app: &App, holder: &Holder, code: String) -> Result<()> {
    let Holder { user, caller, .. } = holder;
    let Admitted { one, ticket, .. } = proof::admit(app, &user.username, &caller.whereabouts).await?;
    let (rule, id) = (app.accounts.lockout, user.id.clone());
    let disabled = app.database.write(move |transaction| {
        let user = users::by_id(transaction, &id)?.filter(|user| user.totp_secret.is_some());
        let Some(user) = user else { return Ok(Disabled::Never) };
        if lockout::is_locked(transaction, &one)? || !use_code(transaction, &user, &code)? {
            return lockout::failed(transaction, &one, &rule).map(Disabled::Failed);
        }
        take_off(transaction, &user.id).map(|()| Disabled::Now)
    });
    match disabled.await? {
        Disabled::Now => {
            ticket.succeeded();
            Ok(())
        }
        Disabled::Never => {
            ticket.give_back();
            Err(wrong_code())
        }
        Disabled::Failed(failed) => {
            proof::count(app, failed);
            ticket.failed(failed.in_a_row);
            Err(wrong_code())
        }
    }
}

enum Disabled {
    Now,
    /// There is no second factor.
    Never,
    Failed(Failed),
}

/// 80 bits of chance in four groups: `a1b2c-…`.
fn recovery_code() -> anyhow::Result<String> {
    let bytes = random_bytes::<10>()?;
    let text = bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    Ok([&text[..5], &text[5..10], &text[10..15], &text[15..]].join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_right_for_its_step_as_apps_show_it() {
        let secret = [7; 20];
        let at = u64::try_from(now()).unwrap();
        let code = totp(&secret, "ann").unwrap().generate(at).to_string();
        let step = step_of(&secret, &code).unwrap();
        assert_eq!(step_of(&[8; 20], &code), None, "of another secret");
        for shown in
            [format!("{} {}", &code[..3], &code[3..]), format!(" {}-{}\u{a0}", &code[..3], &code[3..])]
        {
            assert_eq!(step_of(&secret, &shown), Some(step), "{shown:?}, as apps show it");
        }
        assert_eq!(recovery_hash("A1B2C-d3e4f "), recovery_hash("a1b2cd3e4f"));
    }
}
