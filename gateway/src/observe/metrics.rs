//! Every metric of the gateway, with its help. Labels come from closed sets: names in the policy, codes, statuses. No
//! label is an address, a path or a user.

use std::sync::Arc;

use policy::rules::breaker::State;
use policy::values::quota::Quota;
use policy::values::refusal::{Code, Refusal};
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use service::log::Log;
use service::telemetry::{Fate, count_spans};

/// From 50 microseconds to ten seconds.
const BUCKETS: [f64; 14] =
    [5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 0.1, 0.5, 1.0, 5.0, 10.0];

/// The metrics; cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

impl std::ops::Deref for Metrics {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

macro_rules! metrics {
    ($($field:ident: $type:ty = $name:literal $([$($label:literal),+])? $help:literal;)+) => {
        /// The metrics by their field names; `name` and `help` stand in the source beside each.
        pub struct Inner {
            registry: Registry,
            $(#[doc = $help] pub $field: $type,)+
        }

        impl Inner {
            fn new() -> prometheus::Result<Self> {
                let registry = Registry::new_custom(Some("palisade".to_owned()), None)?;
                registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
                Ok(Self {
                    $($field: {
                        let metric = <$type as Make>::make($name, $help, &[$($($label),+)?])?;
                        registry.register(Box::new(metric.clone()))?;
                        metric
                    },)+
                    registry,
                })
            }
        }
    };
}

metrics! {
    requests: IntCounterVec = "requests_total" ["route", "method", "status"] "Requests answered.";
    request_duration: HistogramVec = "request_duration_seconds" ["route"] "From the header to the end of the answer.";
    overhead: Histogram = "gateway_overhead_seconds" "Time of a request that was not spent in the upstream.";
    denials: IntCounterVec = "stage_denials_total" ["stage", "rule", "code"] "Requests refused, by who refused them.";
    auth_requests: IntCounterVec = "auth_requests_total" ["method", "status"] "Tokens and API keys judged.";
    auth_errors: IntCounterVec = "auth_errors_total" ["method", "error_type"] "Tokens and API keys refused.";
    key_set_fetches: IntCounterVec = "key_set_fetches_total" ["result"] "Key sets asked for: fetched, or failed and the last good one is used.";
    permission_checks: IntCounterVec = "permission_checks_total" ["permission", "result"] "Permission questions.";
    permission_check_duration: Histogram = "permission_check_duration_seconds" "Time to ask the backend.";
    permission_cache_hits: IntCounter = "permission_cache_hits_total" "Questions answered from memory.";
    permission_cache_misses: IntCounter = "permission_cache_misses_total" "Questions asked of the backend.";
    permission_cache_evictions: IntCounter = "permission_cache_evictions_total" "Answers dropped for lack of room.";
    permission_cache_invalidations: IntCounter = "permission_cache_invalidations_total" "Changes that made answers void.";
    permission_cache_entries: IntGauge = "permission_cache_entries" "Answers in memory.";
    permission_feed_age: prometheus::Gauge = "permission_feed_lag_seconds" "Seconds since the change feed last answered; -1: never.";
    rate_limit_exceeded: IntCounterVec = "rate_limit_exceeded_total" ["limit"] "Requests over a limit, also in shadow.";
    ip_blocks: IntCounterVec = "ip_blocks_total" ["reason"] "Bans made.";
    ip_blocks_active: IntGauge = "ip_blocks_active" "Bans in force.";
    breaker_state: IntGaugeVec = "circuit_breaker_state" ["breaker"] "0 closed, 1 open, 2 half-open.";
    breaker_error_rate: GaugeVec = "circuit_breaker_error_rate" ["breaker"] "Share of failures in the window.";
    breaker_transitions: IntCounterVec = "circuit_breaker_transitions_total" ["breaker", "from", "to"] "Changes of state.";
    stale_answers: IntCounterVec = "stale_answers_total" ["route"] "Last good answers given while a breaker was open.";
    websockets_closed: IntCounterVec = "websockets_closed_total" ["reason"] "Upgraded connections closed because they would be refused now, by the code of the refusal.";
    connect_failures: IntCounterVec = "upstream_connect_failures_total" ["upstream"] "Connections to an address of an upstream that could not be made; another address was tried if there was one.";
    upstream_faults: IntCounterVec = "upstream_faults_total" ["upstream", "fault"] "Requests that failed because of their upstream, by the rule that it broke.";
    retries: IntCounterVec = "retries_total" ["upstream", "outcome"] "Further tries: made, and why there was none.";
    redis_up: IntGauge = "redis_up" "1 while Redis answers.";
    replicas: IntGauge = "replicas" "Gateways that share Redis, as this one last saw them.";
    redis_round_trip: Histogram = "redis_round_trip_seconds" "One exchange with Redis.";
    redis_errors: IntCounter = "redis_errors_total" "Exchanges with Redis that failed.";
    policy_info: IntGaugeVec = "policy_info" ["sha256"] "1 for the policy in force.";
    policy_reloads: IntCounterVec = "policy_reloads_total" ["result"] "Policies read.";
    policy_last_reload: IntGauge = "policy_last_reload_timestamp_seconds" "When a policy last came into force.";
    policy_refused: IntGauge = "policy_refused" "1 while the policy file, or a deny file that it names, is refused and the last good one is in force.";
    state_files_late: IntGauge = "state_files_late" "Files of the state directory that cannot be written: a restart would go back to what they hold.";
    state_write_errors: IntCounter = "state_write_errors_total" "Writes to the state directory that failed.";
    clock_steps: IntCounterVec = "clock_steps_total" ["clock"] "Times that the wall clock of the gateway or of Redis was set by half a second or more.";
    tls_reloads: IntCounterVec = "tls_reloads_total" ["result"] "Certificates read.";
    connections: IntGauge = "connections_open" "Client connections.";
    admin_connections: IntGauge = "admin_connections_open" "Connections of the admin plane.";
    admin_connections_refused: IntCounter = "admin_connections_refused_total" "Connections of the admin plane beyond its bound.";
    admin_connections_timed_out: IntCounterVec = "admin_connections_timed_out_total" ["phase"] "Connections of the admin plane closed because the other side took too long: for a header, or idle.";
    http2_ended: IntCounterVec = "http2_connections_ended_total" ["reason"] "HTTP/2 connections that were ended because their clients misused them.";
    spans: IntCounterVec = "spans_exported_total" ["result"] "Spans sent to the collector, and spans that were not delivered.";
    log_lines_dropped: IntCounterVec = "log_lines_dropped_total" ["log"] "Log lines not written, because their writer was late.";
}

/// Makes a metric of one kind.
trait Make: Sized {
    fn make(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self>;
}

macro_rules! make {
    ($($type:ty: $name:ident, $help:ident, $labels:ident => $made:expr;)+) => {$(
        impl Make for $type {
            #[expect(clippy::allow_attributes, reason = "only some kinds have labels")]
            fn make($name: &str, $help: &str, #[allow(unused_variables)] $labels: &[&str]) -> prometheus::Result<Self> {
                $made
            }
        }
    )+};
}

make! {
    IntCounter: name, help, labels => IntCounter::new(name, help);
    IntCounterVec: name, help, labels => IntCounterVec::new(Opts::new(name, help), labels);
    IntGauge: name, help, labels => IntGauge::new(name, help);
    IntGaugeVec: name, help, labels => IntGaugeVec::new(Opts::new(name, help), labels);
    prometheus::Gauge: name, help, labels => prometheus::Gauge::new(name, help);
    GaugeVec: name, help, labels => GaugeVec::new(Opts::new(name, help), labels);
    Histogram: name, help, labels => Histogram::with_opts(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()));
    HistogramVec: name, help, labels => HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()), labels);
}

