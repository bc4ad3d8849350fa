//! `key` of a limit: by what it counts.

use std::str::FromStr;
use std::sync::Arc;

use crate::from_toml_str;
use crate::values::request::is_field_name;

/// One thing by which a limit counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPart {
    /// The client's address, or its IPv6 prefix.
    Ip,
    /// The subject.
    User,
    /// The API key of the client.
    ApiKey,
    /// The name of the route.
    Route,
    /// One bucket for all.
    Global,
    /// The value of a header field.
    Header(Arc<str>),
    /// The value of a field of a JSON body, in lower case, because `Ann` and `ann` are often one account.
    Field(Arc<str>),
}

impl FromStr for KeyPart {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "ip" => Ok(Self::Ip),
            "user" => Ok(Self::User),
            "api_key" => Ok(Self::ApiKey),
            "route" => Ok(Self::Route),
            "global" => Ok(Self::Global),
            _ => match text.split_once(':') {
                Some(("header", name)) if is_field_name(name) => {
                    Ok(Self::Header(name.to_ascii_lowercase().into()))
                }
                Some(("field", name)) if !name.is_empty() => Ok(Self::Field(name.into())),
                _ => Err("ip, user, api_key, route, global, header:NAME or field:NAME"),
            },
        }
    }
}

from_toml_str!(KeyPart);
