//! A request as the specification sees it: a borrowed view of a head that was parsed strictly before.

use std::net::IpAddr;

/// What is judged. The path is in its normal form (`path::normalise`) and without the query.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The address at the other end of the connection.
    pub peer: IpAddr,
    /// The method, case-sensitive.
    pub method: &'a str,
    /// The normal path.
    pub path: &'a str,
    /// The header fields in the order of their arrival.
    pub headers: Headers<'a>,
    /// The body as JSON, where a limit of the route counts by one of its fields and it is JSON.
    pub body: Option<&'a serde_json::Value>,
}

/// Header fields; names are compared without regard to case.
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
