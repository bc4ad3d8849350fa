//! Logs to standard output, traces to an OTLP collector. Traces are off unless an endpoint is configured.

mod export;
mod settings;

use std::collections::HashMap;
use std::sync::OnceLock;

use anyhow::Context as _;
use axum::http::{HeaderMap, HeaderName};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::Deserialize;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

pub use self::export::{Fate, count_spans};
use crate::level::Level;
use crate::lines::{FLUSH_PATIENCE, Lines, flush as flush_lines};
use crate::log::Log;

pub use self::settings::{OtlpProtocol, TelemetrySettings};

/// `log.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Who starts logging and tracing, and how.
pub struct Start<'s> {
    /// The name in traces.
    pub service: &'static str,
    /// What the targets of its spans begin with.
    pub target: &'static str,
    /// What is logged.
    pub level: Level,
    /// How.
    pub format: LogFormat,
    /// Traces.
    pub telemetry: &'s TelemetrySettings,
}

static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

impl Start<'_> {
    /// Starts logging, and tracing if there is an endpoint.
    pub fn start(self) -> anyhow::Result<()> {
        let Self { service, target, level, format, telemetry } = self;
        let out = Lines::open(Log::General, "stdout")?;
        let (json, text) = match format {
            LogFormat::Json => {
                (Some(fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(out)), None)
            }
            LogFormat::Text => (None, Some(fmt::layer().compact().with_target(false).with_writer(out))),
        };
        let traces = if telemetry.otlp_endpoint.is_empty() {
            None
        } else {
            let provider = export::provider(service, telemetry).context("telemetry.otlp_endpoint")?;
            let tracer = provider.tracer("palisade");
            let _ = PROVIDER.set(provider);
            let layer = tracing_opentelemetry::layer()
                .with_tracer(tracer)
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_filter(filter_fn(move |metadata| {
                    metadata.is_span() && metadata.target().starts_with(target)
                }));
            Some(layer)
        };
        tracing_subscriber::registry()
            .with(traces)
            .with(json.with_filter(level.events()))
            .with(text.with_filter(level.events()))
            .try_init()
            .context("logging was started twice")?;
        crate::panics::log_them();
        Ok(())
    }
}

/// Sends and writes what has not been sent and written yet.
pub fn flush() {
    flush_lines(FLUSH_PATIENCE);
    if let Some(provider) = PROVIDER.get() {
        let _ = provider.shutdown_with_timeout(export::EXPORT_TIMEOUT);
        flush_lines(FLUSH_PATIENCE); // what was said of that
    }
}

/// Whether traces are on.
pub fn is_on() -> bool {
    PROVIDER.get().is_some()
}

/// The `traceparent` that makes an upstream's spans children of `span`.
pub fn traceparent(span: &Span) -> Option<String> {
    is_on().then_some(())?;
    let mut fields = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut fields);
    fields.remove("traceparent")
}

/// Names `span` once it is known what it is; `tracing` itself can name a span only when it begins.
pub fn rename(span: &Span, name: String) {
    if is_on() {
        span.context().span().update_name(name);
    }
}

/// Makes `span` a child of the span that the caller named in `traceparent`.
pub fn continue_trace(span: &Span, headers: &HeaderMap) {
    if is_on() {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Fields(headers));
        let _ = span.set_parent(parent);
    }
}

struct Fields<'h>(&'h HeaderMap);

impl Extractor for Fields<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_endpoint_cannot_mean_is_refused_without_repeating_it() {
        let fault = |endpoint: &str, sample_ratio| {
            let settings = TelemetrySettings {
                otlp_endpoint: endpoint.to_owned(),
                sample_ratio,
                ..TelemetrySettings::default()
            };
            settings.check().err().map(|error| error.to_string())
        };
        for fine in ["", "http://collector:4317", "http://[::1]:4318/prefix"] {
            assert_eq!(fault(fine, 1.0), None, "{fine}");
        }
        for bad in [
            "collector:4317",
            "https://collector",
            "http://",
            "http://u:hush@c:1",
            "http://c:1?k=hush",
            "http://c:x",
        ] {
            let said = fault(bad, 1.0).unwrap_or_default();
            assert!(
                said.starts_with("telemetry.otlp_endpoint: expected http://") && !said.contains("hush"),
                "{bad}"
            );
        }
        for bad in [-0.1, 1.1, f64::NAN] {
            assert!(fault("", bad).is_some(), "{bad}");
        }
    }
}
