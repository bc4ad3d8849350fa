//! One request, from its header to its log line: it is judged, passed on or refused, and recorded.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::Version;
use pingora_core::apps::{HttpServerApp, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession as Session;
use pingora_core::server::ShutdownWatch;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use policy::pipeline::settle;
use policy::rules::breaker::Outcome;
use policy::rules::response_headers::Channel;
use policy::values::refusal::{Code, Refusal};
use policy::values::request::JsonBody;
use policy::values::stage::Stage;
use tokio::time::timeout;
use tracing::debug;

use crate::engine::Handle;
use crate::http::problem;
use crate::request::body::{self, Wanted};
use crate::request::exchange::Exchange;
use crate::request::failure::{connection, describe, has_begun, is_http2, understand};
use crate::request::forward;
use crate::request::proxy::Proxy;
use crate::request::respond::{end_call, refuse};

/// The timeout for sending the begun part of an answer that breaks off.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

#[async_trait]
impl HttpServerApp for Proxy {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: Session,
        _: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if !self.read_header(&mut session).await {
            return None;
        }
        if session.digest().is_some_and(|digest| digest.proxy_digest.is_some()) {
            forward::ignore_forwarded_fields(session.req_header_mut());
        }
        let mut exchange = Box::new(Exchange::begin(&self.gateway, &session, self.production));
        let served = self.serve(&mut session, &mut exchange).await;
        exchange.upstream_is_done();
        if let Err(fault) = &served {
            self.give_up(&mut session, &mut exchange, fault).await;
        }
        self.write_down(&session, exchange);
        served.ok()?;
        let (stream, _) = session.finish().await.ok().flatten()?.into_parts();
        Some(ReusedHttpStream::new(stream, None))
    }
}

impl Proxy {
    /// Lets pingora read the header, which was checked strictly before; `false` if there is none.
    async fn read_header(&self, session: &mut Session) -> bool {
        match session.read_request().await {
            Ok(read) => read,
            Err(fault) => {
                debug!(fault = %fault.etype().as_str(), "no header");
                if *fault.etype() == ErrorType::InvalidHTTPHeader {
                    let _ = self.refuse_header(session).await;
                }
                false
            }
        }
    }

    async fn refuse_header(&self, session: &mut Session) -> Result<()> {
        let refusal = Refusal::new(Stage::Accept, Code::MalformedRequest, "the header is malformed");
        let request_id = problem::new_request_id();
        let mut header = ResponseHeader::build(refusal.status(), Some(8))?;
        let encrypted = session.digest().is_some_and(|digest| digest.ssl_digest.is_some());
        let channel = Channel { encrypted, production: self.production };
        let headers = &self.gateway.policy().rules.headers;
        for (name, value) in problem::fields(&refusal, &request_id, headers, channel) {
            header.insert_header(name, value)?;
        }
        let body = problem::body(&refusal, &request_id);
        header.insert_header("content-length", body.len().to_string())?;
        session.write_error_response(header, body.into()).await
    }

    async fn serve(&self, session: &mut Session, exchange: &mut Exchange) -> Result<()> {
        session.set_write_timeout(Some(exchange.rules().requests.write_timeout));
        let http_10 = session.req_header().version == Version::HTTP_10;
        // After a handshake every byte passes on this connection. So if the handshake is refused, the connection ends.
        if http_10 || exchange.handshake || self.is_draining() {
            session.set_keepalive(None);
        }
        session.set_ignore_info_resp(http_10);
        let Err(refusal) = self.judge(session, exchange).await? else {
            return self.relay(session, exchange).await;
        };
        if !self.give_last_good(session, exchange, &refusal).await? {
            refuse(session, exchange, refusal).await?;
        }
        Ok(())
    }

