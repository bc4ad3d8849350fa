//! SQLite behind an async door: one writer, a pool of readers, every statement named, timed and traced.
//!
//! WAL lets readers go on while the writer writes. The writer is one connection, so that `SQLITE_BUSY` comes only from
//! other programs (a backup, an operator's shell), and is retried. Statements run on blocking threads inside the
//! caller's span.

pub(crate) mod followers;
mod migrations;
mod mode;
pub(crate) mod sql;
mod wal;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, Params, Row, TransactionBehavior};
use tokio::sync::Semaphore;
use tracing::{Span, info_span, warn};

use self::followers::Followers;
use self::mode::Mode;
use self::sql::Statement;
use crate::config::{DatabaseConfig, Synchronous};
use crate::observe::metrics::Metrics;

/// Why the database did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DbError {
    /// No connection was free in time.
    #[error("no database connection was free in time")]
    Busy,
    /// Nothing is written for now.
    #[error("nothing is written for now")]
    ReadOnly,
    /// SQLite said no.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The program is stopping.
    #[error("the database is closed")]
    Stopped,
}

impl DbError {
    /// Whether the statement broke a UNIQUE or a foreign key rule.
    pub(crate) fn is_constraint(&self) -> bool {
        matches!(self, Self::Sqlite(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation))
    }
}

pub(crate) type Result<T> = std::result::Result<T, DbError>;

/// Waits before the tries after `SQLITE_BUSY` and `SQLITE_LOCKED`.
const BUSY_WAITS: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(400)];

/// How long SQLite itself waits for a lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The database; cheap to clone.
#[derive(Clone)]
pub(crate) struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    writer: Arc<Pool>,
    readers: Arc<Pool>,
    metrics: Metrics,
    mode: Mode,
    /// Those who are told of a commit that changed who may do what.
    followers: Followers,
}

/// Connections that wait to be borrowed; opened when first needed.
struct Pool {
    path: PathBuf,
    synchronous: Synchronous,
    flags: OpenFlags,
    idle: Mutex<Vec<Connection>>,
    places: Semaphore,
    wait: Duration,
}

