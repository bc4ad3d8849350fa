//! Addresses and networks, as they are written in a policy, in a deny file and by an operator.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use toml::de::DeValue;

use crate::document::value::{FromToml, Unfit};

/// Reads an address or a CIDR. The error says what is wrong. Bits outside the prefix are an error, because they show
/// that something else was meant. An IPv4 network in IPv6 notation (`::ffff:192.0.2.0/120`) becomes the IPv4 network,
/// because clients are compared as IPv4.
pub fn read_network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(canonical(address.into()));
    }
    let Ok(network) = text.parse::<IpNet>() else {
        return Err("an address or a CIDR like 192.0.2.0/24".to_owned());
    };
    let (meant, address) = (network.trunc(), network.addr());
    if meant != network {
        return Err(format!(
            "the network {meant} or the address {address}: {network} has bits outside its prefix"
        ));
    }
    Ok(canonical(network))
}

/// Reads an address or a CIDR as [`read_network`] does, without the reason when that fails.
pub fn parse_network(text: &str) -> Option<IpNet> {
    read_network(text).ok()
}

fn canonical(network: IpNet) -> IpNet {
    const MAPPED: u8 = 96;
    let IpNet::V6(v6) = network else { return network };
    let prefix = v6.prefix_len().checked_sub(MAPPED);
    let v4 =
        prefix.zip(v6.addr().to_ipv4_mapped()).and_then(|(prefix, addr)| Ipv4Net::new(addr, prefix).ok());
    v4.map_or(network, IpNet::V4)
}

impl FromToml for IpNet {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Unfit> {
        let text = String::from_toml(value)?;
        read_network(&text).map_err(|wanted| Unfit::new(wanted, format_args!("{text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cidr_with_bits_outside_its_prefix_is_refused() {
        let said =
            "the network 192.0.2.0/24 or the address 192.0.2.1: 192.0.2.1/24 has bits outside its prefix";
        assert_eq!(read_network("192.0.2.1/24").unwrap_err(), said);
        assert_eq!(read_network("192.0.2.300").unwrap_err(), "an address or a CIDR like 192.0.2.0/24");
        assert_eq!(parse_network("192.0.2.1").unwrap().to_string(), "192.0.2.1/32");
    }

    #[test]
    fn an_ipv4_network_written_in_ipv6_is_the_ipv4_network() {
        let canonical = |text| parse_network(text).map(|network| network.to_string());
        assert_eq!(canonical("::ffff:192.0.2.0/120").as_deref(), Some("192.0.2.0/24"));
        assert_eq!(canonical("::ffff:c000:0201").as_deref(), Some("192.0.2.1/32"));
        assert_eq!(canonical("::ffff:0:0/96").as_deref(), Some("0.0.0.0/0"));
        assert_eq!(canonical("::ffff:192.0.2.1/120"), None, "bits outside the prefix");
        assert_eq!(canonical("::/0").as_deref(), Some("::/0"));
        assert_eq!(canonical("2001:db8::/32").as_deref(), Some("2001:db8::/32"));
    }
}
