//! Where a login comes from: a network, and a device that carries a cookie. Stored as keyed hashes.

use std::net::IpAddr;

use aws_lc_rs::hmac;

use crate::storage::sql;
use crate::storage::{Result, Transaction};

/// An account knows a place for so long after the last login from there, in seconds: half a year.
pub(crate) const KNOWN_FOR_SECONDS: i64 = 180 * 24 * 3_600;

/// The most places that an account knows; the least recently used one is dropped first.
pub(crate) const MAX_PLACES: i64 = 40;

/// A longer name is no account's; what is hashed of it has a bound, in bytes.
const LONGEST_NAME: usize = 256;

/// Addresses of one IPv6 network are one place: an attacker has all of a /64, and a user changes within it.
const IPV6_PREFIX: u32 = 64;

/// The hash of a name, a network or a device.
pub(crate) type Hash = [u8; 16];

/// With what names and places are hashed; it lives in the database, so that a restart forgets nothing.
pub(crate) struct HashKey(hmac::Key);

impl HashKey {
    /// The key of this database.
    pub(crate) fn load(transaction: &Transaction<'_>) -> Result<Self> {
        let key: Option<Vec<u8>> = transaction.row(sql::GUARD_KEY, [], |row| row.get(0))?;
        Ok(Self::of(&key.unwrap_or_default()))
    }

    pub(super) fn of(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    fn hash(&self, kind: &str, value: &[u8]) -> Hash {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(kind.as_bytes());
        context.update(value);
        let tag = context.sign();
        let mut hash = Hash::default();
        hash.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        hash
    }

    /// A name as it was typed; the case of its letters makes no difference, as in the table of accounts.
    pub(crate) fn name(&self, name: &str) -> Hash {
        let bytes = name.as_bytes();
        self.hash("name\0", &bytes[..bytes.len().min(LONGEST_NAME)].to_ascii_lowercase())
    }

    /// The place of a client at `address` with the cookie of `device`.
    pub(crate) fn place(&self, address: &str, device: Option<&str>) -> Place {
        let network = self.hash("network\0", network(address).as_bytes());
        Place { network, device: device.map(|device| self.hash("device\0", device.as_bytes())) }
    }
}

/// Where a client is, as it is compared and stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) network: Hash,
    pub(crate) device: Option<Hash>,
}

/// The network that counts as one place.
fn network(address: &str) -> String {
    match address.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V6(v6)) => {
            let prefix = u128::from(v6) >> (128 - IPV6_PREFIX);
            format!("{prefix:x}/{IPV6_PREFIX}")
        }
        Ok(IpAddr::V4(v4)) => v4.to_string(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_an_ipv4_address_or_an_ipv6_64() {
        assert_eq!(network("2001:db8:1:2::9"), network("2001:db8:1:2:ffff::1"));
        assert_ne!(network("2001:db8:1:2::9"), network("2001:db8:1:3::9"));
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.7");
    }
}
