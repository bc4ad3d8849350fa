//! A transaction: each of its statements is named, timed and traced.

use std::cell::Cell;
use std::time::Instant;

use rusqlite::{Connection, OptionalExtension as _, Params, Row};
use tracing::info_span;

use super::error::Result;
use super::sql::Statement;
use crate::observe::metrics::Metrics;

/// A transaction on a borrowed connection.
pub(crate) struct Transaction<'c> {
    connection: &'c Connection,
    metrics: &'c Metrics,
    announced: Cell<Option<i64>>,
}

impl<'c> Transaction<'c> {
    pub(super) fn new(connection: &'c Connection, metrics: &'c Metrics) -> Self {
        Self { connection, metrics, announced: Cell::new(None) }
    }

    /// Notifies the gateways that follow of this change, once the transaction is committed.
    pub(crate) fn announce(&self, revision: i64) {
        self.announced.set(Some(revision));
    }

    /// The last change that was announced.
    pub(super) fn announced(&self) -> Option<i64> {
        self.announced.get()
    }

    /// The first row, if any.
    pub(crate) fn row<T>(
        &self,
        statement: Statement,
        params: impl Params,
        map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        self.timed(statement, |prepared| prepared.query_row(params, map).optional())
    }

    /// Every row.
    pub(crate) fn rows<T>(
        &self,
        statement: Statement,
        params: impl Params,
        map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        self.timed(statement, |prepared| prepared.query_map(params, map)?.collect())
    }

    /// The first rows: `limit` of them, or up to the one that makes the page `full`; and whether there are more.
    pub(crate) fn page<T>(
        &self,
        statement: Statement,
        params: impl Params,
        map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
        limit: usize,
        mut full: impl FnMut(&T) -> bool,
    ) -> Result<(Vec<T>, bool)> {
        self.timed(statement, |prepared| {
            let mut rows = prepared.query_map(params, map)?;
            let mut page = Vec::new();
            while let Some(item) = rows.next().transpose()? {
                let ends = full(&item) || page.len() + 1 == limit;
                page.push(item);
                if ends {
                    break;
                }
            }
            let more = rows.next().transpose()?.is_some();
            Ok((page, more))
        })
    }

    /// No rows; how many were changed.
    pub(crate) fn run(&self, statement: Statement, params: impl Params) -> Result<usize> {
        self.timed(statement, |prepared| prepared.execute(params))
    }

    fn timed<T>(
        &self,
        statement: Statement,
        work: impl FnOnce(&mut rusqlite::CachedStatement<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let _span = info_span!(
            "sql",
            otel.name = statement.name,
            otel.kind = "client",
            db.system.name = "sqlite",
            db.operation.name = statement.name,
            db.query.text = statement.text,
        )
        .entered();
        let started = Instant::now();
        let result =
            self.connection.prepare_cached(statement.text).and_then(|mut prepared| work(&mut prepared));
        self.metrics.db_operation(statement.name, result.is_ok(), started.elapsed());
        Ok(result?)
    }
}
