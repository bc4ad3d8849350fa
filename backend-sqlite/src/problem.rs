//! Every error that a client sees: problem+json (RFC 9457) with a `code`, and nothing about our insides.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::storage::{Abort, DbError};

/// The code of a refusal to write. A response field marks it, so that the gateway does not count it as a failure.
const READ_ONLY: &str = "read_only";

/// An answer that is not a success.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    /// Members beyond those of RFC 9457.
    more: Option<(&'static str, Value)>,
    /// Seconds after which it is worth trying again.
    retry_after: Option<u64>,
}

pub(crate) type Result<T> = std::result::Result<T, Problem>;

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        Self { status, code, detail: detail.into(), more: None, retry_after }
    }

    /// Adds a member to the body.
    #[must_use]
    pub(crate) fn with(mut self, name: &'static str, value: Value) -> Self {
        self.more = Some((name, value));
        self
    }

    pub(crate) fn unprocessable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }

    pub(crate) fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    pub(crate) fn forbidden(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, detail)
    }

    /// Nothing is wrong with the request: it may succeed later.
    pub(crate) fn unavailable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
    }

    pub(crate) fn precondition_failed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, "precondition_failed", detail)
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed_request", detail)
    }

    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no such {what}"))
    }

    /// Too much of something just now; after so many seconds it is worth trying again.
    pub(crate) fn too_many(code: &'static str, detail: &str, retry_after: u64) -> Self {
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, code, detail);
        Self { retry_after: Some(retry_after), ..problem.with("retry_after", retry_after.into()) }
    }

    pub(crate) fn unauthorized(code: &'static str, detail: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "code": self.code,
            "detail": self.detail,
            "request_id": crate::observe::current_request_id(),
        });
        if let Some((name, value)) = self.more {
            body[name] = value;
        }
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"palisade\""));
        }
        if self.code == READ_ONLY {
            headers.insert(protocol::READ_ONLY, HeaderValue::from_static("1"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<DbError> for Problem {
    fn from(error: DbError) -> Self {
        // What the client reads and what the log holds are two things: `Database` has logged the cause.
        match error {
            DbError::Busy => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "database_busy", "the database is busy, try again")
            }
            DbError::ReadOnly => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                READ_ONLY,
                "nothing can be changed now, reading continues",
            ),
            DbError::Sqlite(_) | DbError::Stopped => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "database_unavailable",
                "the database is unavailable",
            ),
        }
    }
}

/// Why a transaction was rolled back: the database failed, or the request is refused.
#[derive(Debug)]
pub(crate) enum Failure {
    Database(DbError),
    Refused(Problem),
}

impl Failure {
    /// Adds a member to a refusal.
    #[must_use]
    pub(crate) fn with(self, name: &'static str, value: impl FnOnce() -> Value) -> Self {
        match self {
            Self::Refused(problem) => Self::Refused(problem.with(name, value())),
            Self::Database(error) => Self::Database(error),
        }
    }
}

impl From<DbError> for Failure {
    fn from(error: DbError) -> Self {
        Self::Database(error)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Database(error) => error.into(),
            Failure::Refused(problem) => problem,
        }
    }
}

impl Abort for Failure {
    fn database_error(&self) -> Option<&DbError> {
        match self {
            Self::Database(error) => Some(error),
            Self::Refused(_) => None,
        }
    }
}

/// An error of which the client learns nothing, and the log everything.
#[expect(clippy::needless_pass_by_value, reason = "what `map_err` takes")]
pub(crate) fn internal(error: anyhow::Error) -> Problem {
    tracing::error!(error = format!("{error:#}"), "a request failed");
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal_error",
        "something went wrong here, not with the request",
    )
}
