//! How an upstream is spoken to: in which HTTP, with TLS or without, whom we believe and what we show.
//!
//! Requests go over pingora's connections ([`hop`](crate::upstream::connection)), our own questions through [`HttpClient`](crate::upstream::http_client::HttpClient): both take what they need from
//! here, so that a health check says of a connection what a request would find.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use pingora_core::protocols::ALPN;
use pingora_core::protocols::tls::CaType;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::utils::tls::{CertKey, WrappedX509, parse_x509};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::settings::{UpstreamProtocol, UpstreamSettings, UpstreamTlsSettings};
use crate::observe::metrics::Metrics;
use crate::tls::pem::{self, Made, PemFile};

/// Streams of one connection to an upstream.
const STREAMS: u16 = 64;

/// Bytes that an upstream may send ahead of a client that reads slowly.
const STREAM_WINDOW: u32 = 128 * 1024;

/// Bytes of all streams together: no bound but theirs, so that clients that read slowly hold up nobody else's answers. h2
/// also allows small pieces that wait by it, and would end the connection for all of them otherwise.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// A connection of HTTP/2 is asked so often whether it still lives.
pub(crate) const PING: Duration = Duration::from_secs(10);

/// How an upstream is spoken to.
#[derive(Default)]
pub struct Transport {
    protocol: UpstreamProtocol,
    tls: Option<Tls>,
    /// Upstreams share no connections.
    group: u64,
}

struct Tls {
    /// Whose certificate is expected; `None`: the address's host.
    server_name: Option<String>,
    believed: Arc<Made<Believed>>,
}

/// What the files hold, as pingora and as rustls want it.
struct Believed {
    authorities: Option<Arc<CaType>>,
    identity: Option<Arc<CertKey>>,
    client: Arc<ClientConfig>,
    /// A connection that was made with other files is not used again.
    group: u64,
}

fn new_group() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Transport {
    /// As the settings of the upstream called `name` say.
    pub fn load(name: &str, settings: &UpstreamSettings, metrics: &Metrics) -> anyhow::Result<Arc<Self>> {
        let protocol = settings.protocol;
        let tls = settings.tls.as_ref().map(|tls| Tls::load(name, tls, protocol, metrics.clone()));
        Ok(Arc::new(Self { protocol, tls: tls.transpose()?, group: new_group() }))
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Whether HTTP/2 is spoken without asking.
    pub fn speaks_http2_alone(&self) -> bool {
        self.protocol == UpstreamProtocol::Http2
    }

    /// Changes whenever connections that were made before are not to be used any more.
    pub fn group(&self) -> u64 {
        self.tls.as_ref().map_or(self.group, |tls| tls.believed.current().group)
    }

    /// Whether the certificate of `address`, `HOST:PORT`, can be checked: an error says what its name lacks.
    pub fn check_name(&self, address: &str) -> anyhow::Result<()> {
        let Some(tls) = &self.tls else { return Ok(()) };
        let name = tls.name(host_of(address));
        ServerName::try_from(name)
            .map(drop)
            .map_err(|_| anyhow!("a host with a name or an address (got {address:?})"))
    }

    /// What a connection of our own to `host`, without a port, needs for TLS.
    pub fn tls_to(&self, host: &str) -> io::Result<(Arc<ClientConfig>, ServerName<'static>)> {
        let (config, name) = match &self.tls {
            Some(tls) => (Arc::clone(&tls.believed.current().client), tls.name(host)),
            None => (machine_client()?, host),
        };
        Ok((config, ServerName::try_from(name.to_owned()).map_err(io::Error::other)?))
    }

    /// A peer of pingora's over TCP; `named` is how the settings say `HOST:PORT`.
    pub fn peer(&self, address: SocketAddr, named: &str) -> HttpPeer {
        let name = self.tls.as_ref().map(|tls| tls.name(host_of(named)).to_owned());
        self.finish(HttpPeer::new(address, name.is_some(), name.unwrap_or_default()))
    }

    /// A peer of pingora's behind a Unix socket.
    pub fn unix_peer(&self, path: &Path) -> anyhow::Result<HttpPeer> {
        let path = path.to_str().context("a socket's path is UTF-8")?;
        let name = self.tls.as_ref().map(|tls| tls.name("localhost").to_owned());
        let peer = HttpPeer::new_uds(path, name.is_some(), name.unwrap_or_default());
        Ok(self.finish(peer.map_err(|error| anyhow!("{error}"))?))
    }

    fn finish(&self, mut peer: HttpPeer) -> HttpPeer {
        peer.group_key = self.group();
        let options = &mut peer.options;
        options.alpn = match (self.protocol, &self.tls) {
            (UpstreamProtocol::Http1, _) | (UpstreamProtocol::Auto, None) => ALPN::H1,
            (UpstreamProtocol::Auto, Some(_)) => ALPN::H2H1,
            (UpstreamProtocol::Http2, _) => ALPN::H2,
        };
        options.max_h2_streams = usize::from(STREAMS);
        options.h2_stream_window_size = Some(STREAM_WINDOW);
        options.h2_connection_window_size = Some(CONNECTION_WINDOW);
        options.h2_ping_interval = Some(PING);
        if let Some(tls) = &self.tls {
            let believed = tls.believed.current();
            options.ca.clone_from(&believed.authorities);
            peer.client_cert_key.clone_from(&believed.identity);
            peer.group_key = believed.group; // of the same files, whatever has changed meanwhile
        }
        peer
    }
}

impl Tls {
    fn load(
        upstream: &str,
        settings: &UpstreamTlsSettings,
        protocol: UpstreamProtocol,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let UpstreamTlsSettings { server_name, ca, certificate, key } = settings;
        let setting = |name: &str| format!("upstreams.{upstream}.tls.{name}");
        if !server_name.is_empty() && ServerName::try_from(server_name.as_str()).is_err() {
            anyhow::bail!("{}: a name or an address (got {server_name:?})", setting("server_name"));
        }
        let settings = ["ca", "certificate", "key"].map(setting);
        let files = [
            PemFile::named(&settings[0], ca),
            PemFile::named(&settings[1], certificate),
            PemFile::named(&settings[2], key),
        ];
        let make = move |[ca, certificate, key]: &[Option<Vec<u8>>; 3]| {
            let identity = certificate.as_deref().zip(key.as_deref());
            Believed::new(ca.as_deref(), identity, protocol, &settings)
        };
        let believed = Made::of(files, make, metrics)?;
        Ok(Self { server_name: Some(server_name.clone()).filter(|name| !name.is_empty()), believed })
    }

    /// Whose certificate is expected of `host`, which has no port and no brackets.
    fn name<'a>(&'a self, host: &'a str) -> &'a str {
        self.server_name.as_deref().unwrap_or(host)
    }
}

/// The host of `HOST:PORT`, without the brackets of IPv6.
fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _port)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

