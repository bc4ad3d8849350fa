//! Groups: who is in one, and which roles it gives.

use std::collections::BTreeSet;

use serde::Serialize;

use super::changes::{self, Subject};
use super::{roles, users};
use crate::problem::{Failure, Problem};
use crate::storage::{Result, Transaction, sql};

#[derive(Debug, Serialize)]
pub(crate) struct Group {
    name: String,
    /// The ids of its members.
    users: BTreeSet<String>,
    roles: Vec<String>,
}

pub(crate) fn list(transaction: &Transaction<'_>) -> Result<Vec<String>> {
    transaction.rows(sql::LIST_GROUPS, [], |row| row.get(0))
}

pub(crate) fn exists(transaction: &Transaction<'_>, group: &str) -> Result<bool> {
    Ok(transaction.row(sql::GROUP_EXISTS, [group], |_| Ok(()))?.is_some())
}

pub(crate) fn by_name(transaction: &Transaction<'_>, group: &str) -> Result<Option<Group>> {
    if !exists(transaction, group)? {
        return Ok(None);
    }
    let users = members(transaction, group)?;
    let roles = transaction.rows(sql::ROLES_OF_GROUP, [group], |row| row.get(0))?;
    Ok(Some(Group { name: group.to_owned(), users, roles }))
}

/// The groups of an account.
pub(crate) fn of_user(transaction: &Transaction<'_>, user: &str) -> Result<Vec<String>> {
    transaction.rows(sql::GROUPS_OF_USER, [user], |row| row.get(0))
}

fn members(transaction: &Transaction<'_>, group: &str) -> Result<BTreeSet<String>> {
    Ok(transaction.rows(sql::MEMBERS_OF_GROUP, [group], |row| row.get(0))?.into_iter().collect())
}

/// Sets all members of a group, and returns the number of the last change. A group that does not exist is made.
pub(crate) fn set_members(
    transaction: &Transaction<'_>,
    group: &str,
    users: &[String],
) -> Result<i64, Failure> {
    for id in users {
        if users::by_id(transaction, id)?.is_none() {
            let detail = format!("there is no user `{id}`");
            return Err(Problem::unprocessable("unknown_user", detail).into());
        }
    }
    transaction.run(sql::ADD_GROUP, [group])?;
    let before = members(transaction, group)?;
    let after: BTreeSet<String> = users.iter().cloned().collect();
    for id in before.difference(&after) {
        transaction.run(sql::DROP_MEMBER, [group, id])?;
    }
    for id in after.difference(&before) {
        transaction.run(sql::ADD_MEMBER, [group, id])?;
    }
    for id in before.symmetric_difference(&after) {
        changes::note(transaction, Subject::User(id))?;
    }
    Ok(changes::revision(transaction)?)
}

/// Sets all roles that a group gives, and returns the number of the change. A group that does not exist is made.
pub(crate) fn set_roles(
    transaction: &Transaction<'_>,
    group: &str,
    roles: &[String],
) -> Result<i64, Failure> {
    roles::check_known(transaction, roles)?;
    transaction.run(sql::ADD_GROUP, [group])?;
    transaction.run(sql::CLEAR_ROLES_OF_GROUP, [group])?;
    for role in roles {
        transaction.run(sql::ADD_ROLE_TO_GROUP, [group, role])?;
    }
    Ok(changes::note(transaction, Subject::Group(group))?)
}

/// Deletes a group, and returns the number of the change.
pub(crate) fn remove(transaction: &Transaction<'_>, group: &str) -> Result<i64, Failure> {
    if transaction.run(sql::DROP_GROUP, [group])? == 0 {
        return Err(Problem::not_found("group").into());
    }
    transaction.run(sql::DROP_ACL_OF_GROUP, [group])?; // another group of this name is another group
    Ok(changes::note(transaction, Subject::Group(group))?)
}
