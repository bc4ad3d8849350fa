//! How the gateway talks to an upstream: which HTTP version, with TLS or without, whose certificates we trust and which
//! one we show.
//!
//! Requests use pingora's connections ([`connection`](crate::upstream::connection)); the gateway's own requests use
//! [`HttpClient`](crate::upstream::http_client::HttpClient). Both take their settings from here, so a health check sees
//! the same connection as a request.

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

/// The most streams of one connection to an upstream.
const STREAMS: u16 = 64;

/// The most bytes that an upstream may send ahead when a client reads slowly.
const STREAM_WINDOW: u32 = 128 * 1024;

/// The window of the whole connection, in bytes. It adds no bound to those of the streams, so that slow clients do not
/// delay the answers of others. h2 also bounds small waiting pieces by it; with a smaller one it could end the
/// connection for all streams.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// How often an HTTP/2 connection is pinged.
pub(crate) const PING: Duration = Duration::from_secs(10);

/// How the gateway talks to an upstream.
#[derive(Default)]
pub struct Transport {
    protocol: UpstreamProtocol,
    tls: Option<Tls>,
    /// Different for each upstream, so that upstreams share no connections.
    group: u64,
}

struct Tls {
    /// The name that the certificate must have; `None`: the host of the address.
    server_name: Option<String>,
    trusted: Arc<Made<Believed>>,
}

/// The contents of the certificate files, in the forms that pingora and rustls need.
struct Believed {
    authorities: Option<Arc<CaType>>,
    identity: Option<Arc<CertKey>>,
    client: Arc<ClientConfig>,
    /// Changes with the files, so that connections made with other files are not used again.
    group: u64,
}

fn new_group() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Transport {
    /// The transport that the settings of the upstream `name` ask for.
    pub fn load(name: &str, settings: &UpstreamSettings, metrics: &Metrics) -> anyhow::Result<Arc<Self>> {
        let protocol = settings.protocol;
        let tls = settings.tls.as_ref().map(|tls| Tls::load(name, tls, protocol, metrics.clone()));
        Ok(Arc::new(Self { protocol, tls: tls.transpose()?, group: new_group() }))
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Whether HTTP/2 is used with prior knowledge.
    pub fn speaks_http2_alone(&self) -> bool {
        self.protocol == UpstreamProtocol::Http2
    }

    /// Changes when connections that were made before must not be used any more.
    pub fn group(&self) -> u64 {
        self.tls.as_ref().map_or(self.group, |tls| tls.trusted.current().group)
    }

    /// Checks that the certificate of `address`, `HOST:PORT`, can be verified: with TLS it needs a valid host.
    pub fn check_name(&self, address: &str) -> anyhow::Result<()> {
        let Some(tls) = &self.tls else { return Ok(()) };
        let name = tls.name(host_of(address));
        ServerName::try_from(name)
            .map(drop)
            .map_err(|_| anyhow!("a host with a name or an address (got {address:?})"))
    }

    /// The TLS configuration for a connection of our own to `host`, which has no port.
    pub fn tls_to(&self, host: &str) -> io::Result<(Arc<ClientConfig>, ServerName<'static>)> {
        let (config, name) = match &self.tls {
            Some(tls) => (Arc::clone(&tls.trusted.current().client), tls.name(host)),
            None => (machine_client()?, host),
        };
        Ok((config, ServerName::try_from(name.to_owned()).map_err(io::Error::other)?))
    }

    /// A pingora peer over TCP; `named` is the `HOST:PORT` of the settings.
    pub fn peer(&self, address: SocketAddr, named: &str) -> HttpPeer {
        let name = self.tls.as_ref().map(|tls| tls.name(host_of(named)).to_owned());
        self.finish(HttpPeer::new(address, name.is_some(), name.unwrap_or_default()))
    }

    /// A pingora peer on a Unix socket.
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
            let trusted = tls.trusted.current();
            options.ca.clone_from(&trusted.authorities);
            peer.client_cert_key.clone_from(&trusted.identity);
            peer.group_key = trusted.group; // from the same files, even if they have changed meanwhile
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
        let trusted = Made::of(files, make, metrics)?;
        Ok(Self { server_name: Some(server_name.clone()).filter(|name| !name.is_empty()), trusted })
    }

    /// The name that the certificate of `host` must have; `host` has no port and no brackets.
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

/// The bytes of a certificate. They are checked first, because the reader of pingora does not handle a malformed one.
fn readable(certificate: &CertificateDer<'_>) -> anyhow::Result<Vec<u8>> {
    X509Certificate::from_der(certificate).map_err(|error| anyhow!("not a certificate: {error}"))?;
    Ok(certificate.to_vec())
}

/// The certificate authorities of the machine, read at the first use.
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
