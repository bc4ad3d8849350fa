//! Accounts.

use std::time::Duration;

use rusqlite::params;

use super::changes::{self, Subject};
use super::roles;
use crate::clock::{now, seconds};
use crate::storage::{Result, Transaction, sql};

/// One account.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) id: String,
    pub(crate) username: String,
    pub(crate) email: Option<String>,
    pub(crate) password_hash: String,
    pub(crate) active: bool,
    pub(crate) password_changed_at: i64,
    /// The second factor, once it is confirmed.
    pub(crate) totp_secret: Option<Vec<u8>>,
    pub(crate) totp_pending: Option<Vec<u8>>,
}

impl User {
    /// Whether the password is older than `most`; without a limit it never is.
    pub(crate) fn has_expired_password(&self, most: Option<Duration>) -> bool {
        let expires_at = |most| self.password_changed_at.saturating_add(seconds(most));
        most.is_some_and(|most| expires_at(most) <= now())
    }
}

/// An account to add.
#[derive(Clone, Debug)]
pub(crate) struct NewUser {
    pub(crate) username: String,
    pub(crate) email: Option<String>,
    /// Whether an administrator answers for the address.
    pub(crate) email_verified: bool,
    pub(crate) password_hash: String,
    pub(crate) roles: Vec<String>,
}

/// The outcome of adding an account.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// With this id.
    Id(String),
    /// The name is taken.
    Taken,
    /// This role does not exist.
    UnknownRole(String),
}

fn user(row: &rusqlite::Row<'_>) -> rusqlite::Result<User> {
    Ok(User {
        id: row.get(0)?,
        username: row.get(1)?,
        email: row.get(2)?,
        password_hash: row.get(3)?,
        active: row.get(4)?,
        password_changed_at: row.get(5)?,
        totp_secret: row.get(6)?,
        totp_pending: row.get(7)?,
    })
}

pub(crate) fn by_name(transaction: &Transaction<'_>, name: &str) -> Result<Option<User>> {
    transaction.row(sql::USER_BY_NAME, [name], user)
}

pub(crate) fn by_id(transaction: &Transaction<'_>, id: &str) -> Result<Option<User>> {
    transaction.row(sql::USER_BY_ID, [id], user)
}

/// Active accounts with this address, whatever the case of its letters. Those for which it is verified come first, then
/// the older ones: an account that was registered with another's address comes after its owner.
pub(crate) fn by_email(transaction: &Transaction<'_>, email: &str) -> Result<Vec<User>> {
    transaction.rows(sql::USERS_BY_EMAIL, [email], user)
}

/// Accounts in the order of their names, after `after`; and whether there are more.
pub(crate) fn page(transaction: &Transaction<'_>, after: &str, limit: usize) -> Result<(Vec<User>, bool)> {
    transaction.page(sql::LIST_USERS, [after], user, limit, |_| false)
}

pub(crate) fn count(transaction: &Transaction<'_>) -> Result<i64> {
    Ok(transaction.row(sql::COUNT_USERS, [], |row| row.get(0))?.unwrap_or_default())
}

/// The roles that were given to the account itself.
pub(crate) fn own_roles(transaction: &Transaction<'_>, id: &str) -> Result<Vec<String>> {
    transaction.rows(sql::ROLES_OF_USER, [id], |row| row.get(0))
}

/// Adds an account with roles that exist.
pub(crate) fn add(transaction: &Transaction<'_>, new: &NewUser) -> Result<Added> {
    if by_name(transaction, &new.username)?.is_some() {
        return Ok(Added::Taken);
    }
    if let Some(unknown) = roles::unknown(transaction, &new.roles)? {
        return Ok(Added::UnknownRole(unknown));
    }
    let id = uuid::Uuid::now_v7().to_string();
    let NewUser { username, email, email_verified, password_hash, .. } = new;
    transaction.run(sql::ADD_USER, params![id, username, email, password_hash, now(), email_verified])?;
    for role in &new.roles {
        transaction.run(sql::ADD_ROLE_TO_USER, params![id, role])?;
    }
    changes::note(transaction, Subject::User(&id))?;
    Ok(Added::Id(id))
}
