//! What is built from PEM files, and built again when they change: certificates with their keys, authorities.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tracing::{error, info};

use crate::observe::metrics::Metrics;

/// How often the files are checked. A watch would miss changes, because a mounted secret is swapped as a whole
/// directory.
const LOOK: Duration = Duration::from_secs(1);

/// The largest file.
const LARGEST: u64 = 1 << 20;

/// A file, and the setting that names it.
#[derive(Clone, Debug)]
pub struct PemFile {
    setting: String,
    path: PathBuf,
}

impl PemFile {
    /// The file that `setting` names; `None` when it names none.
    pub fn named(setting: impl Into<String>, path: &str) -> Option<Self> {
        (!path.is_empty()).then(|| Self { setting: setting.into(), path: path.into() })
    }

    fn read(&self) -> anyhow::Result<Vec<u8>> {
        let Self { setting, path } = self;
        service::files::read(path, LARGEST).with_context(|| setting.clone())
    }
}

/// The contents of the files, in their order.
type Held<const N: usize> = [Option<Vec<u8>>; N];

/// Something that is built from `N` files. Some of them are optional.
pub struct Made<T>(ArcSwap<T>);

impl<T: Send + Sync + 'static> Made<T> {
    /// Reads the files and builds it, now and whenever they change. Files that do not fit together are refused, and the
    /// last result stays in force, because a certificate and its key are rarely written at the same moment.
    pub fn of<const N: usize>(
        files: [Option<PemFile>; N],
        make: impl Fn(&Held<N>) -> anyhow::Result<T> + Send + Sync + 'static,
        metrics: Metrics,
    ) -> anyhow::Result<Arc<Self>> {
        let held = read_all(&files)?;
        let first = Arc::new(Self(ArcSwap::from_pointee(make(&held)?)));
        if held.iter().any(Option::is_some) {
            tokio::spawn(Arc::clone(&first).follow(files, held, make, metrics));
        }
        Ok(first)
    }

    /// What is in force.
    pub fn current(&self) -> Arc<T> {
        self.0.load_full()
    }

    async fn follow<const N: usize>(
        self: Arc<Self>,
        files: [Option<PemFile>; N],
        mut known: Held<N>,
        make: impl Fn(&Held<N>) -> anyhow::Result<T>,
        metrics: Metrics,
    ) {
        let (mut refused, mut unreadable) = (None, false);
        let settings: Vec<_> = files.iter().flatten().map(|file| file.setting.as_str()).collect();
        let settings = settings.join(", ");
        loop {
            tokio::time::sleep(LOOK).await;
            let held = match read_all(&files) {
                Ok(held) => held,
                Err(error) => {
                    if !std::mem::replace(&mut unreadable, true) {
                        error!(
                            error = format!("{error:#}"),
                            "certificates cannot be read: those in force stay"
                        );
                        metrics.tls_reloads.with_label_values(&["refused"]).inc();
                    }
                    continue;
                }
            };
            unreadable = false;
            if held == known || Some(&held) == refused.as_ref() {
                continue;
            }
            match make(&held) {
                Ok(next) => {
                    self.0.store(Arc::new(next));
                    info!(settings, "certificates in force");
                    metrics.tls_reloads.with_label_values(&["accepted"]).inc();
                    known = held;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    error!(settings, error, "the certificates are refused: those in force stay");
                    metrics.tls_reloads.with_label_values(&["refused"]).inc();
                    refused = Some(held);
                }
            }
        }
    }
}

fn read_all<const N: usize>(files: &[Option<PemFile>; N]) -> anyhow::Result<Held<N>> {
    let mut held = [const { None }; N];
    for (held, file) in held.iter_mut().zip(files) {
        *held = file.as_ref().map(PemFile::read).transpose()?;
    }
    Ok(held)
}

/// The certificates in a PEM file; at least one.
pub fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    if all.is_empty() {
        bail!("certificates in PEM");
    }
    Ok(all)
}

/// The private key in a PEM file.
pub fn private_key(pem: &[u8]) -> anyhow::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem).context("a private key in PEM")
}

/// The authorities in a PEM file.
pub fn authorities(pem: &[u8]) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}
