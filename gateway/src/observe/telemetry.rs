//! Logs to standard output, traces to an OTLP collector. Traces are off unless an endpoint is configured.
//!
//! The exporter has a small runtime of its own on a thread of its own, so that a collector that is slow or away never
//! takes a thread from a request.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context as _;
use http::HeaderMap;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use service::lines::{Lines, Log};
use tokio::runtime::Handle;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::settings::{LogFormat, LogSettings, OtlpProtocol, Profile, TelemetrySettings};

/// Spans that wait for the exporter; more are dropped.
const QUEUE: usize = 4096;

/// For one export, and for the last flush when the program ends.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// Starts logging, and tracing if there is an endpoint. `service` is the name in traces.
pub fn start(
    service: &'static str,
    profile: Profile,
    log: &LogSettings,
    telemetry: &TelemetrySettings,
) -> anyhow::Result<()> {
    let (events, out) = (log.level.events(), Lines::open(Log::General, "stdout")?);
    let in_profile = if profile == Profile::Development { LogFormat::Text } else { LogFormat::Json };
    let (json, text) = match log.format.unwrap_or(in_profile) {
        LogFormat::Json => {
            (Some(fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(out)), None)
        }
        LogFormat::Text => (None, Some(fmt::layer().compact().with_target(false).with_writer(out))),
    };
    let traces = if telemetry.otlp_endpoint.is_empty() {
        None
    } else {
        let provider = provider(service, telemetry).context("telemetry.otlp_endpoint")?;
        let tracer = provider.tracer("palisade");
        let _ = PROVIDER.set(provider);
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|metadata| {
                metadata.is_span() && metadata.target().starts_with("gateway")
            }));
        Some(layer)
    };
    tracing_subscriber::registry()
        .with(traces)
        .with(json.with_filter(events.clone()))
        .with(text.with_filter(events))
        .try_init()
        .context("logging was started twice")?;
    service::panics::log_them();
    Ok(())
}

/// Sends and writes what has not been sent and written yet.
pub fn flush() {
    service::lines::flush(service::lines::FLUSH_PATIENCE);
    if let Some(provider) = PROVIDER.get() {
        let _ = provider.shutdown_with_timeout(EXPORT_TIMEOUT);
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
    if PROVIDER.get().is_some() {
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
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

fn provider(service: &'static str, config: &TelemetrySettings) -> anyhow::Result<SdkTracerProvider> {
    let runtime = exporter_runtime()?;
    let exporter = match config.protocol {
        OtlpProtocol::Grpc => {
            let _entered = runtime.enter();
            SpanExporter::builder()
                .with_tonic()
                .with_endpoint(&config.otlp_endpoint)
                .with_timeout(EXPORT_TIMEOUT)
                .build()?
        }
        OtlpProtocol::Http => SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", config.otlp_endpoint.trim_end_matches('/')))
            .with_timeout(EXPORT_TIMEOUT)
            .with_http_client(HttpExport::new(runtime))
            .build()?,
    };
    let batches =
        BatchConfigBuilder::default().with_max_queue_size(QUEUE).with_scheduled_delay(Duration::from_secs(1));
    Ok(SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches.build()).build())
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio))))
        .with_resource(
            Resource::builder()
                .with_service_name(service)
                .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
                .build(),
        )
        .build())
}

/// A runtime on a thread of its own; it lives as long as the process.
fn exporter_runtime() -> anyhow::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("otlp-export".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(handle)
}

/// OTLP over HTTP on the exporter's runtime.
#[derive(Clone, Debug)]
struct HttpExport {
    runtime: Handle,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl HttpExport {
    fn new(runtime: Handle) -> Self {
        Self { runtime, client: Client::builder(TokioExecutor::new()).build(HttpConnector::new()) }
    }
}

#[async_trait::async_trait]
impl HttpClient for HttpExport {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        const LARGEST_ANSWER: usize = 1 << 20;
        let client = self.client.clone();
        let exchange = async move {
            let (parts, body) = client.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, LARGEST_ANSWER).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(parts, body))
        };
        // The timer is made where there is a runtime: the exporter's thread has none.
        let in_time = async move { tokio::time::timeout(EXPORT_TIMEOUT, exchange).await };
        self.runtime.spawn(in_time).await??
    }
}
