//! The schema of a database file: whether it is one of ours, and bringing it up to date.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rusqlite::{Connection, TransactionBehavior};
use tracing::warn;

use super::error::Result;
use super::sql;

/// Refuses a file whose write-ahead log alone is there: SQLite would take it for a new database and delete the log.
pub(super) fn check_parts(path: &Path) -> anyhow::Result<()> {
    let size = |file: &Path| std::fs::metadata(file).map_or(0, |metadata| metadata.len());
    let log = wal_of(path);
    if size(path) == 0 && size(&log) > 0 {
        bail!(
            "`{}` is missing or empty, and `{}` beside it holds data: put the database back beside its log, or remove the \
             log to begin with an empty database",
            path.display(),
            log.display()
        );
    }
    Ok(())
}

/// Brings the schema up to date, of a new file as well. A file that is another program's, a newer version's, or the
/// half of a database is refused and left as it is.
pub(super) fn prepare(connection: &mut Connection, path: &Path) -> anyhow::Result<()> {
    let version: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let newest = u32::try_from(sql::MIGRATIONS.len())?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let journal: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    match (version, tables) {
        // A new file has its schema before it has a write-ahead log, so this one had a log, which is not here.
        (0, 0) if journal == "wal" => bail!(
            "it has no tables: its data were in `{}`, which is not beside it. Copy both files, best after a clean stop; or \
             remove this one to begin with an empty database",
            wal_of(path).display()
        ),
        (0, 0) => {
            migrate(connection)?;
            warn!(
                file = %path.display(),
                "a new database: it has no accounts. The first one is added with `backend-sqlite user add NAME --role admin`"
            );
        }
        (0, _) => bail!("it is the database of another program"),
        (version, _) if version > newest => bail!(
            "it was written by a newer version of this program (schema {version}, this one knows {newest})"
        ),
        _ => migrate(connection).context("it cannot be brought up to date")?,
    }
    Ok(())
}

fn migrate(connection: &mut Connection) -> Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    let done: u32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (migration, number) in sql::MIGRATIONS.iter().zip(1u32..).filter(|(_, number)| *number > done) {
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", number)?;
    }
    Ok(transaction.commit()?)
}

/// The write-ahead log of a database file.
pub(super) fn wal_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(path: &Path) -> anyhow::Result<Connection> {
        check_parts(path)?;
        let mut connection = Connection::open(path)?;
        prepare(&mut connection, path)?;
        Ok(connection)
    }

    fn fault(path: &Path) -> String {
        format!("{:#}", prepared(path).unwrap_err())
    }

    #[test]
    fn a_new_file_is_made_and_half_a_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("palisade.db");
        let connection = prepared(&path).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        let alone = dir.path().join("alone.db");
        {
            // As a program before this one made it: the log first, and the schema in it.
            let old = Connection::open(&alone).unwrap();
            old.pragma_update(None, "journal_mode", "wal").unwrap();
        }
        assert!(fault(&alone).contains("its data were in"), "{}", fault(&alone));
        assert_eq!(std::fs::metadata(&alone).unwrap().len(), 4_096, "it is left as it is");
        drop(connection);
        assert!(prepared(&path).is_ok());
        let lost = dir.path().join("lost.db");
        std::fs::write(wal_of(&lost), "data").unwrap();
        assert!(fault(&lost).contains("put the database back"), "{}", fault(&lost));
        assert!(wal_of(&lost).exists());
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE notes (id)").unwrap();
        assert_eq!(fault(&path), "it is the database of another program");
        let newer = dir.path().join("newer.db");
        prepared(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(fault(&newer).starts_with("it was written by a newer version"), "{}", fault(&newer));
    }
}
