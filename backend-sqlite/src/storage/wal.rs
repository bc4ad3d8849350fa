//! The write-ahead log: what is committed is in it first, and moves into the database file at a checkpoint. It has a size
//! that it is cut to, it is looked at now and then, and a clean stop leaves nothing in it, so that the database file alone
//! is the whole database.

use std::time::Duration;

use rusqlite::Connection;
use tokio::time::timeout;
use tracing::{info, warn};

use super::migrations::wal_of;
use super::{BUSY_TIMEOUT, Database, Inner, Place, Result};

/// A log that has grown beyond this is cut to it at the next checkpoint, in bytes. SQLite moves it into the database every
/// 1000 pages (4 MiB); it grows on while somebody reads an old state.
pub(super) const SIZE_LIMIT: i64 = 64 << 20;

/// How often the log is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// For requests that are under way when the database is closed.
const LAST_WORK: Duration = Duration::from_secs(5);

/// The longest that a checkpoint waits for readers; writers wait meanwhile.
const WAIT_FOR_READERS: Duration = Duration::from_millis(200);

/// How far a checkpoint comes.
#[derive(Clone, Copy)]
enum Checkpoint {
    /// As far as nobody has to wait.
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

impl Inner {
    /// The size of the log, in bytes.
    fn wal_size(&self) -> i64 {
        let size = std::fs::metadata(wal_of(&self.writer.path)).map_or(0, |metadata| metadata.len());
        i64::try_from(size).unwrap_or(i64::MAX)
    }

    fn note_wal_size(&self) -> i64 {
        let size = self.wal_size();
        self.metrics.db_wal_bytes.set(size);
        size
    }
}

impl Database {
    /// Moves what is committed into the database file now and then, forever. A log that stays too large is said once.
    pub(crate) async fn watch_wal(self) {
        let mut is_large = false;
        loop {
            tokio::time::sleep(LOOK).await;
            let size = self.inner.note_wal_size();
            if size == 0 {
                continue;
            }
            let how = if size > SIZE_LIMIT { Checkpoint::Truncate } else { Checkpoint::Passive };
            // What fails is logged, and tried again next time.
            let _ = self.checkpoint(how).await;
            let size = self.inner.note_wal_size();
            match (is_large, size > SIZE_LIMIT) {
                (false, true) => warn!(
                    bytes = size,
                    limit = SIZE_LIMIT,
                    "the write-ahead log is too large: somebody has been reading an old state for long, or writes come faster \
                     than the disk takes them. Look for other programs that have the database open"
                ),
                (true, false) => info!(bytes = size, "the write-ahead log is no longer too large"),
                _ => {}
            }
            is_large = size > SIZE_LIMIT;
        }
    }

    async fn checkpoint(&self, how: Checkpoint) -> Result<bool> {
        self.run(&self.inner.writer, move |connection, _| {
            connection.busy_timeout(WAIT_FOR_READERS)?;
            let done = how.run(connection);
            connection.busy_timeout(BUSY_TIMEOUT)?;
            done
        })
        .await
    }

    /// Closes the database after a last checkpoint: nothing is read or written after this, and the database file alone is
    /// the whole database.
    pub(crate) async fn close(&self) {
        self.inner.readers.places.close();
        self.inner.readers.idle.lock().clear();
        let moved = timeout(LAST_WORK, self.checkpoint(Checkpoint::Truncate)).await;
        // Whoever writes waits for the checkpoint, and then finds the door closed.
        let last = timeout(LAST_WORK, Place::wait_for(&self.inner.writer)).await;
        self.inner.writer.places.close();
        drop(last);
        self.inner.writer.idle.lock().clear();
        let file = self.inner.writer.path.display();
        let left = self.inner.wal_size();
        if matches!(moved, Ok(Ok(true))) && left == 0 {
            info!(%file, "the database is closed");
        } else {
            let why = match moved {
                Ok(Err(error)) => error.to_string(),
                Ok(Ok(_)) => "another program has it open".to_owned(),
                Err(_) => "work did not finish in time".to_owned(),
            };
            warn!(
                %file,
                wal_bytes = left,
                why,
                "the database is closed, and its write-ahead log holds data: the file alone is not the database. Copy both, or \
                 none"
            );
        }
    }
}
