//! The log of changes to who may do what.
//!
//! A change is numbered in the transaction that makes it. Gateways follow the log through `/internal/changes`: each
//! asks for what comes after the change that it has applied, which confirms that it has. A call that makes a change
//! is answered once every gateway that follows has applied it, so that what was revoked is refused everywhere when the
//! call is answered; a gateway that does not answer delays no call for longer than
//! [`NOTIFY_TIMEOUT`](crate::storage::followers::NOTIFY_TIMEOUT).

use protocol::feed::{Change, Kind, News};
use rusqlite::params;

use crate::clock::now;
use crate::storage::{Result, Transaction, sql};

/// The most changes in one response.
const MOST: i64 = 1_000;

/// So many changes are stored; a gateway that is further behind starts again.
const STORED: i64 = 100_000;

/// What a change is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Subject<'a> {
    /// All that an account may do.
    User(&'a str),
    /// All that a role grants.
    Role(&'a str),
    /// All that comes from being in a group.
    Group(&'a str),
    /// One permission of a principal: its kind, its name, the permission, the resource.
    Acl(&'a str, &'a str, &'a str, &'a str),
    /// An API key, by its id.
    ApiKey(&'a str),
    /// An access token, by its `jti`, revoked until it would have expired.
    Token(&'a str, i64),
}

/// Numbers a change, in the transaction that makes it.
pub(crate) fn note(transaction: &Transaction<'_>, subject: Subject<'_>) -> Result<i64> {
    let (kind, name, permission, resource, until) = match subject {
        Subject::User(id) => (Kind::User.as_str(), id, None, None, None),
        Subject::Role(name) => (Kind::Role.as_str(), name, None, None, None),
        Subject::Group(name) => (Kind::Group.as_str(), name, None, None, None),
        Subject::Acl(kind, name, permission, resource) => {
            (kind, name, Some(permission), Some(resource), None)
        }
        Subject::ApiKey(id) => (Kind::ApiKey.as_str(), id, None, None, None),
        Subject::Token(jti, until) => (Kind::Token.as_str(), jti, None, None, Some(until)),
    };
    let values = params![kind, name, permission, resource, until, now()];
    let revision = transaction.row(sql::ADD_CHANGE, values, |row| row.get(0))?.unwrap_or_default();
    transaction.announce(revision);
    Ok(revision)
}

/// The number of the last change.
pub(crate) fn revision(transaction: &Transaction<'_>) -> Result<i64> {
    Ok(transaction.row(sql::REVISION, [], |row| row.get(0))?.unwrap_or_default())
}

/// Drops changes that no gateway needs any more.
pub(crate) fn sweep(transaction: &Transaction<'_>) -> Result<()> {
    let last = revision(transaction)?;
    transaction.run(sql::DROP_OLD_CHANGES, params![last - STORED, now()]).map(drop)
}

fn change(row: &rusqlite::Row<'_>) -> rusqlite::Result<Change> {
    Ok(Change {
        revision: row.get(0)?,
        kind: Kind::of(row.get_ref(1)?.as_str()?),
        name: row.get(2)?,
        permission: row.get(3)?,
        resource: row.get(4)?,
        until: row.get::<_, Option<i64>>(5)?.and_then(|until| u64::try_from(until).ok()),
    })
}

fn news(revision: i64, run: String, reset: bool, changes: Vec<Change>) -> News {
    let more = changes.len() >= usize::try_from(MOST).unwrap_or(usize::MAX);
    News { revision, run, reset, changes, more }
}

/// The tokens that are revoked, from the change `after` on: the rest of a reset.
pub(crate) fn revoked_after(transaction: &Transaction<'_>, after: i64, run: String) -> Result<News> {
    let changes = transaction.rows(sql::REVOKED_TOKENS, [now(), after, MOST], change)?;
    Ok(news(revision(transaction)?, run, false, changes))
}

/// What comes after the change `known`, in the run of this program that is called `run`.
pub(crate) fn news_since(transaction: &Transaction<'_>, known: Option<i64>, run: String) -> Result<News> {
    // INVARIANT: the revision is read before the changes. One that comes between the two is sent twice, never missed.
    let last = revision(transaction)?;
    let Some(known) = known.filter(|known| (last - STORED..=last).contains(known)) else {
        let changes = transaction.rows(sql::REVOKED_TOKENS, [now(), 0, MOST], change)?;
        return Ok(news(last, run, true, changes));
    };
    let changes = transaction.rows(sql::CHANGES_AFTER, [known, MOST], change)?;
    let revision = changes.last().map_or(known, |change| change.revision);
    Ok(news(revision, run, false, changes))
}
