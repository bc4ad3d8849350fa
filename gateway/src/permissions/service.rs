//! The permission service as it is asked: its questions, its answers, its feed.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use protocol::assertion::{Assertion, FIELD};
use protocol::feed::{self, News};
use serde::{Deserialize, Serialize};
use service::telemetry;
use tracing::warn;

use crate::identity::assertion::{Signer, bound_to};
use crate::upstream::Upstreams;

/// For one question.
const PATIENCE: Duration = Duration::from_secs(2);

/// For one round of the change feed, whose answer waits up to a second for news.
const FEED_PATIENCE: Duration = Duration::from_secs(3);

/// An answer that is none.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("status {0}")]
pub(super) struct Status(pub(super) u16);

/// The permission service.
pub(super) struct Service {
    pub(super) upstreams: Upstreams,
    pub(super) signer: Option<Signer>,
    pub(super) replica: String,
}

impl Service {
    pub(super) async fn ask<T: for<'de> Deserialize<'de>>(
        &self,
        upstream: &str,
        target: &str,
        question: &impl Serialize,
    ) -> Option<T> {
        let asked = async {
            let body = serde_json::to_string(question)?;
            let request = self.signed("POST", target, body.as_bytes())?;
            let request = request.header("content-type", "application/json");
            let body = self.send(upstream, request, target, body.into_bytes(), PATIENCE).await?;
            anyhow::Ok(serde_json::from_slice(&body)?)
        };
        asked
            .await
            .inspect_err(|error| {
                warn!(target, error = format!("{error:#}"), "the permission service did not answer");
            })
            .ok()
    }

    pub(super) async fn changes(&self, upstream: &str, known: Option<(&str, i64)>) -> anyhow::Result<News> {
        let mut target = format!("{}?replica={}", feed::PATH, self.replica);
        if let Some((run, revision)) = known {
            target = format!("{target}&run={run}&revision={revision}");
        }
        self.news(upstream, target).await
    }

    /// The rest of the tokens that are revoked.
    pub(super) async fn revoked_after(&self, upstream: &str, after: i64) -> anyhow::Result<News> {
        let target = format!("{}?replica={}&revoked_after={after}", feed::PATH, self.replica);
        self.news(upstream, target).await
    }

    async fn news(&self, upstream: &str, target: String) -> anyhow::Result<News> {
        let request = self.signed("GET", &target, b"")?;
        let body = self.send(upstream, request, &target, Vec::new(), FEED_PATIENCE).await?;
        Ok(serde_json::from_slice(&body)?)
    }

    async fn send(
        &self,
        upstream: &str,
        request: http::request::Builder,
        target: &str,
        body: Vec<u8>,
        patience: Duration,
    ) -> anyhow::Result<Bytes> {
        let answer = self.upstreams.ask(upstream, request, target, &body, patience).await?;
        if answer.status() != http::StatusCode::OK {
            return Err(Status(answer.status().as_u16()).into());
        }
        Ok(answer.into_body())
    }

    fn signed(&self, method: &str, target: &str, body: &[u8]) -> anyhow::Result<http::request::Builder> {
        let mut request = Request::builder().method(method);
        if let Some(signer) = &self.signer {
            let body = bound_to(body);
            let (method, target) = (method.into(), target.into());
            let assertion = Assertion { method, target, own: true, body, ..Assertion::default() };
            request = request.header(FIELD, signer.sign(assertion)?);
        }
        if let Some(parent) = telemetry::traceparent(&tracing::Span::current()) {
            request = request.header("traceparent", parent);
        }
        Ok(request)
    }
}
