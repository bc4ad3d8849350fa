//! TLS towards clients: a certificate that is read anew when its files change, and clients' certificates where they are
//! asked for.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tracing::{error, info};

use crate::observe::metrics::Metrics;
use crate::settings::TlsSettings;

/// How often the files are looked at: a mounted secret is swapped in ways that a watch of the file does not see.
const LOOK: Duration = Duration::from_secs(1);

/// TLS, as the files say.
pub struct Tls {
    settings: TlsSettings,
    config: ArcSwap<ServerConfig>,
    metrics: Metrics,
}

impl Tls {
    /// Reads the files; `None` when no certificate is configured.
    pub fn load(settings: &TlsSettings, metrics: Metrics) -> anyhow::Result<Option<Arc<Self>>> {
        if settings.certificate.is_empty() {
            return Ok(None);
        }
        let files = Files::read(settings)?;
        let config = ArcSwap::from_pointee(files.config()?);
        let tls = Arc::new(Self { settings: settings.clone(), config, metrics });
        tokio::spawn(Arc::clone(&tls).follow(files));
        Ok(Some(tls))
    }

    /// Shakes hands with a client.
    pub async fn accept(&self, socket: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.config.load_full()).accept(socket).await
    }

    /// Puts other files in force when they come, forever. Those that do not fit together are refused, and the ones in
    /// force stay: a certificate and its key are rarely written in the same moment.
    async fn follow(self: Arc<Self>, mut known: Files) {
        let mut refused = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let Ok(files) = Files::read(&self.settings) else { continue };
            if files == known || Some(&files) == refused.as_ref() {
                continue;
            }
            match files.config() {
                Ok(config) => {
                    self.config.store(Arc::new(config));
                    info!(certificate = self.settings.certificate, "certificate in force");
                    self.metrics.tls_reloads.with_label_values(&["accepted"]).inc();
                    known = files;
                }
                Err(error) => {
                    error!(
                        error = format!("{error:#}"),
                        "the certificate is refused: the one in force stays"
                    );
                    self.metrics.tls_reloads.with_label_values(&["refused"]).inc();
                    refused = Some(files);
                }
            }
        }
    }
}

/// What the files hold.
#[derive(PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Files {
    fn read(settings: &TlsSettings) -> anyhow::Result<Self> {
        let read = |setting: &str, file: &str| {
            std::fs::read(Path::new(file))
                .with_context(|| format!("server.tls.{setting}: cannot read `{file}`"))
        };
        let TlsSettings { certificate, key, client_ca } = settings;
        Ok(Self {
            certificate: read("certificate", certificate)?,
            key: read("key", key)?,
            client_ca: if client_ca.is_empty() { None } else { Some(read("client_ca", client_ca)?) },
        })
    }

    fn config(&self) -> anyhow::Result<ServerConfig> {
        let chain = certificates(&self.certificate).context("server.tls.certificate")?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).context("server.tls.key: a private key in PEM")?;
        let builder = match &self.client_ca {
            None => ServerConfig::builder().with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(authority).context("server.tls.client_ca")? {
                    roots.add(certificate).context("server.tls.client_ca")?;
                }
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
                ServerConfig::builder().with_client_cert_verifier(verifier.context("server.tls.client_ca")?)
            }
        };
        let mut config = builder.with_single_cert(chain, key).context("server.tls")?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    if all.is_empty() {
        bail!("certificates in PEM");
    }
    Ok(all)
}
