//! What is done to the data at the start and at an interval: rules that changed, and rows that are too old to matter.

use std::time::Duration;

use crate::clock::now;
use crate::config::AccountRules;
use crate::model::{changes, lockout, sessions};
use crate::storage::{Database, Result, Transaction};

/// How often old rows are dropped.
const SWEEP_EVERY: Duration = Duration::from_mins(10);

/// Sessions are dropped so long after their end, in seconds.
const SESSIONS_STAY: i64 = 3_600;

/// Lets no lock and no session last longer than the settings say now.
pub(crate) fn apply_rules(transaction: &Transaction<'_>, rules: &AccountRules) -> Result<()> {
    lockout::apply_rule(transaction, &rules.lockout)?;
    sessions::apply_rule(transaction, rules.refresh_token)
}

/// Drops what is too old to matter, at an interval, forever.
pub(crate) async fn sweep(database: Database) {
    loop {
        // What fails is logged, and tried again next time.
        let _ = database
            .write(|transaction| {
                changes::sweep(transaction)?;
                sessions::sweep(transaction, now() - SESSIONS_STAY)?;
                lockout::sweep(transaction)
            })
            .await;
        tokio::time::sleep(SWEEP_EVERY).await;
    }
}
