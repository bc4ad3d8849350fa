//! Records a request when it has ended: metrics, the busiest clients, its span, its line in the access log.

use http::Version;
use pingora_core::protocols::http::ServerSession as Session;
use policy::progress::Progress;
use policy::rules::authenticate::Subject;
use service::telemetry;

use crate::clock;
use crate::observe::access::Line;
use crate::observe::metrics::method_label;
use crate::observe::usage::counted;
use crate::request::exchange::Exchange;
use crate::request::proxy::Proxy;

impl Proxy {
    pub(crate) fn observe(&self, session: &Session, exchange: &Exchange, status: u16) {
        let metrics = &self.gateway.metrics;
        let admission = exchange.admission.as_ref();
        let refusal = exchange.refusal.as_ref();
        let Progress { client, route, subject, .. } = &exchange.progress;
        let route = route.as_ref().map(|route| &*route.name);
        let subject = subject.as_ref();
        let header = session.req_header();
        let method = header.method.as_str();
        let took = exchange.started.elapsed();
        let meant = refusal.map_or(status, policy::values::refusal::Refusal::status);
        exchange.policy.counts.record(meant, refusal.is_some());
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
        }
        if let Some(method) = subject.and_then(Subject::method) {
            metrics.auth_requests.with_label_values(&[method, "ok"]).inc();
        }
        let span = &exchange.span;
        telemetry::rename(span, format!("{} {route_label}", method_label(method)));
        span.record("http.route", route_label);
        span.record("http.response.status_code", i64::from(status));
        if let Some(refusal) = refusal {
            span.record("palisade.stage", refusal.stage.as_str());
            span.record("palisade.rule", refusal.rule.as_deref().unwrap_or("none"));
        }
        let client = client.map_or(exchange.peer, |client| client.address).to_string();
        let usage = &self.gateway.usage;
        let now = clock::steady();
        usage.addresses.record(client.as_str(), now);
        usage.routes.record(route_label, now);
        if let Some(user) = subject.and_then(Subject::identity) {
            usage.users.record(counted(user), now);
        }
        if let Some(key) = subject.and_then(Subject::key) {
            usage.api_keys.record(counted(key), now);
        }
        self.access.log(&Line {
            time: humantime::format_rfc3339_millis(exchange.started_at).to_string(),
            request_id: &exchange.request_id,
            client: &client,
            method,
            path: if exchange.path_length > 0 { exchange.path() } else { &exchange.target },
            protocol: if header.version == Version::HTTP_2 { "HTTP/2.0" } else { "HTTP/1.1" },
            route,
            user: subject.and_then(Subject::identity),
            status,
            stage: refusal.map(|refusal| refusal.stage.as_str()),
            rule: refusal.and_then(|refusal| refusal.rule.as_deref()),
            code: refusal.map(|refusal| refusal.code.as_str()),
            reason: refusal.and_then(|refusal| refusal.reason.as_deref()),
            grpc_status: exchange.grpc_status,
            upstream_fault: exchange.upstream_fault.as_deref(),
            received: exchange.received,
            sent: session.body_bytes_sent() as u64,
            duration_ms: took.as_secs_f64() * 1e3,
            upstream_ms: exchange.upstream_time.as_secs_f64() * 1e3,
        });
    }
}