impl Database {
    /// Opens the file, makes its directory if needed, and brings the schema up to date.
    pub(crate) fn open(config: &DatabaseConfig, metrics: Metrics) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        if let Some(directory) = config.path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory).with_context(|| {
                format!("database.path: cannot make the directory `{}`", directory.display())
            })?;
        }
        let readers = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let writer = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let pool = |flags, size: u32| {
            Arc::new(Pool {
                path: config.path.clone(),
                synchronous: config.synchronous,
                flags,
                idle: Mutex::default(),
                places: Semaphore::new(usize::try_from(size).unwrap_or(usize::MAX >> 3)),
                wait: config.pool_wait,
            })
        };
        let inner = Inner {
            writer: pool(writer, 1),
            readers: pool(readers, config.pool_size + config.pool_overflow),
            metrics,
            mode: Mode::default(),
            followers: Followers::new(),
        };
        let connection = inner
            .writer
            .open()
            .with_context(|| format!("database.path: cannot open `{}`", config.path.display()))?;
        inner.writer.idle.lock().push(connection);
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Reads, all of it from one state of the database.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Session<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.run(&self.inner.readers, move |connection, inner| {
            let snapshot = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
            work(&Session::new(&snapshot, &inner.metrics))
        })
        .await
    }

    /// Writes in one transaction, which is rolled back when `work` fails. `work` may run more than once. What changes who
    /// may do what is known to the gateways that follow when this returns, see [`Followers::tell`].
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl Fn(&Session<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if self.inner.mode.refuses() {
            return Err(DbError::ReadOnly);
        }
        let written = self.write_whatever_the_mode(work).await;
        let (value, revision) = written.inspect_err(|error| self.inner.mode.learn(error))?;
        if let Some(revision) = revision {
            self.inner.followers.tell(revision).await;
        }
        Ok(value)
    }

    async fn write_whatever_the_mode<T: Send + 'static>(
        &self,
        work: impl Fn(&Session<'_>) -> Result<T> + Send + 'static,
    ) -> Result<(T, Option<i64>)> {
        let written = self.run(&self.inner.writer, move |connection, inner| {
            let mut waits = BUSY_WAITS.iter();
            loop {
                match transact(connection, inner, &work) {
                    Err(error) if is_busy(&error) => match waits.next() {
                        Some(wait) => {
                            inner.metrics.db_query_retries.inc();
                            warn!(%error, wait_ms = wait.as_millis(), "the database is busy, trying again");
                            std::thread::sleep(*wait);
                        }
                        None => return Err(error),
                    },
                    result => return result,
                }
            }
        });
        written.await
    }

    /// Whether anything is written, and who may change that.
    pub(crate) fn mode(&self) -> &Mode {
        &self.inner.mode
    }

    /// Tries now and then whether writing works again, forever.
    pub(crate) async fn leave_read_only(self) {
        loop {
            tokio::time::sleep(mode::TRY_EVERY).await;
            if self.inner.mode.is_failing() {
                let tried = self.write_whatever_the_mode(|session| session.run(sql::TRY_WRITING, []));
                self.inner.mode.tried(tried.await.is_ok());
            }
        }
    }

    /// Writes in one transaction, of which nothing stays when `work` comes to a problem.
    pub(crate) async fn write_or_nothing<T: Send + 'static, P: Send + 'static>(
        &self,
        work: impl Fn(&Session<'_>) -> Result<std::result::Result<T, P>> + Send + 'static,
    ) -> Result<std::result::Result<T, P>> {
        self.write(move |session| {
            let result = work(session)?;
            if result.is_err() {
                session.abandon();
            }
            Ok(result)
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        pool: &Arc<Pool>,
        work: impl FnOnce(&mut Connection, &Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let place = Place::wait_for(pool).await?;
        let inner = Arc::clone(&self.inner);
        let span = Span::current();
        let task = tokio::task::spawn_blocking(move || {
            let _entered = span.entered();
            let mut connection =
                place.connection().inspect_err(|_| inner.metrics.db_connection_errors.inc())?;
            let result = work(&mut connection, &inner);
            match &result {
                // A connection that failed in an unknown way is closed, not handed on.
                Err(DbError::Sqlite(error)) if !matches!(error, rusqlite::Error::SqliteFailure(..)) => {}
                _ => place.give_back(connection),
            }
            result
        });
        task.await.map_err(|_| DbError::Stopped)?.inspect_err(|error| {
            if !error.is_constraint() {
                warn!(%error, "a database operation failed");
            }
        })
    }

    /// Those who follow changes to who may do what.
    pub(crate) fn followers(&self) -> &Followers {
        &self.inner.followers
    }

    /// Places free and connections waiting to be lent, of the readers.
    pub(crate) fn pool_status(&self) -> (usize, usize) {
        let idle = self.inner.readers.idle.lock().len();
        (self.inner.readers.places.available_permits(), idle)
    }
}

/// A place in a pool, given back when dropped, whatever happened meanwhile.
struct Place(Arc<Pool>);

impl Place {
    async fn wait_for(pool: &Arc<Pool>) -> Result<Self> {
        let place = tokio::time::timeout(pool.wait, pool.places.acquire()).await;
        place.map_err(|_| DbError::Busy)?.map_err(|_| DbError::Stopped)?.forget();
        Ok(Self(Arc::clone(pool)))
    }

    fn connection(&self) -> Result<Connection> {
        let idle = self.0.idle.lock().pop();
        idle.map_or_else(|| self.0.connect(), Ok)
    }

    fn give_back(&self, connection: Connection) {
        self.0.idle.lock().push(connection);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places.add_permits(1);
    }
}

impl Pool {
    /// The first connection of a writer, which makes the file where there is none.
    fn open(&self) -> anyhow::Result<Connection> {
        migrations::check_parts(&self.path)?;
        make_private(&self.path)?;
        let mut connection = Connection::open_with_flags(&self.path, self.flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // Before there is a write-ahead log: a file that has one has its schema.
        migrations::prepare(&mut connection, &self.path)?;
        Ok(self.set_up(connection)?)
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
            connection.pragma_update(None, "journal_size_limit", wal::SIZE_LIMIT)?;
            connection.pragma_update(None, "synchronous", self.synchronous.as_str())?;
        }
        Ok(connection)
    }
}

fn transact<T>(
    connection: &mut Connection,
    inner: &Inner,
    work: &impl Fn(&Session<'_>) -> Result<T>,
) -> Result<(T, Option<i64>)> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let session = Session::new(&transaction, &inner.metrics);
    let value = work(&session)?;
    if session.abandoned.get() {
        return Ok((value, None)); // dropped, the transaction is rolled back
    }
    let revision = session.announced.get();
    let _span =
        info_span!("sql", otel.name = "COMMIT", otel.kind = "client", db.system.name = "sqlite").entered();
    transaction.commit()?;
    Ok((value, revision))
}

/// The file holds password hashes and the signing key: nobody else on the machine reads it. SQLite gives the files that
/// it puts beside it the same mode.
fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}

fn is_busy(error: &DbError) -> bool {
    let code = |error: &rusqlite::Error| error.sqlite_error_code();
    matches!(error, DbError::Sqlite(error)
        if matches!(code(error), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)))
}

/// A borrowed connection, inside a transaction when it writes.
pub(crate) struct Session<'c> {
    connection: &'c Connection,
    metrics: &'c Metrics,
    announced: Cell<Option<i64>>,
    abandoned: Cell<bool>,
}

