//! What lets an owner in, and what ends when it changes.

use super::lockout::{self, Attempt, Failed};
use super::users::{self, User};
use super::{api_keys, second_factor, sessions};
use crate::clock::now;
use crate::config::Lockout;
use crate::storage::{Result, Transaction, sql};

/// Sets a password for an account that somebody else may have had: whatever let them in ends, API keys included.
pub(crate) fn reset_password(transaction: &Transaction<'_>, user: &User, hash: &str) -> Result<()> {
    api_keys::remove_all(transaction, &user.id)?;
    set_password(transaction, user, hash)
}

/// Sets a password, and ends whatever the old one began: sessions, failures, and the places that are known.
pub(crate) fn set_password(transaction: &Transaction<'_>, user: &User, hash: &str) -> Result<()> {
    transaction.run(sql::SET_PASSWORD, rusqlite::params![user.id, hash, now()])?;
    transaction.run(sql::CLEAR_RESET_TOKENS, [&user.id])?;
    transaction.run(sql::DROP_RESET_REQUESTS_OF, [&user.id])?; // a mail that comes late would open the account again
    transaction.run(sql::CLEAR_PLACES, [&user.id])?;
    lockout::clear(transaction, &user.username)?;
    sessions::end_all(transaction, &user.id)
}

/// Sets the password of an account that proved its old one, and revokes its API keys where wanted; `false` when the
/// account was changed since the old one was compared.
pub(crate) fn change_password(
    transaction: &Transaction<'_>,
    judged: &User,
    hash: &str,
    revoke_api_keys: bool,
) -> Result<bool> {
    let Some(user) = unchanged(transaction, judged)? else { return Ok(false) };
    let set = if revoke_api_keys { reset_password } else { set_password };
    set(transaction, &user, hash).map(|()| true)
}

/// The account as it is now, unless its password was changed since `judged` was read.
pub(crate) fn unchanged(transaction: &Transaction<'_>, judged: &User) -> Result<Option<User>> {
    let now = users::by_id(transaction, &judged.id)?;
    Ok(now.filter(|now| now.active && now.password_hash == judged.password_hash))
}

/// Why somebody is not proved to be an account's owner.
pub(crate) enum Unproven {
    /// Wrong, unknown, locked or inactive.
    Failed(Failed),
    /// The password is right, and the code of the second factor is missing.
    TotpRequired,
}

/// Decides on lock and second factor, for an account whose password was right (`None`: it was not). The refusal has to
/// be committed: a failure is counted.
pub(crate) fn prove(
    transaction: &Transaction<'_>,
    right: Option<&User>,
    code: Option<&str>,
    attempt: &Attempt,
    rule: &Lockout,
) -> Result<std::result::Result<User, Unproven>> {
    let refuse = || lockout::failed(transaction, attempt, rule).map(|failed| Err(Unproven::Failed(failed)));
    // Others may have failed while this one was judged.
    if lockout::is_locked(transaction, attempt)? {
        return refuse();
    }
    let Some(right) = right else { return refuse() };
    let Some(user) = unchanged(transaction, right)? else { return refuse() };
    if user.totp_secret.is_some() {
        let Some(code) = code else { return Ok(Err(Unproven::TotpRequired)) };
        if !second_factor::use_code(transaction, &user, code)? {
            return refuse();
        }
    }
    lockout::succeeded(transaction, attempt)?;
    Ok(Ok(user))
}
