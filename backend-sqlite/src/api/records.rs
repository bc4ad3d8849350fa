//! Collections of JSON records with `ETags` (RFC 9110, 13): lost updates are refused, not merged.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use rusqlite::params;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::api::users::{NAME, is_name};
use crate::clock::now;
use crate::http::app::App;
use crate::http::extract::{Body, Bytes, PageQuery, Path, Query};
use crate::problem::{Failure, Problem, Result};
use crate::storage::sql;
use crate::storage::{Result as DbResult, Transaction};

/// The longest key, in bytes.
const MAX_KEY: usize = 512;

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
        .write(move |transaction| {
            if exists(transaction, &name)? {
                return Ok(false);
            }
            transaction.run(sql::ADD_COLLECTION, params![name, now()]).map(|_| true)
        })
        .await?;
    Ok(if made { StatusCode::CREATED } else { StatusCode::OK })
}

/// `GET /v1/collections?limit=&cursor=`
pub(crate) async fn list_collections(
    State(app): State<App>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Value>> {
    let (limit, after) = (page.limit()?, page.after()?);
    let listed = app.database.read(move |transaction| {
        let name = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
        transaction.page(sql::LIST_COLLECTIONS, [after], name, limit, |_| false)
    });
    let (names, more) = listed.await?;
    let next = names.last().filter(|_| more).map(|name| PageQuery::cursor(name));
    let items: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
    Ok(Json(match next {
        Some(next) => json!({"items": items, "next": next}),
        None => json!({"items": items}),
    }))
}

fn exists(transaction: &Transaction<'_>, collection: &str) -> DbResult<bool> {
    Ok(transaction.row(sql::COLLECTION_EXISTS, [collection], |_| Ok(()))?.is_some())
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
        .read(move |transaction| {
            transaction.row(sql::RECORD, [&collection, &key], |row| Ok((row.get(0)?, row.get(1)?)))
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
    check_key(&key)?;
    let value = json_as_it_came(&body)?;
    let written = app
        .database
        .write(move |transaction| {
            if !exists(transaction, &collection)? {
                return Ok(Err(Problem::not_found("collection")));
            }
            put(transaction, &collection, &key, &value, &conditions)
        })
        .await?;
    let (made, version) = written?;
    Ok(tagged(if made { StatusCode::CREATED } else { StatusCode::OK }, version))
}

fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(Problem::bad_request(format!("a key has from 1 to {MAX_KEY} bytes")));
    }
    Ok(())
}

/// Kept as it came, but only what every reader can read: no number out of range, no nesting without end.
fn json_as_it_came(body: &[u8]) -> Result<Box<RawValue>> {
    let not_json =
        |error| Problem::bad_request(format!("the body is not JSON that can be read back: {error}"));
    serde_json::from_slice::<Value>(body).map_err(not_json)?;
    serde_json::from_slice(body).map_err(not_json)
}

/// Writes a record of a collection that is there: whether it is new, and its version.
fn put(
    transaction: &Transaction<'_>,
    collection: &str,
    key: &str,
    value: &RawValue,
    conditions: &Conditions,
) -> DbResult<Result<(bool, i64)>> {
    let before = transaction.row(sql::RECORD_VERSION, [collection, key], |row| row.get(0))?;
    if !conditions.hold(before) {
        return Ok(Err(precondition_failed()));
    }
    let version: i64 = transaction.row(sql::NEXT_VERSION, [], |row| row.get(0))?.unwrap_or_default();
    transaction.run(sql::PUT_RECORD, params![collection, key, value.get(), version])?;
    Ok(Ok((before.is_none(), version)))
}

fn remove(
    transaction: &Transaction<'_>,
    collection: &str,
    key: &str,
    conditions: &Conditions,
) -> DbResult<Result<()>> {
    let before = transaction.row(sql::RECORD_VERSION, [collection, key], |row| row.get(0))?;
    if !conditions.hold(before) {
        return Ok(Err(precondition_failed()));
    }
    if transaction.run(sql::DELETE_RECORD, [collection, key])? == 0 {
        return Ok(Err(Problem::not_found("record")));
    }
    Ok(Ok(()))
}

/// `DELETE /v1/collections/{c}/records/{key}`
pub(crate) async fn delete(
    State(app): State<App>,
    Path((collection, key)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<StatusCode> {
    let conditions = Conditions::read(&headers)?;
    app.database.write(move |transaction| remove(transaction, &collection, &key, &conditions)).await??;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Batch {
    writes: Vec<Write>,
}

/// One write of a batch.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Write {
    op: Op,
    key: String,
    #[serde(default, deserialize_with = "some_value")]
    #[schemars(with = "Option<Value>")]
    value: Option<Box<RawValue>>,
    if_match: Option<String>,
}

/// A value that is there, `null` included.
fn some_value<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> std::result::Result<Option<Box<RawValue>>, D::Error> {
    Box::deserialize(from).map(Some)
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Op {
    Put,
    Delete,
}

/// The most writes in one batch.
const MAX_BATCH: usize = 1_000;

/// `POST /v1/collections/{c}/batch`: all of it, or nothing and the first fault.
pub(crate) async fn batch(
    State(app): State<App>,
    Path(collection): Path<String>,
    Body(Batch { writes }): Body<Batch>,
) -> Result<Json<Value>> {
    if writes.is_empty() || writes.len() > MAX_BATCH {
        return Err(Problem::bad_request(format!("from 1 to {MAX_BATCH} writes in one batch")));
    }
    let writes = writes.into_iter().map(Write::checked).collect::<Result<Vec<_>>>()?;
    let done = app.database.write_or_refuse(move |transaction| -> std::result::Result<_, Failure> {
        if !exists(transaction, &collection)? {
            return Err(Problem::not_found("collection").into());
        }
        let mut results = Vec::with_capacity(writes.len());
        for (at, (key, value, conditions)) in writes.iter().enumerate() {
            let done = match value {
                Some(value) => put(transaction, &collection, key, value, conditions)?
                    .map(|(_, version)| json!({"key": key, "etag": etag(version)})),
                None => remove(transaction, &collection, key, conditions)?.map(|()| json!({"key": key})),
            };
            results.push(done.map_err(|problem| problem.with("write", json!({"index": at, "key": key})))?);
        }
        Ok(results)
    });
    Ok(Json(json!({"results": done.await?})))
}

/// A write that can be tried: a key, a value unless it is to be deleted, and what must hold.
type Checked = (String, Option<Box<RawValue>>, Conditions);

impl Write {
    fn checked(self) -> Result<Checked> {
        let Self { op, key, value, if_match } = self;
        check_key(&key)?;
        if value.is_some() != (op == Op::Put) {
            return Err(Problem::bad_request(format!(
                "a put has a `value`, a delete has none (key `{key}`)"
            )));
        }
        let value = value.map(|value| json_as_it_came(value.get().as_bytes())).transpose()?;
        let tag = |tag: String| if tag.trim() == "*" { Tags::Any } else { Tags::These(vec![tag]) };
        Ok((key, value, Conditions { if_match: if_match.map(tag), if_none_match: None }))
    }
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct Page {
    items: Vec<Item>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct Item {
    key: String,
    #[schemars(with = "Value")]
    value: Box<RawValue>,
    etag: String,
}

/// `GET /v1/collections/{c}/records?limit=&cursor=`: in the order of the keys. A page of large values ends early.
pub(crate) async fn list(
    State(app): State<App>,
    Path(collection): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page>> {
    let (limit, after) = (page.limit()?, page.after()?);
    let listed = app.database.read(move |transaction| {
        if !exists(transaction, &collection)? {
            return Ok(None);
        }
        let mut bytes = 0;
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        let full = |(_, value, _): &(String, String, i64)| {
            bytes += value.len();
            bytes >= PAGE_BYTES
        };
        transaction.page(sql::LIST_RECORDS, params![collection, after], row, limit, full).map(Some)
    });
    let (rows, more) = listed.await?.ok_or_else(|| Problem::not_found("collection"))?;
    let next = rows.last().filter(|_| more).map(|(key, ..)| PageQuery::cursor(key));
    let item = |(key, value, version): (String, String, i64)| {
        let value = RawValue::from_string(value).map_err(anyhow::Error::from)?;
        Ok(Item { key, value, etag: etag(version) })
    };
    let items =
        rows.into_iter().map(item).collect::<anyhow::Result<_>>().map_err(crate::problem::internal)?;
    Ok(Json(Page { items, next }))
}

#[cfg(test)]
mod fuzz;
