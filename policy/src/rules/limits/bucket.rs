//! The name of a bucket: the limit and the value of each part of its key, as bytes that are cheap to make and compare.
//!
//! No value can imitate another part, because each value is preceded by its kind and its length. A missing value is a
//! value of its own, so that all requests without it share one bucket.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use ipnet::IpNet;
use smallvec::SmallVec;

use crate::rules::limits::key::KeyPart;

/// The text that stands for a missing value, for operators.
pub const ANONYMOUS: &[u8] = b"anonymous";

/// The longest value, in bytes. A longer one is cut, so that the name of a bucket has a bound.
const LONGEST: usize = 128;

/// Kinds of parts. They are smaller than any byte of a limit's name, so they also mark its end.
const IP: u8 = 1;
const USER: u8 = 2;
const ROUTE: u8 = 3;
const GLOBAL: u8 = 4;
const HEADER: u8 = 5;
const FIELD: u8 = 6;
const API_KEY: u8 = 7;
/// Added to a kind when the value is missing.
const MISSING: u8 = 16;

/// The name of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bucket(SmallVec<[u8; 40]>);

impl Hash for Bucket {
    /// In one write: the length need not be hashed, because nothing follows.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

impl Bucket {
    /// The bucket of a limit, before any part of its key is added.
    pub fn of(limit: &str) -> Self {
        Self(SmallVec::from_slice(limit.as_bytes()))
    }

    pub(crate) fn push(&mut self, part: &KeyPart, value: Option<&[u8]>) {
        let kind = match part {
            KeyPart::Ip => IP,
            KeyPart::User => USER,
            KeyPart::ApiKey => API_KEY,
            KeyPart::Route => ROUTE,
            KeyPart::Global => GLOBAL,
            KeyPart::Header(_) => HEADER,
            KeyPart::Field(_) => FIELD,
        };
        match value {
            Some(value) => self.push_raw(kind, &value[..value.len().min(LONGEST)]),
            None => self.push_raw(kind + MISSING, b""),
        }
    }

    pub(crate) fn push_network(&mut self, network: IpNet) {
        match network.addr() {
            IpAddr::V4(address) => self.push_raw(IP, &address.octets()),
            IpAddr::V6(address) => {
                let mut value = [network.prefix_len(); 17];
                value[..16].copy_from_slice(&address.octets());
                self.push_raw(IP, &value);
            }
        }
    }

    fn push_raw(&mut self, kind: u8, value: &[u8]) {
        self.0.push(kind);
        self.0.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
        self.0.extend_from_slice(value);
    }

    /// The name of the limit.
    pub fn limit(&self) -> &[u8] {
        let end = self.0.iter().position(|byte| *byte < b' ').unwrap_or(self.0.len());
        &self.0[..end]
    }

    /// The kind and the readable value of each part.
    fn parts(&self) -> impl Iterator<Item = (u8, String)> + '_ {
        let mut rest = &self.0[self.limit().len()..];
        std::iter::from_fn(move || {
            let [kind, length, tail @ ..] = rest else { return None };
            let (value, tail) = tail.split_at_checked(usize::from(*length))?;
            rest = tail;
            Some((*kind, readable(*kind, value)))
        })
    }

    /// The values, joined with commas. They distinguish this bucket from the others of its limit.
    pub fn key(&self) -> String {
        self.parts().map(|(_, value)| value).collect::<Vec<_>>().join(",")
    }
}

fn readable(kind: u8, value: &[u8]) -> String {
    match (kind, value) {
        (IP, &[a, b, c, d]) => IpAddr::from([a, b, c, d]).to_string(),
        (IP, value) if value.len() == 17 => {
            let mut address = [0; 16];
            address.copy_from_slice(&value[..16]);
            format!("{}/{}", IpAddr::from(address), value[16])
        }
        (kind, _) if kind >= MISSING => String::from_utf8_lossy(ANONYMOUS).into_owned(),
        (_, value) => String::from_utf8_lossy(value).into_owned(),
    }
}

/// Unambiguous and readable: `login|ip:9:192.0.2.1`. A store uses this name for the bucket.
impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.limit()))?;
        for (kind, value) in self.parts() {
            let name = match kind & !MISSING {
                IP => "ip",
                USER => "user",
                API_KEY => "api_key",
                ROUTE => "route",
                GLOBAL => "global",
                HEADER => "header",
                _ => "field",
            };
            let missing = if kind >= MISSING { "no-" } else { "" };
            write!(f, "|{missing}{name}:{}:{value}", value.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(value: Option<&str>) -> Bucket {
        let mut bucket = Bucket::of("api");
        bucket.push(&KeyPart::User, value.map(str::as_bytes));
        bucket
    }

    #[test]
    fn a_bucket_reads_as_its_limit_and_its_values() {
        let mut bucket = Bucket::of("login");
        bucket.push_network("192.0.2.1/32".parse().unwrap());
        bucket.push(&KeyPart::User, Some(b"ann"));
        assert_eq!(bucket.to_string(), "login|ip:9:192.0.2.1|user:3:ann");
        assert_eq!(bucket.key(), "192.0.2.1,ann");
        assert_eq!(bucket.limit(), b"login");
        let mut bucket = Bucket::of("login");
        bucket.push_network("2001:db8::/64".parse().unwrap());
        assert_eq!(bucket.key(), "2001:db8::/64");
    }

    #[test]
    fn no_value_imitates_another_or_its_absence() {
        assert_ne!(user(None), user(Some("anonymous")));
        assert_ne!(user(None).to_string(), user(Some("anonymous")).to_string());
        assert_ne!(user(Some("")), user(None));
        let long = "x".repeat(1_000);
        assert_eq!(user(Some(&long)).key().len(), LONGEST);
    }
}
