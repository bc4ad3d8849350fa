//! Where a login comes from: a network, and a device that carries a cookie (OWASP: device cookies). Kept as keyed hashes.

use std::net::IpAddr;

use aws_lc_rs::hmac;
use axum::http::{HeaderMap, HeaderValue, header};

use crate::random::random_token;
use crate::storage::sql;
use crate::storage::{Result, Transaction};

/// The cookie that a device is known by.
const COOKIE: &str = "palisade_device";

/// What a device's cookie holds: 32 random bytes in base64url, without padding.
const DEVICE_LENGTH: usize = 43;

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

    /// Where a client is.
    pub(crate) fn place(&self, origin: &Whereabouts) -> Place {
        let network = self.hash("network\0", network(&origin.address).as_bytes());
        Place {
            network,
            device: origin.device.as_ref().map(|device| self.hash("device\0", device.as_bytes())),
        }
    }
}

/// What a request says of where it comes from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Whereabouts {
    /// The client's address, as the gateway found it out.
    pub(crate) address: String,
    device: Option<String>,
    /// Whether the client speaks TLS to whoever is in front.
    secure: bool,
}

impl Whereabouts {
    pub(crate) fn new(address: &str, headers: &HeaderMap) -> Self {
        let secure = headers.get("x-forwarded-proto").is_some_and(|proto| proto == "https");
        Self { address: address.to_owned(), device: device(headers), secure }
    }

    /// The cookie by which this device is known from now on, and these whereabouts with it. A device that the account
    /// does not know gets a new one: somebody else may have put there what it brings.
    pub(crate) fn with_device(&self, is_known: bool) -> anyhow::Result<(Self, HeaderValue)> {
        const LIFETIME: i64 = super::KNOWN_FOR;
        let device = match self.device.as_ref().filter(|_| is_known) {
            Some(known) => known.clone(),
            None => random_token()?,
        };
        let secure = if self.secure { "; Secure" } else { "" };
        let cookie =
            format!("{COOKIE}={device}; Path=/v1; Max-Age={LIFETIME}; HttpOnly; SameSite=Strict{secure}");
        let mut value = HeaderValue::try_from(cookie)?;
        value.set_sensitive(true);
        Ok((Self { device: Some(device), ..self.clone() }, value))
    }
}

/// Where a client is, as it is compared and kept.
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

/// The device's cookie, if there is one that looks like ours.
fn device(headers: &HeaderMap) -> Option<String> {
    let fields = headers.get_all(header::COOKIE).iter().filter_map(|field| field.to_str().ok());
    let mut devices = fields.flat_map(|field| field.split(';')).filter_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        let fine = name == COOKIE
            && value.len() == DEVICE_LENGTH
            && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        fine.then(|| value.to_owned())
    });
    devices.next()
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

    #[test]
    fn a_device_is_read_from_among_other_cookies_and_nothing_else_is_taken_for_one() {
        let of = |cookie: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::COOKIE, cookie.parse().unwrap());
            Whereabouts::new("192.0.2.7", &headers).device
        };
        let device = "a".repeat(DEVICE_LENGTH);
        assert_eq!(of(&format!("theme=dark; palisade_device={device}; x=y")), Some(device.clone()));
        assert_eq!(of(&format!("xpalisade_device={device}")), None);
        assert_eq!(of("palisade_device=short"), None);
        assert_eq!(of(&format!("palisade_device={}", "é".repeat(22))), None);
    }

    #[test]
    fn a_new_device_is_secure_where_the_client_speaks_tls() {
        let mut headers = HeaderMap::new();
        let (_, plain) = Whereabouts::new("192.0.2.7", &headers).with_device(false).unwrap();
        assert!(!plain.to_str().unwrap().contains("Secure"));
        headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
        let (_, over_tls) = Whereabouts::new("192.0.2.7", &headers).with_device(false).unwrap();
        assert!(over_tls.to_str().unwrap().ends_with("HttpOnly; SameSite=Strict; Secure"));
    }
}
