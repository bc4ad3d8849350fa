//! The log of changes to who may do what, and who follows it.
//!
//! A change is numbered in the transaction that makes it. Gateways follow the log through `/internal/changes`: each
//! asks for what comes after the change that it has taken in, and thereby says that it has. A call that makes a change
//! is answered once every gateway that follows has taken it in, so that what was taken back is refused everywhere by the
//! time at which its taker hears that it is done; one that does not answer holds nobody up for longer than [`crate::storage::followers::AT_MOST`].

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use rusqlite::params;
use serde::{Deserialize, Serialize};

use crate::clock::now;
use crate::http::app::App;
use crate::http::extract::Query;
use crate::problem::Result;
use crate::storage::sql;
use crate::storage::{self, Database, Transaction};

/// How long a question waits for news before it is told that there is none.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often it looks meanwhile: another program may have made a change.
const LOOK: Duration = Duration::from_millis(250);

/// The most changes in one answer.
const MOST: i64 = 1_000;

/// So many changes are remembered; a gateway that is further behind begins anew.
const REMEMBERED: i64 = 100_000;

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
pub(crate) fn note(transaction: &Transaction<'_>, subject: Subject<'_>) -> storage::Result<i64> {
    let (kind, name, permission, resource, until) = match subject {
        Subject::User(id) => ("user", id, None, None, None),
        Subject::Role(name) => ("role", name, None, None, None),
        Subject::Group(name) => ("group", name, None, None, None),
        Subject::Acl(kind, name, permission, resource) => {
            (kind, name, Some(permission), Some(resource), None)
        }
        Subject::ApiKey(id) => ("api_key", id, None, None, None),
        Subject::Token(jti, until) => ("token", jti, None, None, Some(until)),
    };
    let values = params![kind, name, permission, resource, until, now()];
    let revision = transaction.row(sql::ADD_CHANGE, values, |row| row.get(0))?.unwrap_or_default();
    transaction.announce(revision);
    Ok(revision)
}

/// The number of the last change.
pub(crate) fn revision(transaction: &Transaction<'_>) -> storage::Result<i64> {
    Ok(transaction.row(sql::REVISION, [], |row| row.get(0))?.unwrap_or_default())
}

/// Forgets what no gateway needs any more.
pub(crate) fn sweep(transaction: &Transaction<'_>) -> storage::Result<usize> {
    let last = revision(transaction)?;
    transaction.run(sql::DROP_OLD_CHANGES, params![last - REMEMBERED, now()])
}

/// A change as a gateway reads it.
#[derive(Debug, Serialize)]
struct Change {
    revision: i64,
    kind: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    permission: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<i64>,
}

fn change(row: &rusqlite::Row<'_>) -> rusqlite::Result<Change> {
    Ok(Change {
        revision: row.get(0)?,
        kind: row.get(1)?,
        name: row.get(2)?,
        permission: row.get(3)?,
        resource: row.get(4)?,
        until: row.get(5)?,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Since {
    /// What the gateway has taken in; none when it begins.
    revision: Option<i64>,
    /// Of which run of this program that is a number. The database may have been put back to an earlier state since.
    run: Option<String>,
    /// Instead: the tokens that are revoked, from this change on. The rest of a reset.
    revoked_after: Option<i64>,
    /// Which gateway it is.
    replica: String,
}

/// What a gateway is told.
#[derive(Debug, Serialize)]
pub(crate) struct News {
    /// With this it knows everything up to here.
    revision: i64,
    /// Which run of this program this is.
    run: String,
    /// Whatever it knew before is worth nothing: it begins, or is too far behind, or this program has begun anew.
    reset: bool,
    /// What happened since; after a reset, the tokens that are revoked.
    changes: Vec<Change>,
    /// Whether there are more of them.
    more: bool,
}

impl News {
    fn of(revision: i64, run: String, reset: bool, changes: Vec<Change>) -> Self {
        let more = changes.len() >= usize::try_from(MOST).unwrap_or(usize::MAX);
        Self { revision, run, reset, changes, more }
    }
}

/// `GET /internal/changes?revision=N&run=RUN&replica=ID`: answers at once when there has been a change after N, else within a
/// second.
pub(crate) async fn feed(State(app): State<App>, Query(since): Query<Since>) -> Result<Json<News>> {
    let followers = app.database.followers();
    let _following = followers.asks(&since.replica, since.revision.unwrap_or_default());
    let deadline = Instant::now() + PATIENCE;
    let mut commits = followers.commits();
    if let Some(after) = since.revoked_after {
        let run = followers.run().to_owned();
        let rest = app.database.read(move |transaction| {
            let changes = transaction.rows(sql::REVOKED_TOKENS, [now(), after, MOST], change)?;
            Ok(News::of(revision(transaction)?, run, false, changes))
        });
        return Ok(Json(rest.await?));
    }
    let known = since.revision.filter(|_| since.run.as_deref() == Some(followers.run()));
    loop {
        let run = followers.run().to_owned();
        let news = app.database.read(move |transaction| news_since(transaction, known, run)).await?;
        if news.reset || !news.changes.is_empty() || Instant::now() >= deadline {
            return Ok(Json(news));
        }
        let _ = tokio::time::timeout(LOOK, commits.changed()).await;
    }
}

fn news_since(transaction: &Transaction<'_>, known: Option<i64>, run: String) -> storage::Result<News> {
    // INVARIANT: the revision is read before the changes. One that comes between the two is told twice, never missed.
    let last = revision(transaction)?;
    let Some(known) = known.filter(|known| (last - REMEMBERED..=last).contains(known)) else {
        let changes = transaction.rows(sql::REVOKED_TOKENS, [now(), 0, MOST], change)?;
        return Ok(News::of(last, run, true, changes));
    };
    let changes = transaction.rows(sql::CHANGES_AFTER, [known, MOST], change)?;
    let revision = changes.last().map_or(known, |change| change.revision);
    Ok(News::of(revision, run, false, changes))
}

/// Drops what is too old to matter, now and then, for ever.
pub(crate) async fn sweep_for_ever(database: Database) {
    const EVERY: Duration = Duration::from_mins(10);
    loop {
        // What fails is logged, and tried again next time.
        let _ = database
            .write(|transaction| {
                sweep(transaction)?;
                transaction.run(sql::DROP_OLD_SESSIONS, [now() - 3_600])?;
                crate::model::lockout::sweep(transaction)
            })
            .await;
        tokio::time::sleep(EVERY).await;
    }
}
