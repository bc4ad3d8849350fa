//! pingora's hooks: each translates, asks the policy or does what it decided, and translates back.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Version};
use pingora_core::protocols::ALPN;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result, RetryType};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use policy::authorize::Permission;
use policy::breaker::Outcome;
use policy::pipeline::settle;
use policy::routes::WhenOpen;
use tracing::{debug, error};

use crate::again::{retry_after, try_again};
use crate::answer;
use crate::assertion::Signer;
use crate::clock;
use crate::exchange::Exchange;
use crate::failure::{BODY_TOO_LARGE, BODY_TOO_SLOW, connection, describe, understand};
use crate::forward;
use crate::gateway::{Gateway, Handle};
use crate::grpc;
use crate::observe::access::AccessLog;
use crate::observe::telemetry;
use crate::reply::{end_call, refuse};
use crate::request_body;
use crate::stale::{self, Keeping};
use crate::tunnels::Open;
use crate::upstreams::Upstreams;

/// A WebSocket through which the service says nothing for so long is closed.
const QUIET_TUNNEL: Duration = Duration::from_hours(1);

/// The answer will not do, and the request is sent again.
const SENT_AGAIN: ErrorType = ErrorType::new("SentAgain");

/// The proxy: what all requests share.
pub struct Proxy {
    /// What decides.
    pub gateway: Arc<Gateway>,
    /// Where requests go.
    pub upstreams: Upstreams,
    /// What the backend believes us for.
    pub signer: Option<Signer>,
    /// What is written of each request.
    pub access: AccessLog,
    /// True from SIGTERM on: an answered client should come back on another connection, to another replica.
    pub leaving: Arc<AtomicBool>,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Option<Box<Exchange>>;

    fn new_ctx(&self) -> Self::CTX {
        None
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        let exchange = ctx.insert(Box::new(Exchange::begin(&self.gateway, session)));
        session.set_write_timeout(Some(exchange.rules().requests.write_timeout));
        if self.leaving.load(Ordering::Relaxed) {
            session.set_keepalive(None);
        }
        if session.req_header().version == Version::HTTP_10 {
            session.set_ignore_info_resp(true);
        }
        let world = Handle(Arc::clone(&self.gateway));
        let mut judged = exchange.prepare(session.req_header());
        forward::clean_request(session.req_header_mut(), exchange.handshake)?;
        if judged.is_ok() {
            exchange.max_judged_body = exchange.wants_body(&world, session.req_header());
            if let Some(most) = exchange.max_judged_body {
                judged = exchange.check_announced_length(session.req_header());
                if judged.is_ok() {
                    let body = request_body::read(session, most, exchange.request_timeout()).await?;
                    // What is not JSON is the upstream's business.
                    exchange.body = serde_json::from_slice(&body).ok();
                }
            }
        }
        if judged.is_ok() {
            judged = exchange.judge(&world, session.req_header()).await;
        }
        let Err(refusal) = judged else {
            if let Some(connection) = connection(session) {
                let deadline = exchange.started + exchange.request_timeout();
                connection.set_body_deadline(tokio::time::Instant::from_std(deadline));
            }
            if exchange.max_judged_body.is_none() {
                request_body::look_ahead(session, exchange.request_timeout()).await?;
            }
            return Ok(false);
        };
        if !self.give_last_good(session, exchange, &refusal).await? {
            refuse(session, exchange, refusal).await?;
        }
        Ok(true)
    }

