//! Connections to the database file: opened when first needed, lent to one transaction at a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use super::error::{DbError, Result};
use super::migrations;
use crate::config::{DatabaseConfig, Synchronous};

/// How long SQLite itself waits for a lock.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A write-ahead log that is larger is cut to this at the next checkpoint, in bytes. SQLite moves it into the database
/// every 1000 pages (4 MiB); it grows beyond that while a reader holds an old state.
pub(super) const WAL_SIZE_LIMIT: i64 = 64 << 20;

/// Connections of one kind, with a bound on how many there are.
pub(super) struct Pool {
    pub(super) path: PathBuf,
    synchronous: Synchronous,
    flags: OpenFlags,
    pub(super) idle: Mutex<Vec<Connection>>,
    pub(super) slots: Semaphore,
    wait: Duration,
}

impl Pool {
    pub(super) fn new(config: &DatabaseConfig, flags: OpenFlags, size: u32) -> Self {
        Self {
            path: config.path.clone(),
            synchronous: config.synchronous,
            flags,
            idle: Mutex::default(),
            slots: Semaphore::new(usize::try_from(size).unwrap_or(usize::MAX >> 3)),
            wait: config.pool_wait,
        }
    }

    /// The first connection of a writer, which makes the file where there is none.
    pub(super) fn open(&self) -> anyhow::Result<()> {
        migrations::check_parts(&self.path)?;
        make_private(&self.path)?;
        let mut connection = Connection::open_with_flags(&self.path, self.flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // Before there is a write-ahead log: a file that has one has its schema.
        migrations::prepare(&mut connection, &self.path)?;
        self.idle.lock().push(self.set_up(connection)?);
        Ok(())
    }

    fn connect(&self) -> Result<Connection> {
        let connection = Connection::open_with_flags(&self.path, self.flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        self.set_up(connection)
    }

    fn set_up(&self, connection: Connection) -> Result<Connection> {
        connection.set_prepared_statement_cache_capacity(64);
        connection.pragma_update(None, "foreign_keys", true)?;
        if self.flags.contains(OpenFlags::SQLITE_OPEN_READ_WRITE) {
            connection.pragma_update(None, "journal_mode", "wal")?;
            connection.pragma_update(None, "journal_size_limit", WAL_SIZE_LIMIT)?;
            connection.pragma_update(None, "synchronous", self.synchronous.as_str())?;
        }
        Ok(connection)
    }
}

/// A slot in a pool, given back when it is dropped, whatever happened meanwhile.
pub(super) struct Slot(Arc<Pool>);

impl Slot {
    pub(super) async fn wait_for(pool: &Arc<Pool>) -> Result<Self> {
        let slot = tokio::time::timeout(pool.wait, pool.slots.acquire()).await;
        slot.map_err(|_| DbError::Busy)?.map_err(|_| DbError::Stopped)?.forget();
        Ok(Self(Arc::clone(pool)))
    }

    pub(super) fn connection(&self) -> Result<Connection> {
        let idle = self.0.idle.lock().pop();
        idle.map_or_else(|| self.0.connect(), Ok)
    }

    pub(super) fn give_back(&self, connection: Connection) {
        self.0.idle.lock().push(connection);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.slots.add_permits(1);
    }
}

/// The file holds password hashes and the signing key: nobody else on the machine reads it. SQLite gives the files that
/// it puts beside it the same mode.
fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}
