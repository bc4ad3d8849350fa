//! What administrators see of an account and do to it. Each change has a number, which gateways follow.

use rusqlite::params;
use serde::Serialize;

use super::changes::{self, Subject};
use super::users::{self, User};
use super::{groups, lockout, roles, second_factor, sessions};
use crate::problem::{Failure, Problem};
use crate::storage::{Result, Transaction, sql};

/// An account as administrators see it.
#[derive(Debug, Serialize)]
pub(crate) struct Overview {
    id: String,
    pub(crate) username: String,
    email: Option<String>,
    active: bool,
    /// Whether any place is locked out of the name.
    locked: bool,
    /// Whether there is a second factor.
    totp: bool,
    roles: Vec<String>,
    groups: Vec<String>,
}

fn overview(transaction: &Transaction<'_>, user: User) -> Result<Overview> {
    Ok(Overview {
        locked: lockout::is_locked_somewhere(transaction, &user.username)?,
        totp: user.totp_secret.is_some(),
        roles: users::own_roles(transaction, &user.id)?,
        groups: groups::of_user(transaction, &user.id)?,
        id: user.id,
        username: user.username,
        email: user.email,
        active: user.active,
    })
}

pub(crate) fn show(transaction: &Transaction<'_>, id: &str) -> Result<Option<Overview>> {
    users::by_id(transaction, id)?.map(|user| overview(transaction, user)).transpose()
}

pub(crate) fn by_name(transaction: &Transaction<'_>, name: &str) -> Result<Vec<Overview>> {
    users::by_name(transaction, name)?.into_iter().map(|user| overview(transaction, user)).collect()
}

/// Accounts in the order of their names, after `after`; and whether there are more.
pub(crate) fn page(
    transaction: &Transaction<'_>,
    after: &str,
    limit: usize,
) -> Result<(Vec<Overview>, bool)> {
    let (users, more) = users::page(transaction, after, limit)?;
    let page = users.into_iter().map(|user| overview(transaction, user)).collect::<Result<_>>()?;
    Ok((page, more))
}

fn find(transaction: &Transaction<'_>, id: &str) -> Result<User, Failure> {
    Ok(users::by_id(transaction, id)?.ok_or_else(|| Problem::not_found("user"))?)
}

fn note(transaction: &Transaction<'_>, user: &User) -> Result<i64, Failure> {
    Ok(changes::note(transaction, Subject::User(&user.id))?)
}

/// Sets all roles that are given to the account itself.
pub(crate) fn set_roles(transaction: &Transaction<'_>, id: &str, roles: &[String]) -> Result<i64, Failure> {
    let user = find(transaction, id)?;
    roles::check_known(transaction, roles)?;
    transaction.run(sql::CLEAR_ROLES_OF_USER, [&user.id])?;
    for role in roles {
        transaction.run(sql::ADD_ROLE_TO_USER, [&user.id, role])?;
    }
    note(transaction, &user)
}

/// The account may do nothing any more: its sessions end, its tokens are revoked, its API keys are refused.
pub(crate) fn deactivate(transaction: &Transaction<'_>, id: &str) -> Result<i64, Failure> {
    let user = find(transaction, id)?;
    transaction.run(sql::SET_ACTIVE, params![user.id, false])?;
    transaction.run(sql::CLEAR_RESET_TOKENS, [&user.id])?;
    transaction.run(sql::CLEAR_PLACES, [&user.id])?;
    sessions::end_all(transaction, &user.id)?;
    note(transaction, &user)
}

pub(crate) fn activate(transaction: &Transaction<'_>, id: &str) -> Result<i64, Failure> {
    let user = find(transaction, id)?;
    transaction.run(sql::SET_ACTIVE, params![user.id, true])?;
    note(transaction, &user)
}

/// Takes the second factor off, for an owner who has lost it.
pub(crate) fn remove_second_factor(transaction: &Transaction<'_>, id: &str) -> Result<i64, Failure> {
    let user = find(transaction, id)?;
    Ok(second_factor::remove(transaction, &user.id)?)
}

/// Forgets the failed logins of an account, wherever they came from; its name, and the number of the change.
pub(crate) fn unlock(transaction: &Transaction<'_>, id: &str) -> Result<(String, i64), Failure> {
    let user = find(transaction, id)?;
    lockout::clear(transaction, &user.username)?;
    let revision = note(transaction, &user)?;
    Ok((user.username, revision))
}
