//! Accounts as rows: what the API and the command line share.

use rusqlite::params;

use crate::db::{Result, Session};
use crate::sql;
use crate::tokens::now;

/// One account.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) id: String,
    pub(crate) username: String,
    pub(crate) password_hash: String,
    pub(crate) active: bool,
}

/// What became of adding an account.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// It is there, with this id.
    Id(String),
    /// The name is taken.
    Taken,
    /// There is no such role.
    UnknownRole(String),
}

fn user(row: &rusqlite::Row<'_>) -> rusqlite::Result<User> {
    Ok(User { id: row.get(0)?, username: row.get(1)?, password_hash: row.get(2)?, active: row.get(3)? })
}

pub(crate) fn by_name(session: &Session<'_>, name: &str) -> Result<Option<User>> {
    session.row(sql::USER_BY_NAME, [name], user)
}

pub(crate) fn by_id(session: &Session<'_>, id: &str) -> Result<Option<User>> {
    session.row(sql::USER_BY_ID, [id], user)
}

pub(crate) fn list(session: &Session<'_>) -> Result<Vec<User>> {
    session.rows(sql::LIST_USERS, [], user)
}

pub(crate) fn count(session: &Session<'_>) -> Result<i64> {
    Ok(session.row(sql::COUNT_USERS, [], |row| row.get(0))?.unwrap_or_default())
}

pub(crate) fn roles(session: &Session<'_>, id: &str) -> Result<Vec<String>> {
    session.rows(sql::ROLES_OF_USER, [id], |row| row.get(0))
}

/// Adds an account with roles that exist.
pub(crate) fn add(session: &Session<'_>, name: &str, hash: &str, roles: &[String]) -> Result<Added> {
    if by_name(session, name)?.is_some() {
        return Ok(Added::Taken);
    }
    if let Some(unknown) = unknown_role(session, roles)? {
        return Ok(Added::UnknownRole(unknown));
    }
    let id = uuid::Uuid::now_v7().to_string();
    session.run(sql::ADD_USER, params![id, name, hash, now()])?;
    for role in roles {
        session.run(sql::ADD_ROLE_TO_USER, params![id, role])?;
    }
    changed(session, "user", &id)?;
    Ok(Added::Id(id))
}

/// Sets a password and ends the account's sessions; `false` when there is no such account.
pub(crate) fn set_password(session: &Session<'_>, name: &str, hash: &str) -> Result<bool> {
    let id: Option<String> = session.row(sql::SET_PASSWORD, [name, hash], |row| row.get(0))?;
    if let Some(id) = &id {
        session.run(sql::DROP_REFRESH_TOKENS, [id])?;
    }
    Ok(id.is_some())
}

/// The first of `roles` that does not exist.
pub(crate) fn unknown_role(session: &Session<'_>, roles: &[String]) -> Result<Option<String>> {
    for role in roles {
        if session.row(sql::ROLE_EXISTS, [role], |_| Ok(()))?.is_none() {
            return Ok(Some(role.clone()));
        }
    }
    Ok(None)
}

/// Numbers a change to who may do what, in the transaction of the change.
pub(crate) fn changed(session: &Session<'_>, kind: &str, name: &str) -> Result<i64> {
    session.announce();
    let revision = session.row(sql::ADD_CHANGE, params![kind, name, now()], |row| row.get(0))?;
    Ok(revision.unwrap_or_default())
}
