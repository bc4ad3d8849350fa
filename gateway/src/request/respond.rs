//! Answers that the gateway itself writes: refusals, and the last good answer instead of a refusal.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Version};
use pingora_core::Result;
use pingora_core::protocols::http::{HttpTask, ServerSession as Session};
use pingora_http::ResponseHeader;
use policy::progress::Progress;
use policy::values::refusal::Refusal;

use crate::clock;
use crate::http::grpc;
use crate::http::problem;
use crate::request::exchange::Exchange;
use crate::request::failure::is_http2;
use crate::request::proxy::Proxy;

/// How long the rest of a request is read after an early answer over HTTP/2, where a reset stream would lose the
/// answer.
const DRAIN: Duration = Duration::from_secs(2);

impl Proxy {
    /// Sends the last good answer instead of a refusal, if one fits the request.
    pub(crate) async fn give_last_good(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        refusal: &Refusal,
    ) -> Result<bool> {
        let request = session.req_header();
        let reads = request.method == http::Method::GET || request.method == http::Method::HEAD;
        let Progress { route: Some(route), subject: Some(subject), .. } = &exchange.progress else {
            return Ok(false);
        };
        if !(reads && refusal.or_last_good) {
            return Ok(false);
        }
        let (lookup, now) = (exchange.cache_lookup(route, subject, request), clock::steady());
        let Some(cached) = self.gateway.last_good.find(&lookup, now) else { return Ok(false) };
        let mut header = (*cached.header).clone();
        problem::complete(&mut header, &exchange.request_id, &exchange.rules().headers, exchange.channel)?;
        header.insert_header("age", cached.age(now).as_secs().to_string())?;
        header.insert_header("warning", problem::STALE)?;
        header.remove_header("transfer-encoding");
        header.insert_header("content-length", cached.body.len().to_string())?;
        self.gateway.metrics.stale_answers.with_label_values(&[&*route.name]).inc();
        let body = (request.method == http::Method::GET).then_some(cached.body);
        if session.req_header().version == Version::HTTP_10 {
            session.set_keepalive(None);
        }
        match body {
            Some(body) => {
                session.write_response_header(Box::new(header)).await?;
                session.write_response_body(body, true).await?;
            }
            None => {
                session.response_duplex_vec(vec![HttpTask::Header(Box::new(header), true)]).await?;
            }
        }
        Ok(true)
    }
}

/// Writes a refusal: a problem, or for a gRPC call a gRPC status.
pub(crate) async fn refuse(session: &mut Session, exchange: &mut Exchange, refusal: Refusal) -> Result<()> {
    let request = session.req_header();
    // After a malformed request the framing of the next one cannot be trusted.
    let close = request.version == Version::HTTP_10 || refusal.status() == 400;
    let is_call = request.version == Version::HTTP_2 && grpc::is_grpc(&request.headers);
    if close {
        session.set_keepalive(None);
    }
    let (headers, channel) = (&exchange.rules().headers, exchange.channel);
    let fields = problem::fields(&refusal, &exchange.request_id, headers, channel);
    let status = if is_call { 200 } else { refusal.status() };
    let mut header = ResponseHeader::build(status, Some(16))?;
    for (name, value) in fields {
        header.insert_header(name, value)?;
    }
    let body = if is_call {
        for (name, value) in grpc::refusal_fields(&refusal) {
            header.insert_header(name, value)?;
        }
        exchange.grpc_status = Some(grpc::of_refusal(&refusal));
        None
    } else {
        let body = problem::body(&refusal, &exchange.request_id);
        header.insert_header("content-length", body.len().to_string())?;
        Some(body)
    };
    exchange.refusal = Some(refusal);
    match body {
        Some(body) => {
            session.write_response_header(Box::new(header)).await?;
            session.write_response_body(body.into(), true).await?;
        }
        None => {
            session.response_duplex_vec(vec![HttpTask::Header(Box::new(header), true)]).await?;
        }
    }
    if is_http2(session) && !session.is_body_done() {
        session.set_total_drain_timeout(Some(DRAIN));
        let _ = session.drain_request_body().await;
    }
    Ok(())
}

/// Ends a gRPC call whose answer has begun, with a status. If the stream was only reset, it would look as if the caller
/// had ended it.
pub(crate) async fn end_call(
    session: &mut Session,
    exchange: &mut Exchange,
    refusal: &Refusal,
) -> Result<()> {
    let mut trailers = HeaderMap::new();
    for (name, value) in grpc::refusal_fields(refusal).filter(|(name, _)| *name != "content-type") {
        if let Ok(value) = HeaderValue::from_str(&value) {
            trailers.insert(name, value);
        }
    }
    exchange.grpc_status = Some(grpc::of_refusal(refusal));
    session.response_duplex_vec(vec![HttpTask::Trailer(Some(Box::new(trailers)))]).await?;
    Ok(())
}