    fn response_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        let Some(exchange) = ctx else { return Ok(None) };
        if let Some(outcome) = exchange.outcome.filter(|_| exchange.is_grpc && body.is_some()) {
            exchange.settle_early(outcome);
        }
        if let (Some(keeping), Some(piece)) = (&mut exchange.keeping, body.as_ref())
            && !keeping.take_in(piece)
        {
            exchange.keeping = None;
        }
        if let Some(keeping) = exchange.keeping.take_if(|_| end) {
            self.gateway.last_good.keep(keeping);
        }
        Ok(None)
    }

    /// A call of gRPC says last how it went.
    async fn response_trailer_filter(
        &self,
        _: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Bytes>> {
        let Some(exchange) = ctx else { return Ok(None) };
        if let Some(outcome) = exchange.call_status(trailers) {
            exchange.tell_address(outcome);
            exchange.outcome = Some(outcome);
            exchange.settle_early(outcome);
        }
        Ok(None)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let Some(exchange) = ctx else { return Ok(()) };
        if session.was_upgraded() {
            return Ok(());
        }
        // pingora would send a last piece that is empty as an empty chunk, which is the end, and then the end.
        if end && body.as_ref().is_some_and(Bytes::is_empty) {
            *body = None;
        }
        exchange.received += body.as_ref().map_or(0, |piece| piece.len() as u64);
        if exchange.received > exchange.max_body() {
            return Err(Error::new_down(BODY_TOO_LARGE));
        }
        let slow = exchange.started.elapsed() > exchange.request_timeout();
        if body.is_some() && slow {
            return Err(Error::new_down(BODY_TOO_SLOW));
        }
        Ok(())
    }

    async fn upstream_peer(&self, _session: &mut Session, ctx: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        let internal = |text: String| Error::explain(ErrorType::InternalError, text);
        let exchange = ctx.as_mut().ok_or_else(|| internal("no exchange".to_owned()))?;
        let route = exchange.admission.as_ref().map(|admission| Arc::clone(&admission.route));
        let route = route.ok_or_else(|| internal("not admitted".to_owned()))?;
        if let Some(wait) = exchange.begin_try() {
            tokio::time::sleep(wait).await;
        }
        if let Some(rule) = route.retry.as_deref().filter(|_| exchange.tries == 1) {
            self.gateway.retry_budgets.pay_in(&route.upstream, rule);
        }
        let last = exchange.turn.take().map(|turn| turn.member());
        let peer = self.upstreams.peer(&route.upstream, exchange.try_timeout(), last).await;
        let peer = peer.map(|(mut peer, turn)| {
            exchange.turn = Some(turn);
            if exchange.handshake {
                peer.options.alpn = ALPN::H1; // HTTP/2 has no such upgrade
                peer.options.read_timeout = Some(QUIET_TUNNEL);
            }
            peer
        });
        exchange.asked_upstream = Some(Instant::now());
        peer.map(Box::new).map_err(|error| {
            error!(upstream = &*route.upstream, error = format!("{error:#}"), "no address");
            Error::new_up(ErrorType::ConnectError)
        })
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let Some(exchange) = ctx else { return Ok(()) };
        let upstream = exchange.admission.as_ref().map(|admission| Arc::clone(&admission.route.upstream));
        let alone = upstream.is_some_and(|name| self.upstreams.speak_http2_alone(&name));
        if alone && request.version != Version::HTTP_2 && !exchange.handshake {
            return Err(Error::explain(ErrorType::H2Error, "the upstream agreed on HTTP/1.1").into_up());
        }
        let empty = forward::is_chunked(session.req_header()) && session.as_mut().is_body_empty();
        if empty && request.version == Version::HTTP_11 {
            // pingora takes a body that has been read and is empty for none at all.
            request.insert_header("transfer-encoding", "chunked")?;
        }
        forward::rewrite(request, session.req_header(), exchange, self.signer.as_ref())?;
        if let Some(parent) = telemetry::traceparent(&exchange.span) {
            request.insert_header("traceparent", parent)?;
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let Some(exchange) = ctx else { return Ok(()) };
        if response.status.is_informational() && response.status != http::StatusCode::SWITCHING_PROTOCOLS {
            return Ok(());
        }
        if !forward::is_sound(response, exchange.handshake) {
            return Err(Error::new_up(ErrorType::InvalidHTTPHeader));
        }
        let mut outcome = Outcome::Answered(response.status.as_u16());
        exchange.is_grpc = grpc::is_grpc(&response.headers);
        if let Some(called) = exchange.call_status(&response.headers) {
            outcome = called;
        }
        if response.remove_header(answer::READ_ONLY).is_some() {
            // The service refuses to change something, but it is well: its breaker has nothing to count.
            outcome = Outcome::ClientLeft;
        }
        if !exchange.is_grpc || exchange.grpc_status.is_some() {
            exchange.tell_address(outcome);
        }
        if try_again(&self.gateway, session, exchange, outcome, retry_after(response)) {
            return Err(Error::new_up(SENT_AGAIN));
        }
        exchange.outcome = Some(outcome);
        // A call of gRPC may still fail in its trailers: others wait for those, or for its first message.
        if !exchange.is_grpc || exchange.grpc_status.is_some() {
            exchange.settle_early(outcome);
        }
        let upgraded = response.status == http::StatusCode::SWITCHING_PROTOCOLS;
        if let (true, Some(connection), Some(admission)) =
            (upgraded, connection(session), &exchange.admission)
        {
            let (route, subject) = (&admission.route, &admission.subject);
            let (path, id, cut) = (exchange.path(), &exchange.request_id, connection.cut());
            exchange.tunnel = Some(Open::new(&self.gateway, route, subject, path, id, cut));
        }
        forward::clean_answer(response, upgraded);
        for (name, value) in answer::common(&exchange.request_id, &exchange.rules().headers) {
            response.insert_header(name, value)?;
        }
        let quotas =
            exchange.admission.as_ref().map(|admission| admission.quotas.as_slice()).unwrap_or_default();
        for (name, value) in answer::rate_limit(quotas) {
            response.insert_header(name, value)?;
        }
        if exchange.admission.as_ref().is_some_and(|one| one.permission == Permission::LastKnown) {
            response.append_header("warning", answer::PERMISSION_LAST_KNOWN)?;
        }
        exchange.keeping = keep(session.req_header(), response, exchange);
        if session.req_header().version == Version::HTTP_10 {
            // Such a client knows no chunks: the end of the connection is the end of the body.
            response.remove_header("transfer-encoding");
            session.set_keepalive(None);
        }
        if self.leaving.load(Ordering::Relaxed) {
            session.set_keepalive(None);
        }
        Ok(())
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _: &HttpPeer,
        ctx: &mut Self::CTX,
        mut fault: Box<Error>,
    ) -> Box<Error> {
        let again = ctx.as_mut().is_some_and(|exchange| {
            exchange.upstream_is_done();
            let outcome = if *fault.etype() == ErrorType::ConnectTimedout {
                Outcome::TimedOut
            } else {
                Outcome::Unreachable
            };
            exchange.upstream_failed(&fault);
            exchange.tell_address(outcome);
            try_again(&self.gateway, session, exchange, outcome, None)
        });
        fault.set_retry(again);
        fault
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut fault: Box<Error>,
        ctx: &mut Self::CTX,
        client_reused: bool,
    ) -> Box<Error> {
        let Some(exchange) = ctx else { return fault };
        if *fault.etype() == SENT_AGAIN {
            exchange.upstream_is_done();
            fault.set_retry(true);
            return fault;
        }
        // A kept connection that was closed meanwhile is nobody's failure: the request goes over another one.
        let dead = matches!(fault.retry, RetryType::ReusedOnly) && client_reused && exchange.tries == 1;
        let repeatable =
            session.req_header().method.is_idempotent() && !session.as_ref().retry_buffer_truncated();
        let outcome = understand(session, &fault).map(|(_, outcome)| outcome);
        let again = (dead && repeatable)
            || outcome.is_some_and(|outcome| {
                exchange.upstream_is_done();
                exchange.tell_address(outcome);
                try_again(&self.gateway, session, exchange, outcome, None)
            });
        fault.set_retry(again);
        fault
    }

    async fn fail_to_proxy(&self, session: &mut Session, fault: &Error, ctx: &mut Self::CTX) -> FailToProxy {
        let done = |error_code| FailToProxy { error_code, can_reuse_downstream: false };
        let Some(exchange) = ctx else { return done(0) };
        exchange.upstream_is_done();
        if exchange.refusal.is_some() {
            return done(0); // the client did not stay to be refused
        }
        let Some((code, outcome)) = understand(session, fault) else {
            exchange.outcome.get_or_insert(Outcome::ClientLeft);
            debug!(fault = %fault.etype().as_str(), "the client left");
            return done(0);
        };
        // An upstream that breaks off in the middle of its answer has failed, whatever its status said.
        exchange.outcome = Some(outcome);
        if outcome != Outcome::ClientLeft {
            exchange.upstream_failed(fault);
        }
        if outcome != Outcome::ClientLeft {
            exchange.settle_early(outcome);
        }
        let begun = session.response_written().is_some_and(|response| {
            !response.status.is_informational() || response.status == http::StatusCode::SWITCHING_PROTOCOLS
        });
        let refusal = describe(code, session, exchange);
        if begun {
            if exchange.is_grpc && exchange.grpc_status.is_none() {
                let _ = end_call(session, exchange, &refusal).await;
            }
            exchange.refusal = Some(refusal);
            return done(0);
        }
        session.set_keepalive(None);
        if refuse(session, exchange, refusal).await.is_err() {
            exchange.outcome = Some(Outcome::ClientLeft);
        }
        done(code.status())
    }

    async fn logging(&self, session: &mut Session, _fault: Option<&Error>, ctx: &mut Self::CTX) {
        let Some(mut exchange) = ctx.take() else { return };
        exchange.upstream_is_done();
        let written = session.response_written().map(|response| response.status.as_u16());
        let left = exchange.outcome == Some(Outcome::ClientLeft) && exchange.refusal.is_none();
        let status = written.filter(|_| !left || written.is_some()).unwrap_or(0);
        self.observe(session, &exchange, status);
        let Exchange { policy, admission, outcome, .. } = *exchange;
        if let (Some(admission), Some(outcome)) = (admission, outcome) {
            settle(&policy.rules, admission, outcome, &Handle(Arc::clone(&self.gateway)));
        }
    }

    fn suppress_error_log(&self, _session: &Session, _ctx: &Self::CTX, _error: &Error) -> bool {
        true // the access log has it, with its code and without what a client wrote
    }

    fn on_connection_reuse(&self, _: &mut Session, _: &mut Self::CTX, _: Box<dyn Any + Send + Sync>) {}
}

/// Begins to keep an answer, where the route wants the last good one while its breaker is open.
fn keep(request: &RequestHeader, response: &ResponseHeader, exchange: &Exchange) -> Option<Keeping> {
    let admission = exchange.admission.as_ref()?;
    let wanted = admission.route.when_open == WhenOpen::Stale && request.method == http::Method::GET;
    if !wanted || admission.permission == Permission::LastKnown {
        return None;
    }
    let key = stale::key(&admission.route, &admission.subject, &exchange.target, request);
    Keeping::begin(key, response, clock::now())
}
