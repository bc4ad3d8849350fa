//! Listings in pages: `?limit=&cursor=` of a request, `items` and `next` of its response.

use axum::Json;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::problem::{Problem, Result};

/// Items on one page: unless asked for, and at most.
const PAGE: u32 = 100;
const MAX_PAGE: u32 = 1_000;

/// `?limit=&cursor=` of a listing.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageQuery {
    pub(crate) limit: Option<u32>,
    pub(crate) cursor: Option<String>,
}

impl PageQuery {
    /// How many items are wanted.
    pub(crate) fn limit(&self) -> Result<usize> {
        let limit = self.limit.unwrap_or(PAGE);
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(Problem::bad_request(format!("limit is from 1 to {MAX_PAGE} (got {limit})")));
        }
        Ok(usize::try_from(limit).unwrap_or(usize::MAX))
    }

    /// The last item that is known.
    pub(crate) fn after(&self) -> Result<String> {
        let Some(cursor) = &self.cursor else { return Ok(String::new()) };
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
        bytes
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| Problem::bad_request("the cursor is the `next` of an earlier page"))
    }

    /// What leads to the page after `last`.
    pub(crate) fn cursor(last: &str) -> String {
        URL_SAFE_NO_PAD.encode(last)
    }
}

/// One page: its items, and what leads to the next one unless it is the last.
pub(crate) fn page(items: &[impl Serialize], next: Option<String>) -> Json<Value> {
    Json(match next {
        Some(next) => json!({"items": items, "next": next}),
        None => json!({"items": items}),
    })
}

/// A page of names.
pub(crate) fn names(names: &[String], next: Option<String>) -> Json<Value> {
    let items: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
    page(&items, next)
}
