//! Conditional requests (RFC 9110, 13): lost updates are refused, not merged. An `ETag` is a record's version.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use crate::problem::{Problem, Result};

/// What a client knows of a record: `If-Match` and `If-None-Match`.
#[derive(Debug)]
pub(crate) struct Conditions {
    pub(crate) if_match: Option<Tags>,
    pub(crate) if_none_match: Option<Tags>,
}

#[derive(Debug)]
pub(crate) enum Tags {
    Any,
    These(Vec<String>),
}

impl Conditions {
    pub(crate) fn read(headers: &HeaderMap) -> Result<Self> {
        Ok(Self {
            if_match: Tags::read(headers, &header::IF_MATCH)?,
            if_none_match: Tags::read(headers, &header::IF_NONE_MATCH)?,
        })
    }

    /// Whether a write may replace the record's version, `None` where there is no record.
    pub(crate) fn hold(&self, version: Option<i64>) -> bool {
        self.if_match.as_ref().is_none_or(|tags| tags.name(version))
            && self.if_none_match.as_ref().is_none_or(|tags| !tags.name_weakly(version))
    }
}

impl Tags {
    fn read(headers: &HeaderMap, name: &header::HeaderName) -> Result<Option<Self>> {
        let mut tags = Vec::new();
        for field in headers.get_all(name) {
            let field = field.to_str().map_err(|_| Problem::bad_request(format!("{name} is not ASCII")))?;
            if field.trim() == "*" {
                return Ok(Some(Self::Any));
            }
            for tag in field.split(',').map(str::trim) {
                let quoted = tag.len() >= 2 && tag.starts_with('"') && tag.ends_with('"');
                if !quoted && !tag.starts_with("W/\"") {
                    return Err(Problem::bad_request(format!("{name} holds `*` or tags in quotes")));
                }
                tags.push(tag.to_owned());
            }
        }
        Ok((!tags.is_empty()).then_some(Self::These(tags)))
    }

    /// Strong comparison, RFC 9110, 8.8.3.2: a weak tag names nothing, because ours are all strong.
    pub(crate) fn name(&self, version: Option<i64>) -> bool {
        match (self, version) {
            (_, None) => false,
            (Self::Any, Some(_)) => true,
            (Self::These(tags), Some(version)) => tags.contains(&etag(version)),
        }
    }

    /// Weak comparison, which is the one of `If-None-Match`.
    pub(crate) fn name_weakly(&self, version: Option<i64>) -> bool {
        match (self, version) {
            (Self::These(tags), Some(version)) => {
                tags.iter().any(|tag| tag.strip_prefix("W/").unwrap_or(tag) == etag(version))
            }
            _ => self.name(version),
        }
    }
}

pub(crate) fn etag(version: i64) -> String {
    format!("\"{version}\"")
}

/// A response without a body, with the tag of `version`.
pub(crate) fn tagged(status: StatusCode, version: i64) -> Response {
    let mut response = status.into_response();
    if let Ok(tag) = HeaderValue::from_str(&etag(version)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}
