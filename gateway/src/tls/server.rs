//! TLS towards clients: a certificate that is read again when its files change, and the certificates of clients where
//! the settings require them.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::server::TlsStream;

use crate::config::settings::TlsSettings;
use crate::observe::metrics::Metrics;
use crate::tls::pem::{self, Made, PemFile};

/// TLS, as the certificate files say.
pub struct Tls(Arc<Made<ServerConfig>>);

impl Tls {
    /// Reads the files; `None` when no certificate is configured.
    pub fn load(settings: &TlsSettings, metrics: Metrics) -> anyhow::Result<Option<Self>> {
        let TlsSettings { certificate, key, client_ca } = settings;
        if certificate.is_empty() {
            return Ok(None);
        }
        let files = [
            PemFile::named("server.tls.certificate", certificate),
            PemFile::named("server.tls.key", key),
            PemFile::named("server.tls.client_ca", client_ca),
        ];
        let make = |[certificate, key, client_ca]: &[Option<Vec<u8>>; 3]| {
            let (certificate, key) = (certificate.as_deref(), key.as_deref());
            config(certificate.unwrap_or_default(), key.unwrap_or_default(), client_ca.as_deref())
        };
        Ok(Some(Self(Made::of(files, make, metrics)?)))
    }

    /// Performs the TLS handshake with a client.
    pub async fn accept(&self, socket: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.0.current()).accept(socket).await
    }
}

fn config(certificate: &[u8], key: &[u8], client_ca: Option<&[u8]>) -> anyhow::Result<ServerConfig> {
    let chain = pem::certificates(certificate).context("server.tls.certificate")?;
    let key = pem::private_key(key).context("server.tls.key")?;
    let builder = match client_ca {
        None => ServerConfig::builder().with_no_client_auth(),
        Some(authority) => {
            let roots = pem::authorities(authority).context("server.tls.client_ca")?;
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
            ServerConfig::builder().with_client_cert_verifier(verifier.context("server.tls.client_ca")?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).context("server.tls")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