impl Metrics {
    /// All at zero.
    pub fn new() -> prometheus::Result<Self> {
        let metrics = Inner::new().map(|inner| Self(Arc::new(inner)))?;
        for log in Log::ALL {
            metrics.log_lines_dropped.with_label_values(&[log.as_str()]);
        }
        for fate in Fate::ALL {
            metrics.spans.with_label_values(&[fate.as_str()]);
        }
        let spans = metrics.spans.clone();
        count_spans(move |fate, count| spans.with_label_values(&[fate.as_str()]).inc_by(count));
        let dropped = metrics.log_lines_dropped.clone();
        service::log::report_drops(move |log| dropped.with_label_values(&[log.as_str()]).inc());
        Ok(metrics)
    }

    /// The exposition format.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// Counts a refusal.
    pub fn refused(&self, refusal: &Refusal) {
        let rule = refusal.rule.as_deref().unwrap_or("none");
        self.denials.with_label_values(&[refusal.stage.as_str(), rule, refusal.code.as_str()]).inc();
        let method = match refusal.code {
            Code::TokenMissing | Code::TokenInvalid | Code::TokenExpired | Code::TokenRevoked => "jwt",
            Code::ApiKeyInvalid => "api_key",
            _ => return,
        };
        self.auth_requests.with_label_values(&[method, "refused"]).inc();
        self.auth_errors.with_label_values(&[method, refusal.code.as_str()]).inc();
    }

    /// Counts the limits that are used up.
    pub fn limits_exceeded(&self, quotas: &[Quota]) {
        for quota in quotas.iter().filter(|quota| quota.exceeded) {
            self.rate_limit_exceeded.with_label_values(&[&*quota.limit]).inc();
        }
    }

    /// Notes that a breaker changed its state.
    pub fn breaker_moved(&self, name: &str, from: State, to: State) {
        self.breaker_state.with_label_values(&[name]).set(to.number());
        self.breaker_transitions.with_label_values(&[name, from.as_str(), to.as_str()]).inc();
    }
}

/// A method as a label: the usual methods by name.
pub fn method_label(method: &str) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS"];
    KNOWN.into_iter().find(|known| *known == method).unwrap_or("other")
}
