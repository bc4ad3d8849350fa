//! The write-ahead log: what is committed is in it first, and moves into the database file at a checkpoint. It has a
//! size that it is cut to, it is checked at an interval, and a clean stop leaves nothing in it, so that the database
//! file alone is the whole database.

use std::time::Duration;

use rusqlite::Connection;
use tokio::time::timeout;
use tracing::{info, warn};

use super::connections::{BUSY_TIMEOUT, Slot, WAL_SIZE_LIMIT};
use super::database::{Database, Inner};
use super::error::Result;
use super::migrations::wal_of;

/// How often the size of the log is checked.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// For requests in flight when the database is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest that a checkpoint waits for readers; writers wait meanwhile.
const WAIT_FOR_READERS: Duration = Duration::from_millis(200);

/// How far a checkpoint comes.
#[derive(Clone, Copy)]
enum Checkpoint {
    /// As far as no reader and no writer has to wait.
    Passive,
    /// All of it; the file is empty afterwards.
    Truncate,
}

impl Checkpoint {
    /// Whether all of it was done.
    fn run(self, connection: &Connection) -> Result<bool> {
        let statement = match self {
            Self::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
            Self::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
        };
        let (busy, pages, moved): (bool, i64, i64) =
            connection.query_row(statement, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Ok(!busy && pages == moved)
    }
}

/// The size of the log, in bytes.
fn size(inner: &Inner) -> i64 {
    let size = std::fs::metadata(wal_of(&inner.writer.path)).map_or(0, |metadata| metadata.len());
    i64::try_from(size).unwrap_or(i64::MAX)
}

fn report_size(inner: &Inner) -> i64 {
    let size = size(inner);
    inner.metrics.db_wal_bytes.set(size);
    size
}

/// Moves what is committed into the database file at an interval, forever. A log that stays too large is logged once.
pub(crate) async fn watch(database: Database) {
    let mut is_large = false;
    loop {
        tokio::time::sleep(CHECK_EVERY).await;
        let size = report_size(&database.inner);
        if size == 0 {
            continue;
        }
        let how = if size > WAL_SIZE_LIMIT { Checkpoint::Truncate } else { Checkpoint::Passive };
        // What fails is logged, and tried again next time.
        let _ = checkpoint(&database, how).await;
        let size = report_size(&database.inner);
        match (is_large, size > WAL_SIZE_LIMIT) {
            (false, true) => warn!(
                bytes = size,
                limit = WAL_SIZE_LIMIT,
                "the write-ahead log is too large: a reader has held an old state for long, or writes come faster \
                 than the disk takes them. Look for other programs that have the database open"
            ),
            (true, false) => info!(bytes = size, "the write-ahead log is no longer too large"),
            _ => {}
        }
        is_large = size > WAL_SIZE_LIMIT;
    }
}

async fn checkpoint(database: &Database, how: Checkpoint) -> Result<bool> {
    let run = move |connection: &mut Connection, _: &Inner| {
        connection.busy_timeout(WAIT_FOR_READERS)?;
        let done = how.run(connection);
        connection.busy_timeout(BUSY_TIMEOUT)?;
        done
    };
    database.run(&database.inner.writer, run).await
}

/// Closes the database after a last checkpoint: nothing is read or written after this, and the database file alone is
/// the whole database.
pub(crate) async fn close(database: &Database) {
    let inner = &database.inner;
    inner.readers.slots.close();
    inner.readers.idle.lock().clear();
    let moved = timeout(CLOSE_TIMEOUT, checkpoint(database, Checkpoint::Truncate)).await;
    // A writer waits for the checkpoint, and then finds the pool closed.
    let last = timeout(CLOSE_TIMEOUT, Slot::wait_for(&inner.writer)).await;
    inner.writer.slots.close();
    drop(last);
    inner.writer.idle.lock().clear();
    let file = inner.writer.path.display();
    let left = size(inner);
    if matches!(moved, Ok(Ok(true))) && left == 0 {
        info!(%file, "the database is closed");
        return;
    }
    let why = match moved {
        Ok(Err(error)) => error.to_string(),
        Ok(Ok(_)) => "another program has it open".to_owned(),
        Err(_) => "work did not finish in time".to_owned(),
    };
    warn!(
        %file,
        wal_bytes = left,
        why,
        "the database is closed, and its write-ahead log holds data: the file alone is not the database. Copy both, or none"
    );
}
