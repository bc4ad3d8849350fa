//! The parts of a request, with faults that are problems like every other error.

use std::future::Future;

use axum::body::HttpBody as _;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::IntoResponse as _;
use serde::de::DeserializeOwned;
use service::listener::BodyDeadline;
use tokio::time::timeout_at;

use crate::problem::{Problem, Result};

/// A JSON body.
pub(crate) struct Body<T>(pub(crate) T);

/// A JSON body that may be missing.
pub(crate) struct Optional<T>(pub(crate) T);

/// A body as it came.
pub(crate) struct Bytes(pub(crate) axum::body::Bytes);

/// The names in the path.
pub(crate) struct Path<T>(pub(crate) T);

/// The query.
pub(crate) struct Query<T>(pub(crate) T);

/// The result of `reading` a body, unless the body is late.
async fn in_time<T>(deadline: Option<BodyDeadline>, reading: impl Future<Output = T>) -> Result<T> {
    let Some(BodyDeadline(deadline)) = deadline else { return Ok(reading.await) };
    timeout_at(deadline, reading).await.map_err(|_| {
        let detail = "the body did not come in time";
        Problem::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", detail)
    })
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let deadline = request.extensions().get().copied();
        let body = in_time(deadline, axum::Json::from_request(request, state)).await?;
        let axum::Json(body) = body
            .map_err(|rejection| Problem::new(rejection.status(), "malformed_body", rejection.body_text()))?;
        Ok(Self(body))
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for Optional<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let (parts, body) = request.into_parts();
        if body.is_end_stream() {
            return Ok(Self(T::default()));
        }
        Body::from_request(Request::from_parts(parts, body), state).await.map(|Body(body)| Self(body))
    }
}

impl<S: Send + Sync> FromRequest<S> for Bytes {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let deadline = request.extensions().get().copied();
        let bytes = in_time(deadline, axum::body::Bytes::from_request(request, state)).await?;
        bytes.map(Self).map_err(|rejection| {
            let text = rejection.body_text();
            Problem::new(rejection.into_response().status(), "malformed_body", text)
        })
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        let axum::extract::Path(path) =
            path.map_err(|rejection| Problem::bad_request(rejection.body_text()))?;
        Ok(Self(path))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        let axum::extract::Query(query) =
            query.map_err(|rejection| Problem::bad_request(rejection.body_text()))?;
        Ok(Self(query))
    }
}
