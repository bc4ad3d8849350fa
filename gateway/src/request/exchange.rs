//! The state of one request, from its header to its log line.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::HeaderMap;
use pingora_core::protocols::http::ServerSession as Session;
use pingora_core::{Error, Result};
use pingora_http::RequestHeader;
use policy::pipeline::{AdmissionIn, Authorized, Routed, begin};
use policy::progress::Progress;
use policy::routes::Route;
use policy::rules::authenticate::Subject;
use policy::rules::breaker::Outcome;
use policy::rules::response_headers::Channel;
use policy::values::path;
use policy::values::refusal::{Code, Refusal};
use policy::values::request::{Headers, JsonBody, Request};
use policy::values::stage::Stage;
use service::telemetry;
use tracing::{Instrument as _, Span, field, info_span, warn};

use crate::clock;
use crate::downstream::head::{self, HeadFault};
use crate::engine::websockets::Open;
use crate::engine::{Gateway, Handle};
use crate::http::body_fault::{BODY_TOO_LARGE, BODY_TOO_SLOW};
use crate::http::fields::{fields_of, scheme_told};
use crate::http::grpc;
use crate::http::problem;
use crate::live_policy::loaded::Loaded;
use crate::resilience::last_good::{CacheLookup, CacheSubject, PendingEntry};
use crate::upstream::Selection;
use crate::upstream::fault::UpstreamFault;

/// One request, from its header to its log line.
pub(crate) struct Exchange {
    pub(crate) policy: Arc<Loaded>,
    pub(crate) started: Instant,
    pub(crate) started_at: SystemTime,
    pub(crate) peer: IpAddr,
    pub(crate) request_id: String,
    /// The normal path and, after `?`, the query as it came.
    pub(crate) target: String,
    pub(crate) path_length: usize,
    /// The stages that it has passed, and what they found.
    pub(crate) progress: Progress,
    pub(crate) admission: Option<AdmissionIn<Handle>>,
    pub(crate) refusal: Option<Refusal>,
    /// The body, read before the request is judged, if a limit counts by one of its fields.
    pub(crate) body: Option<JsonBody>,
    /// Whether the client came over TLS.
    pub(crate) encrypted: bool,
    /// How the answer reaches the client.
    pub(crate) channel: Channel,
    /// Whether it is the handshake of a WebSocket.
    pub(crate) handshake: bool,
    pub(crate) received: u64,
    /// Whether the answer is gRPC, and the status of the call.
    pub(crate) is_grpc: bool,
    pub(crate) grpc_status: Option<u16>,
    /// Why the upstream failed, for the log.
    pub(crate) upstream_fault: Option<String>,
    /// Its answer, if it may be given again later.
    pub(crate) pending_entry: Option<PendingEntry>,
    /// Set once it is a WebSocket.
    pub(crate) websocket: Option<Open>,
    /// How many times it was tried at the upstream, and how long to wait before the next try.
    pub(crate) tries: u32,
    pub(crate) next_try_in: Option<Duration>,
    pub(crate) first_try: Option<Instant>,
    /// The address of the upstream that was selected for it.
    pub(crate) selection: Option<Selection>,
    pub(crate) asked_upstream: Option<Instant>,
    pub(crate) upstream_time: Duration,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) span: Span,
}