impl<'c> Session<'c> {
    fn new(connection: &'c Connection, metrics: &'c Metrics) -> Self {
        Self { connection, metrics, announced: Cell::new(None), abandoned: Cell::new(false) }
    }

    /// Tells those who follow changes of this one, once its transaction is committed.
    pub(crate) fn announce(&self, revision: i64) {
        self.announced.set(Some(revision));
    }

    /// Lets nothing of this transaction stay.
    fn abandon(&self) {
        self.abandoned.set(true);
    }

    /// The first row, if any.
    pub(crate) fn row<T>(
        &self,
        statement: Statement,
        params: impl Params,
        map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        self.timed(statement, |prepared| prepared.query_row(params, map).optional())
    }

    /// Every row.
    pub(crate) fn rows<T>(
        &self,
        statement: Statement,
        params: impl Params,
        map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        self.timed(statement, |prepared| prepared.query_map(params, map)?.collect())
    }

    /// The first rows: `limit` of them, or up to the one that makes the page `full`; and whether there are more.
    pub(crate) fn page<T>(
        &self,
        statement: Statement,
        params: impl Params,
        map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
        limit: usize,
        mut full: impl FnMut(&T) -> bool,
    ) -> Result<(Vec<T>, bool)> {
        self.timed(statement, |prepared| {
            let mut rows = prepared.query_map(params, map)?;
            let mut page = Vec::new();
            while let Some(item) = rows.next().transpose()? {
                let ends = full(&item) || page.len() + 1 == limit;
                page.push(item);
                if ends {
                    break;
                }
            }
            let more = rows.next().transpose()?.is_some();
            Ok((page, more))
        })
    }

    /// No rows; how many were changed.
    pub(crate) fn run(&self, statement: Statement, params: impl Params) -> Result<usize> {
        self.timed(statement, |prepared| prepared.execute(params))
    }

    fn timed<T>(
        &self,
        statement: Statement,
        work: impl FnOnce(&mut rusqlite::CachedStatement<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let _span = info_span!(
            "sql",
            otel.name = statement.name,
            otel.kind = "client",
            db.system.name = "sqlite",
            db.operation.name = statement.name,
            db.query.text = statement.text,
        )
        .entered();
        let started = Instant::now();
        let result =
            self.connection.prepare_cached(statement.text).and_then(|mut prepared| work(&mut prepared));
        self.metrics.db_operation(statement.name, result.is_ok(), started.elapsed());
        Ok(result?)
    }
}
