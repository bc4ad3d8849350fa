//! What a login and a refresh give: a session with a pair of tokens, and the roles that the tokens carry.

use rusqlite::params;

use super::access_tokens::NewPair;
use super::places::Place;
use super::sessions::{self, InvalidToken, Origin};
use super::users::User;
use super::{credentials, lockout, permissions};
use crate::config::AccountRules;
use crate::storage::{Result, Transaction, sql};

/// An account with the roles that its tokens carry.
pub(crate) struct Standing {
    pub(crate) user: User,
    pub(crate) roles: Vec<String>,
    /// A role of the account needs a second factor, and does not count until there is one.
    pub(crate) totp_enrollment_required: bool,
    /// When the owner last proved to be that, in seconds since the Unix epoch.
    pub(crate) auth_time: i64,
}

/// A login that was proved.
pub(crate) struct NewLogin {
    pub(crate) user: User,
    /// A hash that replaces an old one of the same password.
    pub(crate) better_hash: Option<String>,
    pub(crate) origin: Origin,
    pub(crate) place: Place,
    pub(crate) pair: NewPair,
}

/// Begins a session; `None` when the account was changed since the password was compared.
pub(crate) fn begin(
    transaction: &Transaction<'_>,
    login: &NewLogin,
    rules: &AccountRules,
) -> Result<Option<Standing>> {
    let Some(mut user) = credentials::unchanged(transaction, &login.user)? else { return Ok(None) };
    if let Some(better) = &login.better_hash {
        transaction.run(sql::UPGRADE_PASSWORD, params![user.id, user.password_hash, better])?;
        user.password_hash.clone_from(better);
    }
    sessions::begin(transaction, &user, &login.origin, &login.pair)?;
    lockout::remember(transaction, &user.id, &login.place)?;
    standing(transaction, user, login.pair.issued_at, rules).map(Some)
}

/// Uses up a refresh token for a new pair. The refusal has to be committed: it may have ended the session.
pub(crate) fn refresh(
    transaction: &Transaction<'_>,
    refresh_token: &str,
    pair: &NewPair,
    rules: &AccountRules,
) -> Result<std::result::Result<Standing, InvalidToken>> {
    let may_continue = |user: &User| user.active && !user.has_expired_password(rules.password_expiry);
    match sessions::refresh(transaction, refresh_token, pair, may_continue)? {
        Ok((user, auth_time)) => standing(transaction, user, auth_time, rules).map(Ok),
        Err(invalid) => Ok(Err(invalid)),
    }
}

fn standing(
    transaction: &Transaction<'_>,
    user: User,
    auth_time: i64,
    rules: &AccountRules,
) -> Result<Standing> {
    let all = permissions::all_roles(transaction, &user.id)?;
    let counting = permissions::counting_roles(&all, &user, &rules.require_totp_for);
    Ok(Standing { totp_enrollment_required: counting.len() < all.len(), user, roles: counting, auth_time })
}
