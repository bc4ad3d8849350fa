//! The database: transactions that read, transactions that write, and when nothing is written.
//!
//! WAL lets readers continue while the writer writes. The writer is one connection, so that `SQLITE_BUSY` comes only
//! from other programs (a backup, an operator's shell), and is retried. Statements run on blocking threads inside the
//! caller's span.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use tracing::{Span, info_span, warn};

use super::connections::{Pool, Slot};
use super::error::{Abort, DbError, Result};
use super::followers::Followers;
use super::mode::{self, Mode};
use super::sql;
use super::transaction::Transaction;
use crate::config::DatabaseConfig;
use crate::observe::metrics::Metrics;

/// Waits before the retries after `SQLITE_BUSY` and `SQLITE_LOCKED`.
const BUSY_WAITS: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(400)];

/// The database; cheap to clone.
#[derive(Clone)]
pub(crate) struct Database {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) writer: Arc<Pool>,
    pub(super) readers: Arc<Pool>,
    pub(super) metrics: Metrics,
    mode: Mode,
    /// The gateways that are notified of a commit that changed who may do what.
    followers: Followers,
}

impl Database {
    /// Opens the file, makes its directory if needed, and brings the schema up to date.
    pub(crate) fn open(config: &DatabaseConfig, metrics: Metrics) -> anyhow::Result<Self> {
        if let Some(directory) = config.path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory).with_context(|| {
                format!("database.path: cannot make the directory `{}`", directory.display())
            })?;
        }
        let reads = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let writes = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let inner = Inner {
            writer: Arc::new(Pool::new(config, writes, 1)),
            readers: Arc::new(Pool::new(config, reads, config.pool_size + config.pool_overflow)),
            metrics,
            mode: Mode::default(),
            followers: Followers::new(),
        };
        inner
            .writer
            .open()
            .with_context(|| format!("database.path: cannot open `{}`", config.path.display()))?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Reads, all of it from one state of the database.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.run(&self.inner.readers, move |connection, inner| {
            let snapshot = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
            work(&Transaction::new(&snapshot, &inner.metrics))
        })
        .await
    }

    /// Whether the database answers.
    pub(crate) async fn ping(&self) -> Result<()> {
        self.read(|transaction| transaction.row(sql::PING, [], |_| Ok(())).map(drop)).await
    }

    /// Writes in one transaction, which is rolled back when `work` fails or refuses. `work` may run more than once.
    /// What changes who may do what is known to the gateways that follow when this returns, see [`Followers::notify`].
    pub(crate) async fn write<T: Send + 'static, E: Abort>(
        &self,
        work: impl Fn(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        if self.inner.mode.refuses() {
            return Err(DbError::ReadOnly.into());
        }
        let written = self.write_in_any_mode(work).await.inspect_err(|error: &E| {
            if let Some(error) = error.database_error() {
                self.inner.mode.learn(error);
            }
        });
        let (value, revision) = written?;
        if let Some(revision) = revision {
            self.inner.followers.notify(revision).await;
        }
        Ok(value)
    }

    /// Writes in one transaction, which is committed **also when `work` refuses**; only a failure of the database rolls
    /// it back. For what has to stay of a request that is refused, such as the count of a failed login.
    pub(crate) async fn write_and_commit_refusal<T: Send + 'static, R: Send + 'static>(
        &self,
        work: impl Fn(&Transaction<'_>) -> Result<std::result::Result<T, R>> + Send + 'static,
    ) -> Result<std::result::Result<T, R>> {
        self.write(work).await
    }

    async fn write_in_any_mode<T: Send + 'static, E: Abort>(
        &self,
        work: impl Fn(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<(T, Option<i64>), E> {
        let written = self.run(&self.inner.writer, move |connection, inner| {
            let mut waits = BUSY_WAITS.iter();
            loop {
                let done: Result<_, E> = transact(connection, inner, &work);
                let busy = done.as_ref().err().and_then(E::database_error).filter(|error| error.is_busy());
                match (busy, waits.next()) {
                    (Some(error), Some(wait)) => {
                        inner.metrics.db_query_retries.inc();
                        warn!(%error, wait_ms = wait.as_millis(), "the database is busy, trying again");
                        std::thread::sleep(*wait);
                    }
                    _ => return done,
                }
            }
        });
        written.await
    }

    /// Whether anything is written, and who may change that.
    pub(crate) fn mode(&self) -> &Mode {
        &self.inner.mode
    }

    /// Tries at an interval whether writing works again, forever.
    pub(crate) async fn leave_read_only(self) {
        loop {
            tokio::time::sleep(mode::TRY_EVERY).await;
            if self.inner.mode.is_failing() {
                let tried: Result<_> =
                    self.write_in_any_mode(|transaction| transaction.run(sql::TRY_WRITING, [])).await;
                self.inner.mode.tried(tried.is_ok());
            }
        }
    }

    pub(super) async fn run<T: Send + 'static, E: Abort>(
        &self,
        pool: &Arc<Pool>,
        work: impl FnOnce(&mut Connection, &Inner) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let slot = Slot::wait_for(pool).await?;
        let inner = Arc::clone(&self.inner);
        let span = Span::current();
        let task = tokio::task::spawn_blocking(move || {
            let _entered = span.entered();
            let mut connection =
                slot.connection().inspect_err(|_| inner.metrics.db_connection_errors.inc())?;
            let result = work(&mut connection, &inner);
            match result.as_ref().err().and_then(E::database_error) {
                // A connection that failed in an unknown way is closed, and not used again.
                Some(DbError::Sqlite(error)) if !matches!(error, rusqlite::Error::SqliteFailure(..)) => {}
                _ => slot.give_back(connection),
            }
            result
        });
        task.await.map_err(|_| DbError::Stopped)?.inspect_err(|error: &E| {
            if let Some(error) = error.database_error().filter(|error| !error.is_constraint()) {
                warn!(%error, "a database operation failed");
            }
        })
    }

    /// The gateways that follow changes to who may do what.
    pub(crate) fn followers(&self) -> &Followers {
        &self.inner.followers
    }

    /// Of the readers: slots that are free, and connections that are idle.
    pub(crate) fn pool_status(&self) -> (usize, usize) {
        let idle = self.inner.readers.idle.lock().len();
        (self.inner.readers.slots.available_permits(), idle)
    }
}

