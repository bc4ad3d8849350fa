//! API keys: made by an account for a program that acts for it. Stored as a hash, with a scope and an end where wanted.

use protocol::keys::{Key, KeyHolder, Scope};
use rusqlite::params;
use serde::Serialize;
use serde_json::json;

use super::changes::{self, Subject};
use super::grants::Grant;
use super::{groups, permissions, users};
use crate::clock::now;
use crate::problem::{Failure, Problem};
use crate::random::{fingerprint, random_token};
use crate::storage::{Result, Transaction, sql};

/// What every key begins with, so that scanners of source code and the gateway recognise one.
const PREFIX: &str = "pal_";

/// What the owner of a key is shown of it later, in bytes.
const HINT: usize = PREFIX.len() + 6;

/// The most keys of one account, and scopes of one key.
pub(crate) const MOST: usize = 100;

/// A key that is to be stored. Its text is shown once.
pub(crate) struct NewKey {
    pub(crate) id: String,
    pub(crate) key: String,
    pub(crate) user: String,
    pub(crate) name: String,
    /// `None`: whatever its owner may do.
    pub(crate) scopes: Option<Vec<Grant>>,
    /// Seconds since the Unix epoch; `None`: until it is deleted.
    pub(crate) expires_at: Option<i64>,
}

/// A new id and the text of a new key.
pub(crate) fn generate() -> anyhow::Result<(String, String)> {
    Ok((uuid::Uuid::now_v7().to_string(), format!("{PREFIX}{}", random_token()?)))
}

/// Stores a key, unless its owner has too many.
pub(crate) fn add(transaction: &Transaction<'_>, new: &NewKey) -> Result<(), Failure> {
    if transaction.rows(sql::API_KEYS_OF_USER, [&new.user], |_| Ok(()))?.len() >= MOST {
        let detail = format!("an account has at most {MOST} keys: delete one");
        return Err(Problem::conflict("too_many_keys", detail).into());
    }
    let NewKey { id, key, user, name, scopes, expires_at } = new;
    let scopes = scopes.as_ref().map(|scopes| json!(scopes).to_string());
    let hint = key.get(..HINT).unwrap_or(PREFIX);
    let values = params![id, user, name, fingerprint(key), hint, scopes, now(), expires_at];
    transaction.run(sql::ADD_API_KEY, values)?;
    // Gateways may remember that there is no such key.
    changes::note(transaction, Subject::ApiKey(id))?;
    Ok(())
}

/// A key as its owner is shown it.
#[derive(Serialize)]
pub(crate) struct Listed {
    id: String,
    name: String,
    hint: String,
    scopes: Option<Vec<Grant>>,
    created_at: i64,
    expires_at: Option<i64>,
}

pub(crate) fn list(transaction: &Transaction<'_>, user: &str) -> Result<Vec<Listed>> {
    transaction.rows(sql::API_KEYS_OF_USER, [user], |row| {
        Ok(Listed {
            id: row.get(0)?,
            name: row.get(1)?,
            hint: row.get(2)?,
            scopes: scopes(row.get(3)?),
            created_at: row.get(4)?,
            expires_at: row.get(5)?,
        })
    })
}

/// Deletes a key of an account.
pub(crate) fn remove(transaction: &Transaction<'_>, id: &str, user: &str) -> Result<(), Failure> {
    if transaction.run(sql::DROP_API_KEY, [id, user])? == 0 {
        return Err(Problem::not_found("key").into());
    }
    changes::note(transaction, Subject::ApiKey(id))?;
    Ok(())
}

/// Deletes every key of an account, and notifies gateways.
pub(crate) fn remove_all(transaction: &Transaction<'_>, user: &str) -> Result<()> {
    let all: Vec<String> = transaction.rows(sql::API_KEYS_OF_USER, [user], |row| row.get(0))?;
    for id in &all {
        transaction.run(sql::DROP_API_KEY, [id.as_str(), user])?;
        changes::note(transaction, Subject::ApiKey(id))?;
    }
    Ok(())
}

/// The scopes of a key as they are stored: an empty list where it has no limit, `None` when they cannot be read.
fn scopes(text: Option<String>) -> Option<Vec<Grant>> {
    text.map_or(Some(Vec::new()), |text| {
        serde_json::from_str(&text).ok().filter(|all: &Vec<Grant>| !all.is_empty())
    })
}

/// Whose key it is; nothing but the revision when it is not valid. `second_factor` are the roles that count only for
/// accounts with a second factor.
pub(crate) fn holder(
    transaction: &Transaction<'_>,
    hash: &[u8],
    second_factor: &[String],
) -> Result<KeyHolder> {
    let revision = changes::revision(transaction)?; // first, as in `permissions::judge`
    Ok(KeyHolder { revision, key: valid_key(transaction, hash, second_factor)? })
}

fn valid_key(transaction: &Transaction<'_>, hash: &[u8], second_factor: &[String]) -> Result<Option<Key>> {
    let found: Option<(String, String, Option<String>, Option<i64>)> =
        transaction.row(sql::API_KEY_BY_HASH, [hash], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?;
    let found = found.filter(|(.., ends)| ends.is_none_or(|ends| ends > now()));
    let Some((id, owner, stored, expires_at)) = found else { return Ok(None) };
    let Some(user) = users::by_id(transaction, &owner)?.filter(|user| user.active) else { return Ok(None) };
    let all = permissions::all_roles(transaction, &owner)?;
    let roles = permissions::counting_roles(&all, &user, second_factor);
    let Some(scopes) = scopes(stored) else { return Ok(None) };
    let groups = groups::of_user(transaction, &owner)?;
    let scope = |grant: Grant| Scope { permission: grant.permission, resource: grant.resource };
    let scopes = scopes.into_iter().map(scope).collect();
    let expires_at = expires_at.and_then(|ends| u64::try_from(ends).ok());
    Ok(Some(Key { id, user: owner, roles, groups, scopes, expires_at }))
}