impl Believed {
    fn new(
        ca: Option<&[u8]>,
        identity: Option<(&[u8], &[u8])>,
        protocol: UpstreamProtocol,
        settings: &[String; 3],
    ) -> anyhow::Result<Self> {
        let [ca_setting, certificate_setting, key_setting] = settings;
        let authorities = ca.map(pem::certificates).transpose().with_context(|| ca_setting.clone())?;
        let roots = match ca {
            Some(pem) => Arc::new(pem::authorities(pem).with_context(|| ca_setting.clone())?),
            None => machine_roots()?,
        };
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let (mut client, identity) = match identity {
            None => (builder.with_no_client_auth(), None),
            Some((certificate, key)) => {
                let chain = pem::certificates(certificate).with_context(|| certificate_setting.clone())?;
                let key = pem::private_key(key).with_context(|| key_setting.clone())?;
                let der = chain.iter().map(readable).collect::<anyhow::Result<_>>();
                let der = der.with_context(|| certificate_setting.clone())?;
                let identity = CertKey::new(der, key.secret_der().to_vec());
                let client = builder.with_client_auth_cert(chain, key);
                (client.with_context(|| certificate_setting.clone())?, Some(Arc::new(identity)))
            }
        };
        let authorities = authorities.map(|all| {
            let wrapped = all.iter().map(|one| Ok(WrappedX509::new(readable(one)?, parse_x509)));
            wrapped.collect::<anyhow::Result<Vec<_>>>()
        });
        let authorities = authorities.transpose().with_context(|| ca_setting.clone())?.map(Into::into);
        client.alpn_protocols = match protocol {
            UpstreamProtocol::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            UpstreamProtocol::Http1 => vec![b"http/1.1".to_vec()],
            UpstreamProtocol::Http2 => vec![b"h2".to_vec()],
        };
        Ok(Self { authorities, identity, client: Arc::new(client), group: new_group() })
    }
}

/// The bytes of a certificate that pingora's reader will be able to read, for it does not expect to be wrong.
fn readable(certificate: &CertificateDer<'_>) -> anyhow::Result<Vec<u8>> {
    X509Certificate::from_der(certificate).map_err(|error| anyhow!("not a certificate: {error}"))?;
    Ok(certificate.to_vec())
}

/// The machine's certificate authorities, read when they are first needed.
fn machine_roots() -> io::Result<Arc<RootCertStore>> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    if let Some(roots) = ROOTS.get() {
        return Ok(Arc::clone(roots));
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(io::Error::other("this machine has no certificate authorities: install ca-certificates"));
    }
    Ok(Arc::clone(ROOTS.get_or_init(|| Arc::new(roots))))
}

fn machine_client() -> io::Result<Arc<ClientConfig>> {
    static CLIENT: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(client) = CLIENT.get() {
        return Ok(Arc::clone(client));
    }
    let client = ClientConfig::builder().with_root_certificates(machine_roots()?).with_no_client_auth();
    Ok(Arc::clone(CLIENT.get_or_init(|| Arc::new(client))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_an_address_has_no_port_and_no_brackets() {
        for (address, host) in [
            ("api.internal:443", "api.internal"),
            ("10.0.0.1:443", "10.0.0.1"),
            ("[::1]:8443", "::1"),
            ("[2001:db8::1:5]:443", "2001:db8::1:5"),
            (":8443", ""),
        ] {
            assert_eq!(host_of(address), host);
        }
    }
}
