//! pingora's hooks: each translates, asks the policy or does what it decided, and translates back.

use std::any::Any;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::Version;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use policy::breaker::Outcome;
use policy::path;
use policy::pipeline::{Admission, admit, settle, wants_body};
use policy::refusal::{Code, Refusal};
use policy::request::{Headers, Request};
use policy::stage::{Stage, Trail};
use serde_json::Value;
use smallvec::SmallVec;
use tracing::{Instrument as _, Span, debug, error, field, info_span};

use crate::answer;
use crate::breakers::BreakerPass;
use crate::clock;
use crate::forward;
use crate::gateway::{Gateway, Handle};
use crate::observe::access::{AccessLog, Line};
use crate::observe::metrics::method_label;
use crate::observe::telemetry;
use crate::reload::Loaded;
use crate::upstreams::Upstreams;
use crate::wire::body::BodyFault;
use crate::wire::connection::Connection;
use crate::wire::head;

/// The body is over the limit.
const BODY_TOO_LARGE: ErrorType = ErrorType::new_code("BodyTooLarge", 413);

/// The body took too long.
const BODY_TOO_SLOW: ErrorType = ErrorType::new_code("BodyTooSlow", 408);

/// For reading on after an early answer over HTTP/2, where a reset stream loses the answer.
const DRAIN: Duration = Duration::from_secs(2);

/// The proxy: what all requests share.
pub struct Proxy {
    /// What decides.
    pub gateway: Arc<Gateway>,
    /// Where requests go.
    pub upstreams: Upstreams,
    /// What only the backend is shown.
    pub gateway_token: Option<String>,
    /// What is written of each request.
    pub access: AccessLog,
    /// True from SIGTERM on: an answered client should come back on another connection, to another replica.
    pub leaving: Arc<AtomicBool>,
}

/// One request, from its header to its log line.
pub struct Exchange {
    policy: Arc<Loaded>,
    started: Instant,
    started_at: SystemTime,
    peer: IpAddr,
    pub(crate) request_id: String,
    /// The normal path and, after `?`, the query as it came.
    pub(crate) target: String,
    path_length: usize,
    pub(crate) admission: Option<Admission<BreakerPass>>,
    refusal: Option<Refusal>,
    /// Read before the request is judged, where a limit counts by a field of it.
    body: Option<Value>,
    max_judged_body: Option<u64>,
    received: u64,
    asked_upstream: Option<Instant>,
    upstream_time: Duration,
    outcome: Option<Outcome>,
    span: Span,
}

impl Exchange {
    fn begin(gateway: &Gateway, session: &Session) -> Self {
        let header = session.req_header();
        let peer = session.client_addr().and_then(|address| address.as_inet()).map(std::net::SocketAddr::ip);
        let span = info_span!(
            "request",
            otel.kind = "server",
            http.request.method = header.method.as_str(),
            http.route = field::Empty,
            http.response.status_code = field::Empty,
            palisade.stage = field::Empty,
            palisade.rule = field::Empty,
        );
        telemetry::continue_trace(&span, &header.headers);
        Self {
            policy: gateway.policy(),
            started: Instant::now(),
            started_at: SystemTime::now(),
            peer: peer.unwrap_or(IpAddr::from([127, 0, 0, 1])).to_canonical(),
            request_id: answer::request_id(
                header.headers.get("x-request-id").map(http::HeaderValue::as_bytes),
            ),
            target: String::new(),
            path_length: 0,
            admission: None,
            refusal: None,
            body: None,
            max_judged_body: None,
            received: 0,
            asked_upstream: None,
            upstream_time: Duration::ZERO,
            outcome: None,
            span,
        }
    }

    /// The rules that the request is judged by.
    pub(crate) fn rules(&self) -> &policy::Policy {
        &self.policy.rules
    }

    /// The address at the other end of the connection.
    pub(crate) fn peer(&self) -> IpAddr {
        self.peer
    }

    fn path(&self) -> &str {
        &self.target[..self.path_length]
    }