impl Exchange {
    /// A request of `session`, whose header is read; `production` is the profile.
    pub(crate) fn begin(gateway: &Gateway, session: &Session, production: bool) -> Self {
        let header = session.req_header();
        let peer = session.client_addr().and_then(|address| address.as_inet()).map(std::net::SocketAddr::ip);
        let peer = peer.unwrap_or(IpAddr::from([127, 0, 0, 1])).to_canonical();
        let policy = gateway.policy();
        let encrypted = session.digest().is_some_and(|digest| digest.ssl_digest.is_some());
        let told = || scheme_told(header).is_some_and(|told| told.eq_ignore_ascii_case("https"));
        let is_safe = encrypted || (policy.rules.client.trusts(peer) && told());
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
            policy,
            started: Instant::now(),
            started_at: SystemTime::now(),
            peer,
            request_id: problem::request_id(
                header.headers.get("x-request-id").map(http::HeaderValue::as_bytes),
            ),
            target: String::new(),
            path_length: 0,
            progress: Progress::default(),
            admission: None,
            refusal: None,
            body: None,
            encrypted,
            channel: Channel { encrypted: is_safe, production },
            handshake: head::is_websocket(header),
            received: 0,
            is_grpc: false,
            grpc_status: None,
            upstream_fault: None,
            pending_entry: None,
            websocket: None,
            tries: 0,
            first_try: None,
            selection: None,
            next_try_in: None,
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

    pub(crate) fn path(&self) -> &str {
        &self.target[..self.path_length]
    }

    pub(crate) fn normalise(&mut self, header: &RequestHeader) -> Result<(), Refusal> {
        let malformed = |detail: String| Refusal::new(Stage::Identify, Code::MalformedTarget, detail);
        let raw = std::str::from_utf8(header.raw_path())
            .map_err(|_| malformed("the target is not ASCII".to_owned()))?;
        let raw = head::absolute(raw).map_or(raw, |(_, rest)| if rest.is_empty() { "/" } else { rest });
        let (path, query) = raw.split_once('?').map_or((raw, None), |(path, query)| (path, Some(query)));
        let path = if path.is_empty() { "/" } else { path };
        if path == "*" {
            // `OPTIONS *` is about the whole server, so no route matches it.
            path.clone_into(&mut self.target);
            self.path_length = path.len();
            return Ok(());
        }
        self.target = path::normalise(path, self.rules().requests.encoded_slash)
            .inspect_err(|_| self.target = path.chars().take(1_000).collect()) // never the query
            .map_err(|fault| malformed(fault.to_string()))?;
        self.path_length = self.target.len();
        if let Some(query) = query {
            self.target.push('?');
            self.target.push_str(query);
        }
        Ok(())
    }

    /// Checks what can be checked before anything is judged, and finds the normal path.
    pub(crate) fn prepare(&mut self, header: &RequestHeader) -> Result<(), Refusal> {
        // Over HTTP/1.1 such a header is refused earlier.
        let fault = header.extensions.get::<HeadFault>();
        let refused = fault.map(|fault| Refusal::new(Stage::Accept, fault.code, fault.detail));
        let normal = self.normalise(header);
        refused.map_or(normal, Err).inspect_err(|_| {
            // The client is known even so.
            let fields = fields_of(header);
            self.progress.client = self.rules().client.identify(&self.request(header, &fields)).ok();
        })
    }

    pub(crate) fn request<'r>(
        &'r self,
        header: &'r RequestHeader,
        fields: &'r [(&'r str, &'r [u8])],
    ) -> Request<'r> {
        Request {
            peer: self.peer,
            method: header.method.as_str(),
            path: self.path(),
            headers: Headers::new(fields),
            body: self.body.as_ref(),
        }
    }

    /// The first step of judging: all that needs no body.
    pub(crate) async fn begin_judging(
        &mut self,
        world: &Handle,
        header: &RequestHeader,
    ) -> Result<Routed, Refusal> {
        let mut progress = std::mem::take(&mut self.progress);
        let fields = fields_of(header);
        let (rules, request) = (self.rules(), self.request(header, &fields));
        let begun = begin(rules, &request, world, &mut progress).instrument(self.span.clone()).await;
        self.progress = progress;
        begun
    }

    /// The second step: who is asking, and what it may do.
    pub(crate) async fn authorize(
        &mut self,
        routed: Routed,
        world: &Handle,
        header: &RequestHeader,
    ) -> Result<Authorized, Refusal> {
        let mut progress = std::mem::take(&mut self.progress);
        let fields = fields_of(header);
        let (rules, request) = (self.rules(), self.request(header, &fields));
        let judged =
            routed.authorize(rules, &request, world, &mut progress).instrument(self.span.clone()).await;
        self.progress = progress;
        judged
    }

    /// The third step: a permit of the concurrency limit, and the breaker's permission.
    pub(crate) async fn enter(
        &mut self,
        authorized: Authorized,
        world: &Handle,
        header: &RequestHeader,
    ) -> Result<(), Refusal> {
        let mut progress = std::mem::take(&mut self.progress);
        let fields = fields_of(header);
        let (rules, request) = (self.rules(), self.request(header, &fields));
        let entered =
            authorized.enter(rules, &request, world, &mut progress).instrument(self.span.clone()).await;
        self.progress = progress;
        self.admission = Some(entered?);
        Ok(())
    }

    /// Whether its upstream is the permission service, which receives an assertion.
    pub(crate) fn asks_permission_service(&self) -> bool {
        let upstream = self.route().map(|route| &route.upstream);
        upstream.is_some() && upstream == self.rules().permission_service.as_ref()
    }

    /// The route of the request, once it is known.
    pub(crate) fn route(&self) -> Option<&Arc<Route>> {
        self.progress.route.as_ref()
    }

    pub(crate) fn max_body(&self) -> u64 {
        self.route().map_or(self.rules().requests.max_body, |route| self.rules().max_body(route))
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        let own = self.route().and_then(|route| route.request_timeout);
        own.map_or(self.rules().requests.request_timeout, |span| span.0)
    }

    pub(crate) fn upstream_timeout(&self) -> Duration {
        let own = self.route().and_then(|route| route.upstream_timeout);
        own.map_or(self.rules().requests.upstream_timeout, |span| span.0)
    }

    /// Begins a try. Returns how long to wait before it.
    pub(crate) fn begin_try(&mut self) -> Option<Duration> {
        self.tries += 1;
        self.first_try.get_or_insert_with(Instant::now);
        self.received = 0; // the body is sent again
        (self.outcome, self.upstream_fault) = (None, None);
        self.next_try_in.take()
    }

    /// The timeout of one try. All tries together have the timeout of the upstream.
    pub(crate) fn try_timeout(&self) -> Duration {
        let rule = self.admission.as_ref().and_then(|admission| admission.route.retry.as_ref());
        let most = rule.and_then(|rule| rule.try_timeout).unwrap_or(Duration::MAX);
        let gone = self.first_try.map(|first| first.elapsed()).unwrap_or_default();
        self.upstream_timeout().saturating_sub(gone).min(most).max(Duration::from_millis(1))
    }

    /// Whether all tries together have used up the timeout of the upstream.
    pub(crate) fn is_out_of_time(&self) -> bool {
        self.first_try.is_some_and(|first| first.elapsed() >= self.upstream_timeout())
    }

    /// Counts a piece of the request's body. An error when the body is too large.
    pub(super) fn count(&mut self, piece: &Bytes) -> Result<()> {
        self.received += piece.len() as u64;
        if self.received > self.max_body() { Err(Error::new_down(BODY_TOO_LARGE)) } else { Ok(()) }
    }

    /// Counts the next piece of the request's body, if there is one. An error when it is too much or too late.
    pub(super) fn take_in(&mut self, piece: Option<Bytes>) -> Result<Option<Bytes>> {
        let Some(piece) = piece else { return Ok(None) };
        self.count(&piece)?;
        if !piece.is_empty() && self.started.elapsed() > self.request_timeout() {
            return Err(Error::new_down(BODY_TOO_SLOW));
        }
        Ok(Some(piece))
    }

    /// Reports the outcome to the breaker before the request ends, because other requests should know it.
    pub(crate) fn settle_early(&mut self, outcome: Outcome) {
        if let Some(admission) = &mut self.admission {
            admission.pass.settle_early(outcome, clock::steady());
        }
    }

    /// Gives the breaker's trial and the permit free while the client is slow, so that other requests do not wait for
    /// it.
    pub(crate) fn pause(&mut self) {
        self.settle_early(Outcome::ClientLeft);
        if let Some(permit) = self.admission.as_mut().and_then(|admission| admission.permit.as_mut()) {
            permit.pause();
        }
    }

    /// Takes the permit again: the body has arrived and the upstream works on the request.
    pub(crate) fn resume(&mut self) {
        if let Some(permit) = self.admission.as_mut().and_then(|admission| admission.permit.as_mut()) {
            permit.resume();
        }
    }

    /// Whether other requests may have to wait for this one. Then its body is read before it is sent.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.route().is_some_and(|route| route.breaker.is_some() || route.concurrency.is_some())
    }

    /// Notes why the upstream failed: for the access log, in the metric and in the general log.
    pub(crate) fn upstream_failed(&mut self, gateway: &Gateway, fault: &pingora_core::Error) {
        let rule = UpstreamFault::of(fault);
        let text = rule.text(fault);
        if let Some(admission) = &self.admission {
            let upstream = &admission.route.upstream;
            gateway.metrics.upstream_faults.with_label_values(&[upstream, rule.word()]).inc();
            gateway.fault_log.note(upstream, rule, &text, &self.request_id);
        }
        self.upstream_fault = Some(text);
    }

    /// The outcome of a gRPC call, if the answer is gRPC and `fields`, its header or its trailers, have the status.
    pub(crate) fn call_status(&mut self, fields: &HeaderMap) -> Option<Outcome> {
        self.grpc_status = grpc::status(fields).filter(|_| self.is_grpc);
        self.grpc_status.map(|status| Outcome::Answered(grpc::as_http(status)))
    }

    /// Reports the outcome of a try to the address that it used. An answer with an error status is a failure, too.
    pub(crate) fn report_to_address(&mut self, outcome: Outcome) {
        let failed = match (outcome, self.admission.as_ref().and_then(|one| one.route.breaker.as_ref())) {
            (Outcome::ClientLeft | Outcome::NotSent | Outcome::ReadOnly, _) => return,
            (Outcome::Answered(status), None) => status >= 500,
            (outcome, Some(rule)) => outcome.failed(rule) == Some(true),
            (_, None) => true,
        };
        let Some(selection) = &mut self.selection else { return };
        if let Some(lasts) = selection.report(failed, clock::steady()) {
            let secs = lasts.as_secs();
            warn!(address = %selection.address(), ejected_for_secs = secs, "an address that failed too often is ejected");
        }
    }

    /// The parts of the request that decide which stored answer it may receive.
    pub(crate) fn cache_lookup<'r>(
        &'r self,
        route: &'r Route,
        subject: &'r Subject,
        header: &'r RequestHeader,
    ) -> CacheLookup<'r> {
        let (subject, encrypted) = (CacheSubject::of(subject), self.channel.encrypted);
        CacheLookup { route, subject, encrypted, target: &self.target, header }
    }

    /// Adds the time in the upstream, if the request was sent there.
    pub(crate) fn upstream_is_done(&mut self) {
        if let Some(asked) = self.asked_upstream.take() {
            self.upstream_time += asked.elapsed();
        }
    }
}
