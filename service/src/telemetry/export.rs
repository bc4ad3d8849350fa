//! Spans on their way to the collector. The exporter has a small runtime of its own on a thread of its own, so that a
//! collector that is slow or unavailable never takes a thread from a request. That it fails is said once, and counted.

use std::sync::OnceLock;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::KeyValue;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter as Otlp, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tracing::{info, warn};

use super::settings::{OtlpProtocol, TelemetrySettings};

/// Spans that wait for the exporter; more are dropped.
const QUEUE: usize = 4096;

/// For one export, and for the last flush when the program ends.
pub(super) const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest text of an error that is logged, in characters: some collectors answer with a page.
const LONGEST_ERROR: usize = 300;

/// Told of spans that were sent, or lost.
static COUNT: OnceLock<Box<dyn Fn(Fate, u64) + Send + Sync>> = OnceLock::new();

/// What became of spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The collector has them.
    Sent,
    /// It was unavailable, or took them for something else.
    Lost,
}

impl Fate {
    /// Every fate.
    pub const ALL: [Self; 2] = [Self::Sent, Self::Lost];

    /// The name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Lost => "lost",
        }
    }
}

/// Counts what becomes of spans, from now on.
pub fn count_spans(count: impl Fn(Fate, u64) + Send + Sync + 'static) {
    let _ = COUNT.set(Box::new(count));
}

/// Makes spans and exports them.
pub(super) fn provider(
    service: &'static str,
    settings: &TelemetrySettings,
) -> anyhow::Result<SdkTracerProvider> {
    let runtime = exporter_runtime()?;
    let exporter = match settings.protocol {
        OtlpProtocol::Grpc => {
            let _entered = runtime.enter();
            Otlp::builder()
                .with_tonic()
                .with_endpoint(&settings.otlp_endpoint)
                .with_timeout(EXPORT_TIMEOUT)
                .build()?
        }
        OtlpProtocol::Http => Otlp::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", settings.otlp_endpoint.trim_end_matches('/')))
            .with_timeout(EXPORT_TIMEOUT)
            .with_http_client(HttpExport::new(runtime))
            .build()?,
    };
    let exporter = Reporting { exporter, trouble: Mutex::default() };
    let batches =
        BatchConfigBuilder::default().with_max_queue_size(QUEUE).with_scheduled_delay(Duration::from_secs(1));
    Ok(SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches.build()).build())
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.sample_ratio))))
        .with_resource(
            Resource::builder()
                .with_service_name(service)
                .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
                .build(),
        )
        .build())
}

/// An exporter that says once that it fails, and once that it works again.
#[derive(Debug)]
struct Reporting<E> {
    exporter: E,
    /// Whether the last export failed.
    trouble: Mutex<bool>,
}

impl<E: SpanExporter> SpanExporter for Reporting<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let exported = self.exporter.export(batch).await;
        let failed = exported.as_ref().err();
        if let Some(count) = COUNT.get() {
            count(if failed.is_some() { Fate::Lost } else { Fate::Sent }, spans);
        }
        let before = std::mem::replace(&mut *self.trouble.lock(), failed.is_some());
        match failed {
            Some(error) if !before => {
                let error: String = error.to_string().chars().take(LONGEST_ERROR).collect();
                warn!(
                    error,
                    "traces cannot be exported: spans are lost until the collector answers; look at telemetry.otlp_endpoint and \
                     telemetry.protocol (grpc is port 4317 as a rule, http is 4318)"
                );
            }
            None if before => info!("traces are exported again"),
            _ => {}
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
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
