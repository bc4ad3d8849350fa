//! Handles an upstream's answer: what it says about the upstream, and which part of it the client receives.

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use pingora_core::Result;
use pingora_core::protocols::http::ServerSession as Session;
use pingora_http::{RequestHeader, ResponseHeader};
use policy::routes::WhenOpen;
use policy::rules::authorize::Permission;
use policy::rules::breaker::Outcome;

use crate::clock;
use crate::engine::websockets::{Handshake, Open};
use crate::http::grpc;
use crate::http::problem;
use crate::request::exchange::Exchange;
use crate::request::forward;
use crate::request::proxy::Proxy;
use crate::request::retry::{retry_after, try_again};
use crate::resilience::last_good::PendingEntry;
use crate::upstream::fault::UpstreamFault;

impl Proxy {
    /// Prepares the header of an answer for the client; `false` when the request is sent again instead.
    pub(crate) fn take_head(
        &self,
        session: &Session,
        exchange: &mut Exchange,
        header: &mut ResponseHeader,
        is_empty: bool,
    ) -> Result<bool> {
        if !forward::is_sound(header, exchange.handshake) {
            return Err(UpstreamFault::Upgrade.error());
        }
        let mut outcome = Outcome::Answered(header.status.as_u16());
        exchange.is_grpc = grpc::is_grpc(&header.headers);
        if let Some(called) = exchange.call_status(&header.headers) {
            outcome = called;
        }
        if header.remove_header(protocol::READ_ONLY).is_some() {
            outcome = Outcome::ReadOnly;
        }
        // A gRPC call may still fail in its trailers, so its outcome is reported with those, or with its first message.
        let is_told = !exchange.is_grpc || exchange.grpc_status.is_some();
        if is_told {
            exchange.report_to_address(outcome);
        }
        if try_again(&self.gateway, session, exchange, outcome, retry_after(header)) {
            return Ok(false);
        }
        exchange.outcome = Some(outcome);
        if is_told {
            exchange.settle_early(outcome);
        }
        let upgraded = header.status == StatusCode::SWITCHING_PROTOCOLS;
        if upgraded {
            self.note_websocket(session, exchange);
        }
        forward::clean_answer(header, upgraded);
        forward::frame(header, session.req_header(), is_empty)?;
        exchange.pending_entry = begin_entry(session.req_header(), header, exchange);
        add_fields(exchange, header)?;
        Ok(true)
    }

    fn note_websocket(&self, session: &Session, exchange: &mut Exchange) {
        let Some(admission) = &exchange.admission else { return };
        let handshake = Handshake {
            peer: exchange.peer(),
            path: exchange.path().to_owned(),
            header: session.req_header().clone(),
            request_id: exchange.request_id.clone(),
            subject: admission.subject.clone(),
        };
        exchange.websocket = Some(Open::new(&self.gateway.websockets, handshake));
    }

    /// Handles a piece of an answer's body, the last one or not.
    pub(crate) fn take_piece(&self, exchange: &mut Exchange, piece: &Bytes, end: bool) {
        if let Some(outcome) = exchange.outcome.filter(|_| exchange.is_grpc && !piece.is_empty()) {
            exchange.settle_early(outcome);
        }
        if exchange.pending_entry.as_mut().is_some_and(|entry| !entry.take_in(piece)) {
            exchange.pending_entry = None;
        }
        if let Some(entry) = exchange.pending_entry.take_if(|_| end) {
            self.gateway.last_good.store(entry);
        }
    }

    /// Handles the trailers of an answer; a gRPC call has its status there.
    pub(crate) fn take_trailers(exchange: &mut Exchange, trailers: &mut HeaderMap) {
        forward::clean_trailers(trailers);
        if exchange.grpc_status.is_none()
            && let Some(outcome) = exchange.call_status(trailers)
        {
            exchange.report_to_address(outcome);
            exchange.outcome = Some(outcome);
            exchange.settle_early(outcome);
        }
    }
}

/// The fields that every answer has, from the upstream or from the gateway.
fn add_fields(exchange: &Exchange, header: &mut ResponseHeader) -> Result<()> {
    problem::complete(header, &exchange.request_id, &exchange.rules().headers, exchange.channel)?;
    let admission = exchange.admission.as_ref();
    let quotas = admission.map(|admission| admission.quotas.as_slice()).unwrap_or_default();
    for (name, value) in problem::rate_limit(quotas) {
        header.insert_header(name, value)?;
    }
    if admission.is_some_and(|one| one.permission == Permission::LastKnown) {
        header.append_header("warning", problem::PERMISSION_LAST_KNOWN)?;
    }
    Ok(())
}

/// Begins to collect an answer, if the route gives the last good one while its breaker is open.
fn begin_entry(
    request: &RequestHeader,
    response: &ResponseHeader,
    exchange: &Exchange,
) -> Option<PendingEntry> {
    let admission = exchange.admission.as_ref()?;
    let wanted = admission.route.when_open == WhenOpen::Stale && request.method == Method::GET;
    if !wanted || admission.permission == Permission::LastKnown {
        return None;
    }
    PendingEntry::begin(
        &exchange.cache_lookup(&admission.route, &admission.subject, request),
        response,
        clock::steady(),
    )
}
