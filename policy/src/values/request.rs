//! A request as the specification sees it: a borrowed view of a head that the gateway has parsed strictly.

use std::fmt;
use std::net::IpAddr;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// The request that is judged. Its path is in normal form (`path::normalise`), without the query.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The address at the other end of the connection.
    pub peer: IpAddr,
    /// The method, case-sensitive.
    pub method: &'a str,
    /// The normal path.
    pub path: &'a str,
    /// The header fields, in the order of arrival.
    pub headers: Headers<'a>,
    /// The body, when a limit of the route counts by one of its fields and it is a JSON object.
    pub body: Option<&'a JsonBody>,
}

impl Request<'_> {
    /// The announced length of the body. It is a number: anything else was refused before.
    pub fn content_length(&self) -> Option<u64> {
        std::str::from_utf8(self.headers.first("content-length")?).ok()?.parse().ok()
    }
}

/// Whether `name` is a field name, RFC 9110, 5.1.
pub(crate) fn is_field_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Header fields. Names are compared without regard to case.
#[derive(Clone, Copy, Debug, Default)]
pub struct Headers<'a>(&'a [(&'a str, &'a [u8])]);

impl<'a> Headers<'a> {
    /// A view of `fields`, each a name and a value.
    pub const fn new(fields: &'a [(&'a str, &'a [u8])]) -> Self {
        Self(fields)
    }

    /// Every value of the field `name`, in order.
    pub fn all(self, name: &'a str) -> impl DoubleEndedIterator<Item = &'a [u8]> + 'a {
        self.0.iter().filter(move |(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }

    /// The first value of the field `name`.
    pub fn first(self, name: &'a str) -> Option<&'a [u8]> {
        self.all(name).next()
    }
}

/// A body that is a JSON object: all its members in the order of arrival, duplicates included.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonBody(Vec<(String, Value)>);

/// The member of a body that has some name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Member<'b> {
    /// Nothing.
    Missing,
    /// One value.
    One(&'b Value),
    /// Several values. Services differ in which of them they use.
    Several,
}

impl JsonBody {
    /// Reads a body; `None` when it is not a JSON object.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// The member `name` in upper or lower case, because some services read `Username` as `username`.
    pub fn member(&self, name: &str) -> Member<'_> {
        let mut members = self.0.iter().filter(|(other, _)| same_in_any_case(other, name));
        match (members.next(), members.next()) {
            (None, _) => Member::Missing,
            (Some((_, value)), None) => Member::One(value),
            (Some(_), Some(_)) => Member::Several,
        }
    }
}

fn same_in_any_case(one: &str, other: &str) -> bool {
    one == other || one.to_lowercase() == other.to_lowercase()
}

impl<'de> Deserialize<'de> for JsonBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = JsonBody;

            fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
                text.write_str("a JSON object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<JsonBody, M::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(JsonBody(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_is_there_twice_in_any_case_is_ambiguous() {
        let body = |text: &str| JsonBody::parse(text.as_bytes()).unwrap();
        let ann = Value::from("ann");
        assert_eq!(body(r#"{"username":"ann","a":1,"a":2}"#).member("username"), Member::One(&ann));
        assert_eq!(body(r#"{"\u0055sername":"ann"}"#).member("username"), Member::One(&ann));
        for twice in [
            r#"{"username":"ann","username":"bob"}"#,
            r#"{"username":"ann","Username":"bob"}"#,
            r#"{"USERNAME":"ann","userna\u006de":null}"#,
        ] {
            assert_eq!(body(twice).member("username"), Member::Several, "{twice}");
        }
        assert_eq!(body(r#"{"user":"ann"}"#).member("username"), Member::Missing);
        assert!(JsonBody::parse(b"[1]").is_none() && JsonBody::parse(b"username=ann").is_none());
    }
}
