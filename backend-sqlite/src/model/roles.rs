//! Roles: what each of them grants.

use rusqlite::params;

use super::changes::{self, Subject};
use super::grants::Grant;
use crate::problem::{Failure, Problem};
use crate::storage::{Result, Transaction, sql};

pub(crate) fn list(transaction: &Transaction<'_>) -> Result<Vec<String>> {
    transaction.rows(sql::LIST_ROLES, [], |row| row.get(0))
}

pub(crate) fn exists(transaction: &Transaction<'_>, role: &str) -> Result<bool> {
    Ok(transaction.row(sql::ROLE_EXISTS, [role], |_| Ok(()))?.is_some())
}

/// The first of `roles` that does not exist.
pub(crate) fn unknown(transaction: &Transaction<'_>, roles: &[String]) -> Result<Option<String>> {
    for role in roles {
        if !exists(transaction, role)? {
            return Ok(Some(role.clone()));
        }
    }
    Ok(None)
}

/// Refuses roles of which one does not exist.
pub(crate) fn check_known(transaction: &Transaction<'_>, roles: &[String]) -> Result<(), Failure> {
    match unknown(transaction, roles)? {
        Some(role) => Err(unknown_role(&role).into()),
        None => Ok(()),
    }
}

pub(crate) fn unknown_role(role: &str) -> Problem {
    Problem::unprocessable("unknown_role", format!("there is no role `{role}`"))
}

/// What a role grants; `None` when there is no such role.
pub(crate) fn grants(transaction: &Transaction<'_>, role: &str) -> Result<Option<Vec<Grant>>> {
    if !exists(transaction, role)? {
        return Ok(None);
    }
    let grant = |row: &rusqlite::Row<'_>| Ok(Grant { permission: row.get(0)?, resource: row.get(1)? });
    transaction.rows(sql::GRANTS_OF_ROLE, [role], grant).map(Some)
}

/// Sets all that a role grants, and returns the number of the change. A role that does not exist is made.
pub(crate) fn set_grants(transaction: &Transaction<'_>, role: &str, grants: &[Grant]) -> Result<i64> {
    transaction.run(sql::ADD_ROLE, [role])?;
    transaction.run(sql::CLEAR_GRANTS, [role])?;
    for grant in grants {
        transaction.run(sql::ADD_GRANT, params![role, grant.permission, grant.resource])?;
    }
    changes::note(transaction, Subject::Role(role))
}