/// The value of `work`, and the last change that it announced.
fn transact<T, E: Abort>(
    connection: &mut Connection,
    inner: &Inner,
    work: &impl Fn(&Transaction<'_>) -> Result<T, E>,
) -> Result<(T, Option<i64>), E> {
    let begun =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(DbError::from)?;
    let transaction = Transaction::new(&begun, &inner.metrics);
    // INVARIANT: `begun` is rolled back when it is dropped, and only the last line here commits it.
    let value = work(&transaction)?;
    let revision = transaction.announced();
    let _span =
        info_span!("sql", otel.name = "COMMIT", otel.kind = "client", db.system.name = "sqlite").entered();
    begun.commit().map_err(DbError::from)?;
    Ok((value, revision))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    enum Refusal {
        Refused,
        Database(DbError),
    }

    impl From<DbError> for Refusal {
        fn from(error: DbError) -> Self {
            Self::Database(error)
        }
    }

    impl Abort for Refusal {
        fn database_error(&self) -> Option<&DbError> {
            match self {
                Self::Refused => None,
                Self::Database(error) => Some(error),
            }
        }
    }

    fn add(transaction: &Transaction<'_>, role: &str) -> Result<()> {
        transaction.run(sql::ADD_ROLE, [role]).map(drop)
    }

    #[tokio::test]
    async fn a_refusal_rolls_back_unless_it_is_to_be_committed() {
        let dir = tempfile::tempdir().unwrap();
        let config = DatabaseConfig { path: dir.path().join("palisade.db"), ..DatabaseConfig::default() };
        let database = Database::open(&config, Metrics::new().unwrap()).unwrap();
        let before: Vec<String> = roles(&database).await;
        let refused = database.write(|transaction| {
            add(transaction, "lost")?;
            Err::<(), _>(Refusal::Refused)
        });
        assert!(matches!(refused.await, Err(Refusal::Refused)));
        assert_eq!(roles(&database).await, before);
        let refused = database.write_and_commit_refusal(|transaction| {
            add(transaction, "stays")?;
            Ok(Err::<(), _>(Refusal::Refused))
        });
        assert!(matches!(refused.await, Ok(Err(Refusal::Refused))));
        assert!(roles(&database).await.contains(&"stays".to_owned()));
        let failed: Result<()> = database
            .write(|transaction| {
                add(transaction, "lost")?;
                transaction.run(sql::ADD_ROLE_TO_USER, ["nobody", "stays"]).map(drop)
            })
            .await;
        assert!(failed.is_err_and(|error| error.is_constraint()));
        assert!(!roles(&database).await.contains(&"lost".to_owned()));
    }

    async fn roles(database: &Database) -> Vec<String> {
        database.read(|transaction| transaction.rows(sql::LIST_ROLES, [], |row| row.get(0))).await.unwrap()
    }
}
