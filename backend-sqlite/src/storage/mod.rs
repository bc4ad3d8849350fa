//! SQLite: one writer, a pool of readers, every statement named, timed and traced.
//!
//! [`Database`] is the only way to the file, and [`sql`] holds every statement. Floor 2: it may import `config`,
//! `observe`, `clock` and `random`.

mod connections;
mod database;
mod error;
pub(crate) mod followers;
mod migrations;
mod mode;
pub(crate) mod sql;
mod transaction;
pub(crate) mod wal;

pub(crate) use self::database::Database;
pub(crate) use self::error::{Abort, DbError, Result};
pub(crate) use self::transaction::Transaction;
