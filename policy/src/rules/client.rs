//! Which client a request comes from.
//!
//! The client is the address of the connection, unless that is a trusted proxy. Then `X-Forwarded-For` is read from
//! right to left, over all its fields, as long as the address is a trusted proxy. The first address that is not is the
//! client. The client itself may have written what is further left, so that is never read. An IPv6 client is a whole
//! prefix, by default /64, because it can choose any address within its prefix.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::document::Section;
use crate::values::network_table::NetworkTable;
use crate::values::refusal::{Code, Refusal};
use crate::values::request::{Headers, Request};
use crate::values::stage::Stage;

/// `[client]`: which proxies are trusted to name the client's address.
#[derive(Clone, Debug)]
pub struct ClientRule {
    trusted_proxies: Arc<NetworkTable<()>>,
    ipv6_prefix: u8,
}

/// A client, as limits and block lists see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The address.
    pub address: IpAddr,
    /// The network that counts as one client: one IPv4 address or one IPv6 prefix.
    pub network: IpNet,
    /// Whether the connection came from a trusted proxy. Then its `X-Forwarded-*` fields are extended, not replaced.
    pub behind_proxy: bool,
}

/// The most hops of `X-Forwarded-For` that are read. A longer chain of trusted proxies must be forged.
const MAX_HOPS: usize = 32;

impl ClientRule {
    pub(crate) fn read(section: Option<Section<'_>>) -> Self {
        let Some(section) = section else {
            return Self { trusted_proxies: Arc::default(), ipv6_prefix: 64 };
        };
        let prefix = section.get_checked("ipv6_prefix", 64, |prefix| {
            (32..=128).contains(prefix).then_some(()).ok_or(format!("from 32 to 128 (got {prefix})"))
        });
        let rule = Self {
            trusted_proxies: NetworkTable::of(section.get_or("trusted_proxies", Vec::new())),
            ipv6_prefix: u8::try_from(prefix.clamp(32, 128)).unwrap_or(64),
        };
        section.finish();
        rule
    }

    /// The client of `request`. It is refused when a trusted proxy sent something that is not an address.
    pub fn identify(&self, request: &Request<'_>) -> Result<Client, Refusal> {
        let peer = request.peer.to_canonical();
        let behind_proxy = self.trusts(peer);
        let address = if behind_proxy { self.walk(peer, request.headers)? } else { peer };
        Ok(Client { address, network: self.network(address), behind_proxy })
    }

    /// The network of `address` that counts as one client.
    pub fn network(&self, address: IpAddr) -> IpNet {
        match address {
            IpAddr::V4(v4) => Ipv4Net::from(v4).into(),
            IpAddr::V6(v6) => Ipv6Net::new_assert(v6, self.ipv6_prefix).trunc().into(),
        }
    }

    /// Whether `address` is a trusted proxy.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.find(address).is_some()
    }

    fn walk(&self, peer: IpAddr, headers: Headers<'_>) -> Result<IpAddr, Refusal> {
        let hops = headers.all("x-forwarded-for").rev().flat_map(|field| field.rsplit(|byte| *byte == b','));
        let mut client = peer;
        for (count, hop) in hops.enumerate() {
            client = hop_address(hop).filter(|_| count < MAX_HOPS).ok_or_else(|| {
                let detail = "a trusted proxy sent an X-Forwarded-For without a valid address";
                Refusal::new(Stage::Identify, Code::MalformedForwardedFor, detail)
            })?;
            if !self.trusts(client) {
                break;
            }
        }
        Ok(client)
    }
}

/// One element of `X-Forwarded-For`: an address, with or without a port.
fn hop_address(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim_matches([' ', '\t']);
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|hop| hop.ip()))?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> ClientRule {
        ClientRule { trusted_proxies: NetworkTable::of(vec!["10.0.0.0/8".parse().unwrap()]), ipv6_prefix: 64 }
    }

    fn client_of(peer: &str, forwarded: &[&str]) -> Result<String, Code> {
        let fields: Vec<_> = forwarded.iter().map(|value| ("X-Forwarded-For", value.as_bytes())).collect();
        let request = Request {
            peer: peer.parse().unwrap(),
            method: "GET",
            path: "/",
            headers: Headers::new(&fields),
            body: None,
        };
        rule().identify(&request).map(|client| client.address.to_string()).map_err(|refusal| refusal.code)
    }

    #[test]
    fn the_first_untrusted_hop_from_the_right_is_the_client() {
        assert_eq!(client_of("192.0.2.1", &["198.51.100.7"]).unwrap(), "192.0.2.1");
        assert_eq!(client_of("10.0.0.1", &["198.51.100.7"]).unwrap(), "198.51.100.7");
        assert_eq!(client_of("10.0.0.1", &["1.1.1.1, 198.51.100.7, 10.9.9.9"]).unwrap(), "198.51.100.7");
        assert_eq!(client_of("10.0.0.1", &["garbage, 198.51.100.7"]).unwrap(), "198.51.100.7");
        assert_eq!(client_of("10.0.0.1", &["1.1.1.1", "198.51.100.7:4711"]).unwrap(), "198.51.100.7");
        assert_eq!(client_of("::ffff:10.0.0.1", &["[2001:db8::1]:80"]).unwrap(), "2001:db8::1");
        assert_eq!(client_of("10.0.0.1", &[]).unwrap(), "10.0.0.1");
    }

    #[test]
    fn nonsense_from_a_trusted_proxy_is_refused() {
        assert_eq!(client_of("10.0.0.1", &["unknown"]), Err(Code::MalformedForwardedFor));
        assert_eq!(client_of("10.0.0.1", &["1.1.1.1, 10.0.0.2,"]), Err(Code::MalformedForwardedFor));
    }

    #[test]
    fn an_ipv6_client_is_its_prefix() {
        let network = rule().network("2001:db8:1:2:3:4:5:6".parse().unwrap());
        assert_eq!(network.to_string(), "2001:db8:1:2::/64");
    }
}