    fn normalise(&mut self, header: &RequestHeader) -> Result<(), Refusal> {
        let malformed = |detail: String| Refusal::new(Stage::Identify, Code::MalformedTarget, detail);
        let raw = std::str::from_utf8(header.raw_path())
            .map_err(|_| malformed("the target is not ASCII".to_owned()))?;
        let raw = head::absolute(raw).map_or(raw, |(_, rest)| if rest.is_empty() { "/" } else { rest });
        let (path, query) = raw.split_once('?').map_or((raw, None), |(path, query)| (path, Some(query)));
        let path = if path.is_empty() { "/" } else { path };
        self.target = path::normalise(path, self.rules().requests.encoded_slash)
            .inspect_err(|_| self.target = raw.chars().take(1_000).collect())
            .map_err(|fault| malformed(fault.to_string()))?;
        self.path_length = self.target.len();
        if let Some(query) = query {
            self.target.push('?');
            self.target.push_str(query);
        }
        Ok(())
    }

    /// Checks what can be checked before anything is judged, and finds the normal path.
    fn prepare(&mut self, header: &RequestHeader) -> Result<(), Refusal> {
        if header.version == Version::HTTP_2 {
            head::check_http2(header, &self.rules().requests)
                .map_err(|fault| Refusal::new(Stage::Accept, fault.code, fault.detail))?;
        }
        self.normalise(header)
    }

    /// The largest body of a request whose limits count by a field of it.
    fn wants_body(&self, world: &Handle, header: &RequestHeader) -> Option<u64> {
        if !self.rules().reads_bodies() {
            return None;
        }
        let fields = fields_of(header);
        let route = wants_body(self.rules(), &self.request(header, &fields), world)?;
        Some(route.max_body.map_or(0, |most| most.0))
    }

