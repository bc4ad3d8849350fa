//! `/v1/collections`: JSON records with `ETags`.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::http::app::App;
use crate::http::conditional::{Conditions, Tags, etag, tagged};
use crate::http::extract::{Body, Bytes, Path, Query};
use crate::http::page::{PageQuery, names};
use crate::model::names::{NAME, is_name};
use crate::model::records::{self, Record, precondition_failed};
use crate::problem::{Failure, Problem, Result, internal};
use crate::storage::Transaction;

/// The longest key, in bytes.
const MAX_KEY: usize = 512;

/// The most writes in one batch.
const MAX_BATCH: usize = 1_000;

/// `PUT /v1/collections/{c}`
pub(crate) async fn create_collection(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<StatusCode> {
    if !is_name(&name) {
        return Err(Problem::bad_request(format!("a collection is {NAME}")));
    }
    let made = app.database.write(move |transaction| records::add_collection(transaction, &name)).await?;
    Ok(if made { StatusCode::CREATED } else { StatusCode::OK })
}

/// `GET /v1/collections?limit=&cursor=`
pub(crate) async fn list_collections(
    State(app): State<App>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Value>> {
    let (limit, after) = (query.limit()?, query.after()?);
    let listed = app.database.read(move |transaction| records::collections(transaction, &after, limit));
    let (collections, more) = listed.await?;
    let next = collections.last().filter(|_| more).map(|name| PageQuery::cursor(name));
    Ok(names(&collections, next))
}

/// `GET /v1/collections/{c}/records/{key}`
pub(crate) async fn read(
    State(app): State<App>,
    Path((collection, key)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response> {
    let conditions = Conditions::read(&headers)?;
    let record = app.database.read(move |transaction| records::get(transaction, &collection, &key)).await?;
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
    let value = raw_json(&body)?;
    let written = app.database.write(move |transaction| {
        records::check_collection(transaction, &collection)?;
        records::put(transaction, &collection, &key, &value, |version| conditions.hold(version))
    });
    let (made, version) = written.await?;
    Ok(tagged(if made { StatusCode::CREATED } else { StatusCode::OK }, version))
}

fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(Problem::bad_request(format!("a key has from 1 to {MAX_KEY} bytes")));
    }
    Ok(())
}

/// Stored as it came, but only what every reader can read: no number out of range, no nesting without end.
fn raw_json(body: &[u8]) -> Result<Box<RawValue>> {
    let not_json =
        |error| Problem::bad_request(format!("the body is not JSON that can be read back: {error}"));
    serde_json::from_slice::<Value>(body).map_err(not_json)?;
    serde_json::from_slice(body).map_err(not_json)
}

/// `DELETE /v1/collections/{c}/records/{key}`
pub(crate) async fn delete(
    State(app): State<App>,
    Path((collection, key)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<StatusCode> {
    let conditions = Conditions::read(&headers)?;
    let removed = app.database.write(move |transaction| {
        records::remove(transaction, &collection, &key, |version| conditions.hold(version))
    });
    removed.await?;
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
    let written = app.database.write(move |transaction| {
        records::check_collection(transaction, &collection)?;
        let write = |(at, write): (usize, &Checked)| {
            let done = write_one(transaction, &collection, write);
            done.map_err(|failure| failure.with("write", || json!({"index": at, "key": write.0})))
        };
        writes.iter().enumerate().map(write).collect::<std::result::Result<Vec<_>, Failure>>()
    });
    Ok(Json(json!({"results": written.await?})))
}

/// One write of a batch: what the response says of it.
fn write_one(
    transaction: &Transaction<'_>,
    collection: &str,
    (key, value, conditions): &Checked,
) -> std::result::Result<Value, Failure> {
    let holds = |version| conditions.hold(version);
    match value {
        Some(value) => {
            let (_, version) = records::put(transaction, collection, key, value, holds)?;
            Ok(json!({"key": key, "etag": etag(version)}))
        }
        None => records::remove(transaction, collection, key, holds).map(|()| json!({"key": key})),
    }
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
        let value = value.map(|value| raw_json(value.get().as_bytes())).transpose()?;
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
    let listed = app.database.read(move |transaction| records::page(transaction, &collection, &after, limit));
    let (records, more) = listed.await?.ok_or_else(|| Problem::not_found("collection"))?;
    let next = records.last().filter(|_| more).map(|record| PageQuery::cursor(&record.key));
    let item = |Record { key, value, version }: Record| {
        let value = RawValue::from_string(value).map_err(anyhow::Error::from)?;
        Ok(Item { key, value, etag: etag(version) })
    };
    let items = records.into_iter().map(item).collect::<anyhow::Result<_>>().map_err(internal)?;
    Ok(Json(Page { items, next }))
}

#[cfg(test)]
mod fuzz;
