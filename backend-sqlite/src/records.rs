//! Collections of JSON records with `ETags` (RFC 9110, 13): lost updates are refused, not merged.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rusqlite::params;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::db::{Result as DbResult, Session};
use crate::extract::{Bytes, Path, Query};
use crate::problem::{Problem, Result};
use crate::serve::App;
use crate::sql;
use crate::tokens::now;
use crate::users::{NAME, is_name};

/// The longest key, in bytes.
const MAX_KEY: usize = 512;

/// Records on one page: unless asked for, and at most.
const PAGE: u32 = 100;
const MAX_PAGE: u32 = 1_000;

/// A page ends with the record that brings its values to this, in bytes.
const PAGE_BYTES: usize = 4 << 20;

/// `PUT /v1/collections/{c}`
pub(crate) async fn create_collection(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<StatusCode> {
    if !is_name(&name) {
        return Err(Problem::bad_request(format!("a collection is {NAME}")));
    }
    let made = app
        .database
        .write(move |session| {
            if exists(session, &name)? {
                return Ok(false);
            }
            session.run(sql::ADD_COLLECTION, params![name, now()]).map(|_| true)
        })
        .await?;
    Ok(if made { StatusCode::CREATED } else { StatusCode::OK })
}

fn exists(session: &Session<'_>, collection: &str) -> DbResult<bool> {
    Ok(session.row(sql::COLLECTION_EXISTS, [collection], |_| Ok(()))?.is_some())
}

/// What a client knows of a record: `If-Match` and `If-None-Match`.
#[derive(Debug)]
struct Conditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

#[derive(Debug)]
enum Tags {
    Any,
    These(Vec<String>),
}

impl Conditions {
    fn read(headers: &HeaderMap) -> Result<Self> {
        Ok(Self {
            if_match: Tags::read(headers, &header::IF_MATCH)?,
            if_none_match: Tags::read(headers, &header::IF_NONE_MATCH)?,
        })
    }

    /// Whether a write may go on over the record's version, `None` where there is no record.
    fn hold(&self, version: Option<i64>) -> bool {
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

    /// Strong comparison, RFC 9110, 8.8.3.2: a weak tag names nothing, for ours are all strong.
    fn name(&self, version: Option<i64>) -> bool {
        match (self, version) {
            (_, None) => false,
            (Self::Any, Some(_)) => true,
            (Self::These(tags), Some(version)) => tags.contains(&etag(version)),
        }
    }

    /// Weak comparison, which is the one of `If-None-Match`.
    fn name_weakly(&self, version: Option<i64>) -> bool {
        match (self, version) {
            (Self::These(tags), Some(version)) => {
                tags.iter().any(|tag| tag.strip_prefix("W/").unwrap_or(tag) == etag(version))
            }
            _ => self.name(version),
        }
    }
}

fn etag(version: i64) -> String {
    format!("\"{version}\"")
}

fn tagged(status: StatusCode, version: i64) -> Response {
    let mut response = status.into_response();
    if let Ok(tag) = HeaderValue::from_str(&etag(version)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

fn precondition_failed() -> Problem {
    Problem::new(
        StatusCode::PRECONDITION_FAILED,
        "precondition_failed",
        "the record is not the one you know: read it again",
    )
}

/// `GET /v1/collections/{c}/records/{key}`
pub(crate) async fn read(
    State(app): State<App>,
    Path((collection, key)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response> {
    let conditions = Conditions::read(&headers)?;
    let record: Option<(String, i64)> = app
        .database
        .read(move |session| {
            session.row(sql::RECORD, [&collection, &key], |row| Ok((row.get(0)?, row.get(1)?)))
        })
        .await?;
    let (value, version) = record.ok_or_else(|| Problem::not_found("record"))?;
    if conditions.if_match.is_some_and(|tags| !tags.name(Some(version))) {
        return Err(precondition_failed());
    }
    if conditions.if_none_match.is_some_and(|tags| tags.name_weakly(Some(version))) {
        return Ok(tagged(StatusCode::NOT_MODIFIED, version));
    }
    let mut response = tagged(StatusCode::OK, version);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *response.body_mut() = value.into();
    Ok(response)
}

/// `PUT /v1/collections/{c}/records/{key}`: any JSON value.
pub(crate) async fn write(
    State(app): State<App>,
    Path((collection, key)): Path<(String, String)>,
    headers: HeaderMap,
    Bytes(body): Bytes,
) -> Result<Response> {
    let conditions = Conditions::read(&headers)?;
    if key.len() > MAX_KEY {
        return Err(Problem::bad_request(format!("a key has at most {MAX_KEY} bytes")));
    }
    let not_json =
        |error| Problem::bad_request(format!("the body is not JSON that can be read back: {error}"));
    // Kept as it came, but only what every reader can read: no number out of range, no nesting without end.
    serde_json::from_slice::<Value>(&body).map_err(not_json)?;
    let value: Box<RawValue> = serde_json::from_slice(&body).map_err(not_json)?;
    let written = app
        .database
        .write(move |session| {
            if !exists(session, &collection)? {
                return Ok(Err(Problem::not_found("collection")));
            }
            let before = session.row(sql::RECORD_VERSION, [&collection, &key], |row| row.get(0))?;
            if !conditions.hold(before) {
                return Ok(Err(precondition_failed()));
            }
            let version: i64 = session.row(sql::NEXT_VERSION, [], |row| row.get(0))?.unwrap_or_default();
            session.run(sql::PUT_RECORD, params![collection, key, value.get(), version])?;
            Ok(Ok((before.is_none(), version)))
        })
        .await?;
    let (made, version) = written?;
    Ok(tagged(if made { StatusCode::CREATED } else { StatusCode::OK }, version))
}

/// `DELETE /v1/collections/{c}/records/{key}`
pub(crate) async fn delete(
    State(app): State<App>,
    Path((collection, key)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<StatusCode> {
    let conditions = Conditions::read(&headers)?;

    app.database
        .write(move |session| {
            let before = session.row(sql::RECORD_VERSION, [&collection, &key], |row| row.get(0))?;
            if !conditions.hold(before) {
                return Ok(Err(precondition_failed()));
            }
            if session.run(sql::DELETE_RECORD, [&collection, &key])? == 0 {
                return Ok(Err(Problem::not_found("record")));
            }
            Ok(Ok(StatusCode::NO_CONTENT))
        })
        .await?
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageQuery {
    limit: Option<u32>,
    cursor: Option<String>,
}

#[derive(Serialize)]
pub(crate) struct Page {
    items: Vec<Item>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[derive(Serialize)]
struct Item {
    key: String,
    value: Box<RawValue>,
    etag: String,
}

/// `GET /v1/collections/{c}/records?limit=&cursor=`: in the order of the keys. A page of large values ends early.
pub(crate) async fn list(
    State(app): State<App>,
    Path(collection): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page>> {
    let limit = page.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Problem::bad_request(format!("limit is from 1 to {MAX_PAGE} (got {limit})")));
    }
    let after = match page.cursor {
        None => String::new(),
        Some(cursor) => URL_SAFE_NO_PAD
            .decode(cursor)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| Problem::bad_request("the cursor is the `next` of an earlier page"))?,
    };
    let listed = app.database.read(move |session| {
        if !exists(session, &collection)? {
            return Ok(None);
        }
        let mut bytes = 0;
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        let full = |(_, value, _): &(String, String, i64)| {
            bytes += value.len();
            bytes >= PAGE_BYTES
        };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        session.page(sql::LIST_RECORDS, params![collection, after], row, limit, full).map(Some)
    });
    let (rows, more) = listed.await?.ok_or_else(|| Problem::not_found("collection"))?;
    let next = rows.last().filter(|_| more).map(|(key, ..)| URL_SAFE_NO_PAD.encode(key));
    let item = |(key, value, version): (String, String, i64)| {
        let value = RawValue::from_string(value).map_err(anyhow::Error::from)?;
        Ok(Item { key, value, etag: etag(version) })
    };
    let items = rows.into_iter().map(item).collect::<anyhow::Result<_>>().map_err(crate::auth::internal)?;
    Ok(Json(Page { items, next }))
}