    fn request<'r>(&'r self, header: &'r RequestHeader, fields: &'r [(&'r str, &'r [u8])]) -> Request<'r> {
        Request {
            peer: self.peer,
            method: header.method.as_str(),
            path: self.path(),
            headers: Headers::new(fields),
            body: self.body.as_ref(),
        }
    }

    async fn judge(&mut self, world: &Handle, header: &RequestHeader) -> Result<(), Refusal> {
        let fields = fields_of(header);
        let request = self.request(header, &fields);
        let mut trail = Trail::default();
        let judged = admit(self.rules(), &request, world, &mut trail).instrument(self.span.clone()).await;
        self.admission = Some(judged?);
        self.check_announced_length(header)
    }

    fn check_announced_length(&self, header: &RequestHeader) -> Result<(), Refusal> {
        let announced =
            header.headers.get("content-length").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > self.max_body()) {
            Err(self.body_too_large())
        } else {
            Ok(())
        }
    }

    fn max_body(&self) -> u64 {
        let route = self.admission.as_ref().and_then(|admission| admission.route.max_body);
        route.map(|bytes| bytes.0).or(self.max_judged_body).unwrap_or(self.rules().requests.max_body)
    }

    fn request_timeout(&self) -> Duration {
        let route = self.admission.as_ref().and_then(|admission| admission.route.request_timeout);
        route.map_or(self.rules().requests.request_timeout, |span| span.0)
    }

    fn upstream_timeout(&self) -> Duration {
        let route = self.admission.as_ref().and_then(|admission| admission.route.upstream_timeout);
        route.map_or(self.rules().requests.upstream_timeout, |span| span.0)
    }

    fn body_too_large(&self) -> Refusal {
        let detail = format!("a body here has at most {} bytes", self.max_body());
        Refusal::new(Stage::Forward, Code::BodyTooLarge, detail)
    }

    /// The end of the upstream's part, if there was one.
    fn upstream_is_done(&mut self) {
        if let Some(asked) = self.asked_upstream.take() {
            self.upstream_time += asked.elapsed();
        }
    }
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
        if judged.is_ok() {
            exchange.max_judged_body = exchange.wants_body(&world, session.req_header());
            if let Some(most) = exchange.max_judged_body {
                judged = exchange.check_announced_length(session.req_header());
                if judged.is_ok() {
                    exchange.body = read_body(session, most, exchange.request_timeout()).await?;
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
            if expects_continue(session) && exchange.max_judged_body.is_none() {
                session.set_close_on_response_before_downstream_finish(false);
                session.write_continue_response().await?;
                session.set_close_on_response_before_downstream_finish(true);
            }
            return Ok(false);
        };
        refuse(session, exchange, refusal).await?;
        Ok(true)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        _end: bool,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let Some(exchange) = ctx else { return Ok(()) };
        if session.was_upgraded() {
            return Ok(());
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
        exchange.received = 0; // a retry sends the body again
        let peer = self.upstreams.peer(&route.upstream, exchange.upstream_timeout()).await;
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
        let token = self.gateway_token.as_deref();
        forward::rewrite(request, session.req_header(), exchange, token)?;
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
        exchange.outcome = Some(Outcome::Answered(response.status.as_u16()));
        let upgraded = response.status == http::StatusCode::SWITCHING_PROTOCOLS;
        forward::clean_answer(response, upgraded);
        for (name, value) in answer::common(&exchange.request_id, &exchange.rules().headers) {
            response.insert_header(name, value)?;
        }
        let quotas =
            exchange.admission.as_ref().map(|admission| admission.quotas.as_slice()).unwrap_or_default();
        for (name, value) in answer::rate_limit(quotas) {
            response.insert_header(name, value)?;
        }
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
        let begun = session.response_written().is_some_and(|response| !response.status.is_informational());
        let refusal = describe(code, session, exchange);
        if begun {
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

impl Proxy {
    fn observe(&self, session: &Session, exchange: &Exchange, status: u16) {
        let metrics = &self.gateway.metrics;
        let admission = exchange.admission.as_ref();
        let refusal = exchange.refusal.as_ref();
        let route = admission.map(|admission| &*admission.route.name);
        let header = session.req_header();
        let method = header.method.as_str();
        let took = exchange.started.elapsed();
        let status_text = status.to_string();
        let route_label = route.unwrap_or("none");
        metrics.requests.with_label_values(&[route_label, method_label(method), &status_text]).inc();
        metrics.request_duration.with_label_values(&[route_label]).observe(took.as_secs_f64());
        metrics.overhead.observe(took.saturating_sub(exchange.upstream_time).as_secs_f64());
        if let Some(refusal) = refusal {
            metrics.refused(refusal);
            metrics.limits_exceeded(&refusal.quotas);
        }
        if let Some(admission) = admission {
            metrics.limits_exceeded(&admission.quotas);
            if admission.subject.id().is_some() {
                metrics.auth_requests.with_label_values(&["jwt", "ok"]).inc();
            }
        }
        let span = &exchange.span;
        telemetry::rename(span, format!("{} {route_label}", method_label(method)));
        span.record("http.route", route_label);
        span.record("http.response.status_code", i64::from(status));
        if let Some(refusal) = refusal {
            span.record("palisade.stage", refusal.stage.as_str());
            span.record("palisade.rule", refusal.rule.as_deref().unwrap_or("none"));
        }
        let client = admission.map_or(exchange.peer, |admission| admission.client.address).to_string();
        let usage = &self.gateway.usage;
        let now = clock::now();
        usage.addresses.record(client.as_str(), now);
        usage.routes.record(route_label, now);
        if let Some(user) = admission.and_then(|admission| admission.subject.id()) {
            usage.users.record(user, now);
        }
        self.access.log(&Line {
            time: humantime::format_rfc3339_millis(exchange.started_at).to_string(),
            request_id: &exchange.request_id,
            client: &client,
            method,
            path: if exchange.path_length > 0 { exchange.path() } else { &exchange.target },
            protocol: if header.version == Version::HTTP_2 { "HTTP/2.0" } else { "HTTP/1.1" },
            route,
            user: admission.and_then(|admission| admission.subject.id()),
            status,
            stage: refusal.map(|refusal| refusal.stage.as_str()),
            rule: refusal.and_then(|refusal| refusal.rule.as_deref()),
            code: refusal.map(|refusal| refusal.code.as_str()),
            received: exchange.received,
            sent: session.body_bytes_sent() as u64,
            duration_ms: took.as_secs_f64() * 1e3,
            upstream_ms: exchange.upstream_time.as_secs_f64() * 1e3,
        });
    }
}

fn expects_continue(session: &Session) -> bool {
    let header = session.req_header();
    let expects = header
        .headers
        .get("expect")
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    expects && header.version == Version::HTTP_11
}

/// The fields of a header, as the specification reads them.
type Fields<'h> = SmallVec<[(&'h str, &'h [u8]); 32]>;

fn fields_of(header: &RequestHeader) -> Fields<'_> {
    header.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
}

/// Reads a body of at most `most` bytes before the request is judged; pingora keeps it for the upstream. `None` when it
/// is not JSON, which is the upstream's business.
async fn read_body(session: &mut Session, most: u64, patience: Duration) -> Result<Option<Value>> {
    if expects_continue(session) {
        session.write_continue_response().await?;
    }
    session.enable_retry_buffering();
    let mut body = Vec::new();
    let read = async {
        while let Some(piece) = session.read_request_body().await.map_err(Error::into_down)? {
            body.extend_from_slice(&piece);
            if body.len() as u64 > most {
                return Err(Error::new_down(BODY_TOO_LARGE));
            }
        }
        Ok(())
    };
    tokio::time::timeout(patience, read).await.unwrap_or_else(|_| Err(Error::new_down(BODY_TOO_SLOW)))?;
    Ok(serde_json::from_slice(&body).ok())
}

/// The connection that an HTTP/1 request came on.
fn connection(session: &Session) -> Option<&Connection> {
    session.stream().and_then(|stream| stream.as_any().downcast_ref())
}

/// What a fault of pingora's means: our code for the client and the breaker's outcome. `None`: the client is gone.
fn understand(session: &mut Session, fault: &Error) -> Option<(Code, Outcome)> {
    use ErrorType::{
        ConnectTimedout, ConnectionClosed, H2Error, ReadError, ReadTimedout, WriteError, WriteTimedout,
    };
    match connection(session).and_then(Connection::fault) {
        Some(BodyFault::LATE) => return Some((Code::BodyTimeout, Outcome::ClientLeft)),
        Some(_) => return Some((Code::MalformedRequest, Outcome::ClientLeft)),
        None => {}
    }
    // An upstream that waits for a body which the client does not send has not failed.
    let incomplete = !session.is_body_done();
    let client_stalls = connection(session).map_or(incomplete, Connection::waits_for_client);
    Some(match (fault.etype(), fault.esource()) {
        (kind, _) if *kind == BODY_TOO_LARGE => (Code::BodyTooLarge, Outcome::ClientLeft),
        (kind, _) if *kind == BODY_TOO_SLOW => (Code::BodyTimeout, Outcome::ClientLeft),
        (ReadTimedout, ErrorSource::Downstream) => (Code::BodyTimeout, Outcome::ClientLeft),
        (ReadTimedout, ErrorSource::Upstream) if client_stalls => (Code::BodyTimeout, Outcome::ClientLeft),
        (ReadError | WriteError | WriteTimedout | ConnectionClosed | H2Error, ErrorSource::Downstream) => {
            return None;
        }
        (_, ErrorSource::Downstream) => (Code::MalformedRequest, Outcome::ClientLeft),
        (ConnectTimedout | ReadTimedout | WriteTimedout, ErrorSource::Upstream) => {
            (Code::UpstreamTimeout, Outcome::TimedOut)
        }
        (_, ErrorSource::Upstream) => (Code::UpstreamUnreachable, Outcome::Unreachable),
        _ => (Code::Internal, Outcome::ClientLeft),
    })
}

/// The refusal that goes with a code; nothing of the upstream's insides is in it.
fn describe(code: Code, session: &Session, exchange: &Exchange) -> Refusal {
    let detail = match code {
        Code::BodyTooLarge => return exchange.body_too_large(),
        Code::BodyTimeout => BodyFault::LATE.0,
        Code::MalformedRequest => {
            let fault = connection(session).and_then(Connection::fault);
            fault.map_or("the request's body is malformed", |fault| fault.0)
        }
        Code::UpstreamTimeout => "the service did not answer in time",
        Code::UpstreamUnreachable => "the service cannot be reached",
        _ => "something went wrong here, not with the request",
    };
    let refusal = Refusal::new(Stage::Forward, code, detail);
    match &exchange.admission {
        Some(admission) if code.status() >= 500 => refusal.by(&admission.route.upstream),
        _ => refusal,
    }
}

/// Writes a refusal.
async fn refuse(session: &mut Session, exchange: &mut Exchange, refusal: Refusal) -> Result<()> {
    let body = answer::body(&refusal, &exchange.request_id);
    let mut header = ResponseHeader::build(refusal.status(), Some(16))?;
    for (name, value) in answer::fields(&refusal, &exchange.request_id, &exchange.rules().headers) {
        header.insert_header(name, value)?;
    }
    header.insert_header("content-length", body.len().to_string())?;
    exchange.refusal = Some(refusal);
    if session.req_header().version == Version::HTTP_10 {
        session.set_keepalive(None);
    }
    session.write_response_header(Box::new(header), false).await?;
    session.write_response_body(Some(body.into()), true).await?;
    if session.is_http2() && !session.is_body_done() {
        session.set_total_drain_timeout(Some(DRAIN));
        let _ = session.drain_request_body().await;
    }
    Ok(())
}
