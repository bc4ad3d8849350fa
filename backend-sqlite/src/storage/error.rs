//! Why the database did not answer, and why a transaction was rolled back.

use rusqlite::ErrorCode;

pub(crate) type Result<T, E = DbError> = std::result::Result<T, E>;

/// Why the database did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DbError {
    #[error("no database connection was free in time")]
    Busy,
    /// The mode is read-only.
    #[error("nothing is written for now")]
    ReadOnly,
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The program is stopping.
    #[error("the database is closed")]
    Stopped,
}

impl DbError {
    /// Whether the statement broke a UNIQUE or a foreign key rule.
    pub(crate) fn is_constraint(&self) -> bool {
        self.code() == Some(ErrorCode::ConstraintViolation)
    }

    /// Whether another program holds a lock, so that a retry may succeed.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
    }

    fn code(&self) -> Option<ErrorCode> {
        let Self::Sqlite(error) = self else { return None };
        error.sqlite_error_code()
    }
}

/// What ends a transaction without a commit: a failure of the database, or a refusal.
pub(crate) trait Abort: From<DbError> + Send + 'static {
    /// The failure of the database; `None` for a refusal.
    fn database_error(&self) -> Option<&DbError>;
}

impl Abort for DbError {
    fn database_error(&self) -> Option<&DbError> {
        Some(self)
    }
}
