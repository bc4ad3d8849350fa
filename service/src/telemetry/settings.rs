//! `[telemetry]`: where traces go.

use axum::http::Uri;
use axum::http::uri::Authority;
use serde::Deserialize;

/// `[telemetry]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetrySettings {
    /// `http://HOST:PORT` of a collector; empty: no traces.
    pub otlp_endpoint: String,
    /// How to speak to it.
    pub protocol: OtlpProtocol,
    /// The share of requests without a `traceparent` that are traced, from 0 to 1.
    pub sample_ratio: f64,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self { otlp_endpoint: String::new(), protocol: OtlpProtocol::Grpc, sample_ratio: 0.01 }
    }
}

/// How to speak to the collector.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtlpProtocol {
    /// Port 4317.
    Grpc,
    /// Port 4318, protobuf.
    Http,
}

impl TelemetrySettings {
    /// Refuses what these settings cannot mean.
    pub fn check(&self) -> anyhow::Result<()> {
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            anyhow::bail!("telemetry.sample_ratio: from 0 to 1 (got {})", self.sample_ratio);
        }
        // It is not repeated: there may be a password in it.
        let endpoint = self.otlp_endpoint.parse::<Uri>().ok().filter(|uri| {
            let bare = |authority: &Authority| authority.host() == authority.as_str();
            let plain = uri.authority().is_some_and(|authority| bare(authority) || uri.port_u16().is_some());
            let user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
            uri.scheme_str() == Some("http") && plain && !user && uri.query().is_none()
        });
        if !self.otlp_endpoint.is_empty() && endpoint.is_none() {
            anyhow::bail!(
                "telemetry.otlp_endpoint: expected http://HOST:PORT, without a user and a query; TLS is not spoken"
            );
        }
        Ok(())
    }
}
