//! Collections of JSON records, each with a version that grows with every write.

use rusqlite::params;
use serde_json::value::RawValue;

use crate::clock::now;
use crate::problem::{Failure, Problem};
use crate::storage::{Result, Transaction, sql};

/// A page ends with the record that brings its values to this, in bytes.
const PAGE_BYTES: usize = 4 << 20;

pub(crate) struct Record {
    pub(crate) key: String,
    /// JSON, as it came.
    pub(crate) value: String,
    pub(crate) version: i64,
}

/// Makes a collection; `false` when there is one of this name.
pub(crate) fn add_collection(transaction: &Transaction<'_>, name: &str) -> Result<bool> {
    if exists(transaction, name)? {
        return Ok(false);
    }
    transaction.run(sql::ADD_COLLECTION, params![name, now()]).map(|_| true)
}

/// Names of collections after `after`; and whether there are more.
pub(crate) fn collections(
    transaction: &Transaction<'_>,
    after: &str,
    limit: usize,
) -> Result<(Vec<String>, bool)> {
    transaction.page(sql::LIST_COLLECTIONS, [after], |row| row.get(0), limit, |_| false)
}

fn exists(transaction: &Transaction<'_>, collection: &str) -> Result<bool> {
    Ok(transaction.row(sql::COLLECTION_EXISTS, [collection], |_| Ok(()))?.is_some())
}

/// Refuses a collection that does not exist.
pub(crate) fn check_collection(transaction: &Transaction<'_>, collection: &str) -> Result<(), Failure> {
    if exists(transaction, collection)? {
        return Ok(());
    }
    Err(Problem::not_found("collection").into())
}

pub(crate) fn precondition_failed() -> Problem {
    Problem::precondition_failed("the record is not the one you know: read it again")
}

/// The value of a record and its version.
pub(crate) fn get(
    transaction: &Transaction<'_>,
    collection: &str,
    key: &str,
) -> Result<Option<(String, i64)>> {
    transaction.row(sql::RECORD, [collection, key], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// Writes a record of a collection that exists where `holds` of the version that is there (`None`: there is no record):
/// whether it is new, and its version.
pub(crate) fn put(
    transaction: &Transaction<'_>,
    collection: &str,
    key: &str,
    value: &RawValue,
    holds: impl Fn(Option<i64>) -> bool,
) -> Result<(bool, i64), Failure> {
    let before = transaction.row(sql::RECORD_VERSION, [collection, key], |row| row.get(0))?;
    if !holds(before) {
        return Err(precondition_failed().into());
    }
    let version: i64 = transaction.row(sql::NEXT_VERSION, [], |row| row.get(0))?.unwrap_or_default();
    transaction.run(sql::PUT_RECORD, params![collection, key, value.get(), version])?;
    Ok((before.is_none(), version))
}

/// Deletes a record where `holds` of its version.
pub(crate) fn remove(
    transaction: &Transaction<'_>,
    collection: &str,
    key: &str,
    holds: impl Fn(Option<i64>) -> bool,
) -> Result<(), Failure> {
    let before = transaction.row(sql::RECORD_VERSION, [collection, key], |row| row.get(0))?;
    if !holds(before) {
        return Err(precondition_failed().into());
    }
    if transaction.run(sql::DELETE_RECORD, [collection, key])? == 0 {
        return Err(Problem::not_found("record").into());
    }
    Ok(())
}

/// Records in the order of their keys, after `after`; and whether there are more. A page of large
/// values ends early. `None` where there is no such collection.
pub(crate) fn page(
    transaction: &Transaction<'_>,
    collection: &str,
    after: &str,
    limit: usize,
) -> Result<Option<(Vec<Record>, bool)>> {
    if !exists(transaction, collection)? {
        return Ok(None);
    }
    let mut bytes = 0;
    let full = |record: &Record| {
        bytes += record.value.len();
        bytes >= PAGE_BYTES
    };
    let record =
        |row: &rusqlite::Row<'_>| Ok(Record { key: row.get(0)?, value: row.get(1)?, version: row.get(2)? });
    transaction.page(sql::LIST_RECORDS, params![collection, after], record, limit, full).map(Some)
}
