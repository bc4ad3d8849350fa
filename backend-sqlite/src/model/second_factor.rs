//! The second factor: time-based one-time passwords (RFC 6238) and recovery codes. A code is valid once.

use rusqlite::params;
use totp_rs::{Builder, Totp};

use super::changes::{self, Subject};
use super::lockout::{self, Attempt, Failed};
use super::users::{self, User};
use crate::clock::now;
use crate::config::Lockout;
use crate::problem::{Failure, Problem};
use crate::random::{fingerprint, random_bytes};
use crate::storage::{Result, Transaction, sql};

/// What authenticator apps show beside the account.
const ISSUER: &str = "Palisade";

/// Codes that help once when the device is lost.
const RECOVERY_CODES: usize = 10;

/// Six digits, 30 s, SHA-1, one step of drift either way: what every authenticator app understands.
fn totp(secret: &[u8], account: &str) -> anyhow::Result<Totp> {
    let builder = Builder::new().with_secret(secret).with_account_name(account).with_issuer(Some(ISSUER));
    builder.build().map_err(|error| anyhow::anyhow!("totp: {error}"))
}

/// Steps that a code may be ahead of ours.
const DRIFT: i64 = 1;

/// The used steps that are remembered of an account: more than a clock is set back while one code is valid.
const REMEMBERED: i64 = 16;

/// The step that a code is of, when it is right now.
fn step_of(secret: &[u8], code: &str) -> Option<i64> {
    let now = u64::try_from(now()).ok()?;
    // Apps show a code in groups, and people send it so.
    let digits: String = code.chars().filter(|char| !char.is_whitespace() && *char != '-').collect();
    let step = totp(secret, "account").ok()?.check(&digits, now)?;
    i64::try_from(step).ok()
}

/// Uses up a step: whether neither it nor a later one was used. A step that nobody could have used by now was used
/// under a clock that was set back since, and does not count.
fn use_step(transaction: &Transaction<'_>, user: &str, step: i64) -> Result<bool> {
    let latest = step.saturating_add(2 * DRIFT);
    if transaction.row(sql::TOTP_STEP_USED, params![user, step, latest], |_| Ok(()))?.is_some() {
        return Ok(false);
    }
    transaction.run(sql::USE_TOTP_STEP, params![user, step])?;
    transaction.run(sql::FORGET_TOTP_STEPS, params![user, REMEMBERED])?;
    Ok(true)
}

/// Uses up a code of the app or a recovery code; whether it was valid.
pub(crate) fn use_code(transaction: &Transaction<'_>, user: &User, code: &str) -> Result<bool> {
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

/// A secret that an authenticator app is given.
pub(crate) struct NewSecret {
    pub(crate) bytes: [u8; 20],
    pub(crate) base32: String,
    pub(crate) otpauth_url: String,
}

pub(crate) fn new_secret(username: &str) -> anyhow::Result<NewSecret> {
    let bytes = random_bytes::<20>()?;
    // A colon would end the issuer's name in the address.
    let totp = totp(&bytes, &username.replace(':', "_"))?;
    let otpauth_url = totp.to_url().map_err(|error| anyhow::anyhow!("totp: {error}"))?;
    Ok(NewSecret { bytes, base32: totp.secret().to_base32(), otpauth_url })
}

/// Stores a secret that counts once it is confirmed.
pub(crate) fn enroll(transaction: &Transaction<'_>, user: &str, secret: &[u8]) -> Result<()> {
    transaction.run(sql::SET_TOTP_PENDING, params![user, secret]).map(drop)
}

pub(crate) fn enrolled() -> Problem {
    Problem::conflict("totp_enrolled", "there is a second factor: disable it first")
}

pub(crate) fn wrong_code() -> Problem {
    Problem::unprocessable("totp_invalid", "the code is wrong, too old or used up")
}

/// Confirms the pending secret with its first code; from now on logins need a code.
pub(crate) fn confirm(
    transaction: &Transaction<'_>,
    id: &str,
    code: &str,
    recovery_codes: &[String],
) -> Result<(), Failure> {
    let user = users::by_id(transaction, id)?.ok_or_else(wrong_code)?;
    if user.totp_secret.is_some() {
        return Err(enrolled().into());
    }
    let step = user.totp_pending.as_ref().and_then(|secret| step_of(secret, code));
    let step = step.ok_or_else(wrong_code)?;
    transaction.run(sql::CONFIRM_TOTP, [&user.id])?;
    use_step(transaction, &user.id, step)?;
    transaction.run(sql::CLEAR_RECOVERY_CODES, [&user.id])?;
    for code in recovery_codes {
        transaction.run(sql::ADD_RECOVERY_CODE, params![user.id, recovery_hash(code)])?;
    }
    // Roles that need a second factor count from now on.
    changes::note(transaction, Subject::User(&user.id))?;
    Ok(())
}

/// Takes the second factor off, and returns the number of the change.
pub(crate) fn remove(transaction: &Transaction<'_>, user: &str) -> Result<i64> {
    transaction.run(sql::DISABLE_TOTP, [user])?;
    transaction.run(sql::CLEAR_RECOVERY_CODES, [user])?;
    changes::note(transaction, Subject::User(user))
}

/// Why a second factor was not taken off.
pub(crate) enum NotDisabled {
    /// There is none.
    NotEnrolled,
    WrongCode(Failed),
}

/// Takes the second factor off with a code. The refusal has to be committed: a wrong code counts as a failed login.
pub(crate) fn disable(
    transaction: &Transaction<'_>,
    id: &str,
    code: &str,
    attempt: &Attempt,
    rule: &Lockout,
) -> Result<std::result::Result<(), NotDisabled>> {
    let user = users::by_id(transaction, id)?.filter(|user| user.totp_secret.is_some());
    let Some(user) = user else { return Ok(Err(NotDisabled::NotEnrolled)) };
    if lockout::is_locked(transaction, attempt)? || !use_code(transaction, &user, code)? {
        return lockout::failed(transaction, attempt, rule).map(|failed| Err(NotDisabled::WrongCode(failed)));
    }
    remove(transaction, &user.id).map(|_| Ok(()))
}

/// As many recovery codes as an account gets.
pub(crate) fn recovery_codes() -> anyhow::Result<Vec<String>> {
    (0..RECOVERY_CODES).map(|_| recovery_code()).collect()
}

/// 80 random bits in four groups: `a1b2c-…`.
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
