//! Every metric of the backend, with its help. Labels come from closed sets: statement names, statuses.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};
use service::listener::Counters;
use service::log::Log;
use service::telemetry::{Fate, count_spans};

/// From a tenth of a millisecond to five seconds.
const BUCKETS: [f64; 12] = [1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 5e-2, 0.1, 0.5, 1.0, 5.0];

/// The metrics; cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) requests: IntCounterVec,
    pub(crate) request_duration: HistogramVec,
    pub(crate) connections: Counters,
    pub(crate) auth_requests: IntCounterVec,
    pub(crate) auth_duration: HistogramVec,
    pub(crate) active_sessions: IntGauge,
    pub(crate) failed_logins: IntCounter,
    pub(crate) locked_accounts: IntCounter,
    pub(crate) logins_throttled: IntCounterVec,
    pub(crate) user_operations: IntCounterVec,
    pub(crate) users: IntGauge,
    pub(crate) mails: IntCounterVec,
    pub(crate) mails_waiting: IntGauge,
    pub(crate) permission_checks: IntCounterVec,
    pub(crate) permission_check_duration: Histogram,
    pub(crate) db_connection_errors: IntCounter,
    pub(crate) db_query_retries: IntCounter,
    pub(crate) db_pool_in_use: IntGauge,
    pub(crate) db_pool_idle: IntGauge,
    pub(crate) db_wal_bytes: IntGauge,
    db_operations: IntCounterVec,
    db_operation_duration: HistogramVec,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new_custom(Some("palisade".to_owned()), None)?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let make = Maker(&registry);
        count_telemetry(&make)?;
        Ok(Self {
            requests: make.counters(
                "requests_total",
                "Requests answered.",
                &["route", "method", "status"],
            )?,
            request_duration: make.histograms(
                "request_duration_seconds",
                "Time to answer a request.",
                &["route"],
            )?,
            connections: Counters {
                open: make.gauge("connections_open", "Open connections, of gateways and of other clients.")?,
                refused: make
                    .counter("connections_refused_total", "Connections beyond server.max_connections.")?,
                timed_out: make.counters(
                    "connections_timed_out_total",
                    "Connections closed because the other side took too long: for a header, or idle.",
                    &["phase"],
                )?,
            },
            auth_requests: make.counters(
                "auth_requests_total",
                "Logins and refreshes.",
                &["method", "status"],
            )?,
            auth_duration: make.histograms("auth_duration_seconds", "Time to judge a login.", &["method"])?,
            active_sessions: make.gauge("active_sessions", "Sessions that could be refreshed.")?,
            locked_accounts: make.counter(
                "locked_accounts_total",
                "Times that a place was locked out of a name after failed logins.",
            )?,
            logins_throttled: make.counters(
                "logins_throttled_total",
                "Logins from unknown places refused unjudged: too many at one account, at accounts that are guessed at, \
                 or at all others.",
                &["limit"],
            )?,
            failed_logins: make.counter("failed_logins_total", "Logins refused.")?,
            user_operations: make.counters(
                "user_operations_total",
                "Changes to accounts.",
                &["operation"],
            )?,
            users: make.gauge("users_total", "Accounts.")?,
            mails: make.counters(
                "mails_total",
                "Tries to send a mail: sent, late (it is tried again), failed (it is given up).",
                &["result"],
            )?,
            mails_waiting: make.gauge("mails_waiting", "Mails that are not sent yet.")?,
            permission_checks: make.counters(
                "permission_checks_total",
                "Permission questions answered.",
                &["permission", "result"],
            )?,
            permission_check_duration: make
                .histogram("permission_check_duration_seconds", "Time to answer a permission question.")?,
            db_connection_errors: make
                .counter("db_connection_errors_total", "Connections that could not be opened.")?,
            db_query_retries: make
                .counter("db_query_retries_total", "Transactions tried again because of SQLITE_BUSY.")?,
            db_pool_in_use: make.gauge("db_pool_in_use", "Reader connections lent out.")?,
            db_pool_idle: make.gauge("db_pool_idle", "Reader connections waiting.")?,
            db_wal_bytes: make.gauge(
                "db_wal_bytes",
                "The write-ahead log, which is cut to 64 MiB unless somebody reads an old state.",
            )?,
            db_operations: make.counters(
                "db_operations_total",
                "Statements run.",
                &["operation", "status"],
            )?,
            db_operation_duration: make.histograms(
                "db_operation_duration_seconds",
                "Time of a statement.",
                &["operation"],
            )?,
            registry,
        })
    }

    pub(crate) fn db_operation(&self, operation: &str, ok: bool, took: Duration) {
        self.db_operations.with_label_values(&[operation, if ok { "ok" } else { "error" }]).inc();
        self.db_operation_duration.with_label_values(&[operation]).observe(took.as_secs_f64());
    }

    /// The exposition format.
    pub(crate) fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

/// Counts what logs and traces lose.
fn count_telemetry(make: &Maker<'_>) -> prometheus::Result<()> {
    let dropped = make.counters(
        "log_lines_dropped_total",
        "Log lines not written, because their writer was late.",
        &["log"],
    )?;
    dropped.with_label_values(&[Log::General.as_str()]);
    service::log::report_drops(move |log| dropped.with_label_values(&[log.as_str()]).inc());
    let spans = make.counters(
        "spans_exported_total",
        "Spans sent to the collector, and spans that it did not take.",
        &["result"],
    )?;
    for fate in Fate::ALL {
        spans.with_label_values(&[fate.as_str()]);
    }
    count_spans(move |fate, count| spans.with_label_values(&[fate.as_str()]).inc_by(count));
    Ok(())
}

/// Makes and registers.
struct Maker<'r>(&'r Registry);

impl Maker<'_> {
    fn register<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        made: prometheus::Result<C>,
    ) -> prometheus::Result<C> {
        let made = made?;
        self.0.register(Box::new(made.clone()))?;
        Ok(made)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.register(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.register(IntGauge::new(name, help))
    }

    fn histogram(&self, name: &str, help: &str) -> prometheus::Result<Histogram> {
        self.register(Histogram::with_opts(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec())))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<HistogramVec> {
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()), labels))
    }
}