    /// Judges a request. Reads the part of its body that is needed before it is sent to the upstream: first the part
    /// that limits count by, then its beginning. Meanwhile it holds nothing that other requests wait for.
    async fn judge(&self, session: &mut Session, exchange: &mut Exchange) -> Result<Result<(), Refusal>> {
        let world = Handle(Arc::clone(&self.gateway));
        if let Err(refusal) = exchange.prepare(session.req_header()) {
            return Ok(Err(refusal));
        }
        forward::clean_request(session.req_header_mut(), exchange.handshake)?;
        let routed = match exchange.begin_judging(&world, session.req_header()).await {
            Ok(routed) => routed,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let judged_body = routed.body_limit();
        if let Some(most) = judged_body {
            match self.read_judged_body(session, exchange, most).await {
                // A body that is not a JSON object is left to the upstream.
                Ok(body) => exchange.body = JsonBody::parse(&body),
                Err(fault) => {
                    routed.withdraw(&world);
                    return Err(fault);
                }
            }
        }
        let authorized = match exchange.authorize(routed, &world, session.req_header()).await {
            Ok(authorized) => authorized,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if judged_body.is_none()
            && let Err(fault) = self.read_ahead(session, exchange).await
        {
            authorized.withdraw(&world);
            return Err(fault);
        }
        Ok(exchange.enter(authorized, &world, session.req_header()).await)
    }

    /// Reads the body that limits count by.
    async fn read_judged_body(
        &self,
        session: &mut Session,
        exchange: &Exchange,
        most: u64,
    ) -> Result<Vec<u8>> {
        if let Some(connection) = connection(session) {
            connection.set_body_limit(most);
        }
        body::read(session, most, exchange.request_timeout()).await
    }

    /// Reads the beginning of a body that no limit counts by; all of it, if it is short.
    async fn read_ahead(&self, session: &mut Session, exchange: &Exchange) -> Result<()> {
        if let Some(connection) = connection(session) {
            let deadline = exchange.started + exchange.request_timeout();
            connection.set_body_deadline(tokio::time::Instant::from_std(deadline));
            connection.set_body_limit(exchange.max_body());
        }
        let bound = self.signer.is_some() && exchange.asks_permission_service();
        let wanted = Wanted { bound, whole: bound || exchange.is_waited_for() };
        body::read_ahead(session, exchange.request_timeout(), wanted).await
    }

    /// Ends a request that failed. The client receives an error, unless it is gone or an answer has begun.
    async fn give_up(&self, session: &mut Session, exchange: &mut Exchange, fault: &Error) {
        if exchange.refusal.is_some() {
            return; // the client closed while the refusal was sent
        }
        let Some((code, outcome)) = understand(session, fault) else {
            exchange.outcome.get_or_insert(Outcome::ClientLeft);
            debug!(fault = %fault.etype().as_str(), "the client left");
            return;
        };
        // An upstream that breaks off in the middle of its answer has failed, whatever its status was. A client that
        // has seen the status has had its attempt (for example at a login), even if its own fault ends the request
        // afterwards.
        let outcome =
            if outcome == Outcome::NotSent && has_begun(session) { Outcome::ClientLeft } else { outcome };
        exchange.outcome = Some(outcome);
        if matches!(outcome, Outcome::Unreachable | Outcome::TimedOut) {
            exchange.upstream_failed(&self.gateway, fault);
        }
        exchange.settle_early(outcome);
        let refusal = describe(code, session, exchange, fault);
        if has_begun(session) {
            // Over HTTP/1.1 the missing end shows the failure.
            if exchange.is_grpc && exchange.grpc_status.is_none() && is_http2(session) {
                let _ = end_call(session, exchange, &refusal).await;
            } else if is_http2(session) {
                // Sends the begun part first, and then the reset.
                let _ = timeout(CLOSE_TIMEOUT, session.write_downstream_proxy_tasks()).await;
                session.shutdown().await;
            }
            exchange.refusal = Some(refusal);
            return;
        }
        session.set_keepalive(None);
        let _ = refuse(session, exchange, refusal).await; // what happened counts, also for a client that is gone by now
    }

    fn write_down(&self, session: &Session, exchange: Box<Exchange>) {
        let written = session.response_written().map(|response| response.status.as_u16());
        self.observe(session, &exchange, written.unwrap_or(0));
        let Exchange { policy, admission, outcome, .. } = *exchange;
        if let Some(admission) = admission {
            let outcome = outcome.unwrap_or(Outcome::NotSent);
            settle(&policy.rules, admission, outcome, &Handle(Arc::clone(&self.gateway)));
        }
    }
}
