//! What a request says of the client: its address, and a device that carries a cookie (OWASP: device cookies).

use axum::http::{HeaderMap, HeaderValue, header};

use crate::model::places::{HashKey, KNOWN_FOR_SECONDS, Place};
use crate::random::random_token;

/// The cookie that a device is known by.
const COOKIE: &str = "palisade_device";

/// What a device's cookie holds: 32 random bytes in base64url, without padding.
const DEVICE_LENGTH: usize = 43;

/// What a request says of the client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Client {
    /// The client's address, as the gateway found it out.
    pub(crate) address: String,
    device: Option<String>,
    /// Whether the client uses TLS to the proxy in front.
    secure: bool,
}

impl Client {
    pub(crate) fn new(address: &str, headers: &HeaderMap) -> Self {
        let secure = headers.get("x-forwarded-proto").is_some_and(|proto| proto == "https");
        Self { address: address.to_owned(), device: device(headers), secure }
    }

    /// Where the client is, as it is compared and stored.
    pub(crate) fn place(&self, key: &HashKey) -> Place {
        key.place(&self.address, self.device.as_deref())
    }

    /// The cookie by which this device is known from now on, and the client with it. A device that the account does not
    /// know gets a new one, because somebody else may have set the one that it sends.
    pub(crate) fn with_device(&self, is_known: bool) -> anyhow::Result<(Self, HeaderValue)> {
        let device = match self.device.as_ref().filter(|_| is_known) {
            Some(known) => known.clone(),
            None => random_token()?,
        };
        let secure = if self.secure { "; Secure" } else { "" };
        let cookie = format!(
            "{COOKIE}={device}; Path=/v1; Max-Age={KNOWN_FOR_SECONDS}; HttpOnly; SameSite=Strict{secure}"
        );
        let mut value = HeaderValue::try_from(cookie)?;
        value.set_sensitive(true);
        Ok((Self { device: Some(device), ..self.clone() }, value))
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
    fn a_device_is_read_from_among_other_cookies_and_nothing_else_is_taken_for_one() {
        let of = |cookie: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::COOKIE, cookie.parse().unwrap());
            Client::new("192.0.2.7", &headers).device
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
        let (_, plain) = Client::new("192.0.2.7", &headers).with_device(false).unwrap();
        assert!(!plain.to_str().unwrap().contains("Secure"));
        headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
        let (_, over_tls) = Client::new("192.0.2.7", &headers).with_device(false).unwrap();
        assert!(over_tls.to_str().unwrap().ends_with("HttpOnly; SameSite=Strict; Secure"));
    }
}
