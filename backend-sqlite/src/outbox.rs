//! Mails to reset a password on their way: kept in the database from the answer on until they are sent. A mail server that
//! is away is tried again, with growing pauses; a stop waits for what is being sent, and a start goes on with the rest.

use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::params;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::api::passwords::{Forgot, LIFETIME};
use crate::clock::now;
use crate::http::app::App;
use crate::mail::{self, Fault};
use crate::model::users::{self, User};
use crate::problem::{Problem, Result};
use crate::random::{fingerprint, random_bytes, random_token};
use crate::storage::sql;
use crate::storage::{Result as DbResult, Transaction};

/// Requests that wait at most; whoever asks for one more is told to come back.
const MOST_WAITING: i64 = 10_000;

/// Mails that are sent at a time.
const AT_ONCE: i64 = 8;

/// An account is sent one mail at most so often, in seconds.
const AT_MOST_ONCE_IN: i64 = 60;

/// The first pause after a failure and the longest one, in seconds; each is twice the one before, less a random part.
const FIRST_PAUSE: i64 = 5;
const LONGEST_PAUSE: i64 = 10 * 60;

/// What is asked for in this time is sent together.
const MOMENT: Duration = Duration::from_millis(500);

/// The longest time without a look at what is due, in seconds.
const LONGEST_WAIT: i64 = 60;

/// A mail that could not be sent for so long is given up, in seconds.
const GIVEN_UP_AFTER: i64 = 24 * 3_600;

/// What those who ask and who sends share.
#[derive(Default)]
pub(crate) struct Outbox {
    asked: Notify,
    /// Why nothing can be sent, while that is so.
    trouble: Mutex<Option<u16>>,
}

/// A mail that is due.
struct Due {
    request: i64,
    user: String,
    tries: i64,
    asked_at: i64,
}

/// Keeps a request until its mail is sent. It is the same work for everybody, whether there is such an account or not.
pub(crate) async fn keep(app: &App, forgot: Forgot) -> Result<()> {
    let keep = move |transaction: &Transaction<'_>| {
        let waiting: i64 =
            transaction.row(sql::COUNT_RESET_REQUESTS, [], |row| row.get(0))?.unwrap_or_default();
        if waiting >= MOST_WAITING {
            return Ok(false);
        }
        transaction.run(sql::ADD_RESET_REQUEST, params![forgot.username, forgot.email, now()])?;
        Ok(true)
    };
    if !app.database.write(keep).await? {
        let detail = "too many mails are waiting to be sent: try again";
        return Err(Problem::too_many("mail_busy", detail, 60));
    }
    app.outbox.asked.notify_one();
    Ok(())
}

/// Sends what is due, until `stop`; what is being sent then is finished.
pub(crate) async fn send(app: App, mut stop: watch::Receiver<bool>) {
    loop {
        // Where the database is away or read-only, that is said elsewhere.
        let pause = send_due(&app, &stop).await.unwrap_or(Duration::from_secs(FIRST_PAUSE.unsigned_abs()));
        // Not at once: the writes for a request that somebody just made tell nobody whether there is such an account.
        let asked = async {
            app.outbox.asked.notified().await;
            tokio::time::sleep(MOMENT).await;
        };
        tokio::select! {
            () = asked => {}
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// Sends what is due now, and returns how long nothing else is.
async fn send_due(app: &App, stop: &watch::Receiver<bool>) -> anyhow::Result<Duration> {
    let mut next = i64::MAX;
    while !*stop.borrow() {
        if app.database.read(is_unresolved).await? {
            app.database.write(find_accounts).await?;
        }
        next = note_waiting(app).await?;
        let due = app.database.read(due).await?;
        if due.is_empty() {
            break;
        }
        let tries: Vec<_> = due.into_iter().map(|due| tokio::spawn(try_one(app.clone(), due))).collect();
        let mut all = Ok(());
        for one in tries {
            all = all.and(one.await?); // all of them are waited for, whatever becomes of one
        }
        all?;
    }
    Ok(Duration::from_secs(next.saturating_sub(now()).clamp(0, LONGEST_WAIT).unsigned_abs()))
}

/// Shows operators how many mails wait, and returns when the next one is due.
async fn note_waiting(app: &App) -> anyhow::Result<i64> {
    let (waiting, next) = app.database.read(waiting).await?;
    app.metrics.mails_waiting.set(waiting);
    Ok(next)
}

async fn try_one(app: App, due: Due) -> anyhow::Result<()> {
    let (token, request) = (random_token()?, due.request);
    let Some(user) = begin(&app, &due, &token).await? else { return Ok(()) };
    let address = user.email.as_deref().unwrap_or_default();
    let sent = timeout(mail::PATIENCE, app.mail.send_reset(address, &user.username, &token)).await;
    let result = match sent.unwrap_or_else(|_| Err(Fault::late("the mail server took too long".to_owned()))) {
        Ok(()) => {
            app.outbox.works();
            let sent = move |transaction: &Transaction<'_>| {
                transaction.run(sql::RESET_MAIL_SENT, params![request, now()])
            };
            app.database.write(sent).await?;
            app.metrics.user_operations.with_label_values(&["forgot_password"]).inc();
            "sent"
        }
        Err(fault) if fault.is_final || now() - due.asked_at > GIVEN_UP_AFTER => {
            error!(user = user.id, error = %fault, tries = due.tries + 1, "a mail to reset a password is given up");
            app.database
                .write(move |transaction| transaction.run(sql::DROP_RESET_REQUEST, [request]))
                .await?;
            "failed"
        }
        Err(fault) => {
            app.outbox.fails(&fault);
            "late"
        }
    };
    app.metrics.mails.with_label_values(&[result]).inc();
    Ok(())
}

/// Makes `token` good, and the next try due later: whatever happens while the mail is sent, it is not lost. `None` where
/// there is nobody to send it to any more.
async fn begin(app: &App, due: &Due, token: &str) -> anyhow::Result<Option<User>> {
    let (hash, id, request, tries) = (fingerprint(token), due.user.clone(), due.request, due.tries);
    let pause = pause(tries, f64::from(random_bytes::<1>()?[0]) / 255.0);
    let begin = move |transaction: &Transaction<'_>| {
        let user = users::by_id(transaction, &id)?.filter(|user| user.active && user.email.is_some());
        if user.is_none() {
            transaction.run(sql::DROP_RESET_REQUEST, [request])?;
            return Ok(None);
        }
        if transaction.run(sql::BEGIN_RESET_MAIL, params![request, now() + pause, tries])? == 0 {
            return Ok(None); // it was sent or tried meanwhile, or is not wanted any more
        }
        // The newest request counts; of one that is tried again, the server may have taken an earlier mail after all.
        let ended = if tries == 0 { i64::MAX } else { now() };
        transaction.run(sql::DROP_RESET_TOKENS, params![id, ended])?;
        transaction.run(sql::ADD_RESET_TOKEN, params![hash, id, now() + LIFETIME])?;
        Ok(user)
    };
    Ok(app.database.write(begin).await?)
}

impl Outbox {
    fn works(&self) {
        if self.trouble.lock().take().is_some() {
            info!("mail is sent again");
        }
    }

    fn fails(&self, fault: &Fault) {
        if self.trouble.lock().replace(fault.kind) != Some(fault.kind) {
            warn!(
                error = %fault,
                "mail cannot be sent: what was asked for is kept for a day and tried again; look at mail.url, SMTP_PASSWORD \
                 and the mail server"
            );
        }
    }
}

/// How long to wait after so many failures, in seconds; `chance` is from 0 to 1.
fn pause(failures: i64, chance: f64) -> i64 {
    let longest = FIRST_PAUSE.saturating_mul(1 << failures.clamp(0, 20)).min(LONGEST_PAUSE);
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "some hundred seconds")]
    let jitter = (longest as f64 / 2.0 * chance) as i64;
    longest - jitter
}

/// A request as it was asked for.
type Asked = (i64, Option<String>, Option<String>, i64);

fn next_unresolved(transaction: &Transaction<'_>) -> DbResult<Option<Asked>> {
    let asked = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
    transaction.row(sql::UNRESOLVED_RESET_REQUEST, [], asked)
}

fn is_unresolved(transaction: &Transaction<'_>) -> DbResult<bool> {
    next_unresolved(transaction).map(|next| next.is_some())
}

/// Finds whose accounts are meant. An account that has a mail waiting, or was sent one just now, gets no other.
fn find_accounts(transaction: &Transaction<'_>) -> DbResult<()> {
    transaction.run(sql::DROP_SENT_RESET_REQUESTS, [now() - AT_MOST_ONCE_IN, now()])?;
    while let Some((request, username, email, asked_at)) = next_unresolved(transaction)? {
        let users = match (username, email) {
            (Some(name), _) => users::by_name(transaction, &name)?.into_iter().collect(),
            (None, Some(email)) => users::by_email(transaction, &email)?,
            (None, None) => Vec::new(),
        };
        for user in users.iter().filter(|user| user.active && user.email.is_some()) {
            transaction.run(sql::ADD_RESET_MAIL, params![user.id, asked_at])?;
        }
        transaction.run(sql::DROP_RESET_REQUEST, [request])?;
    }
    Ok(())
}

fn due(transaction: &Transaction<'_>) -> DbResult<Vec<Due>> {
    transaction.rows(sql::DUE_RESET_MAILS, params![now(), now() + LONGEST_PAUSE, AT_ONCE], |row| {
        Ok(Due { request: row.get(0)?, user: row.get(1)?, tries: row.get(2)?, asked_at: row.get(3)? })
    })
}

/// The mails that wait, and when the next one is due.
fn waiting(transaction: &Transaction<'_>) -> DbResult<(i64, i64)> {
    let both = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, Option<i64>>(1)?));
    let (waiting, next) = transaction.row(sql::WAITING_RESET_MAILS, [], both)?.unwrap_or_default();
    Ok((waiting, next.unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_ten_minutes() {
        let pauses: Vec<_> = (0..9).map(|failures| pause(failures, 0.0)).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
        assert_eq!((pause(0, 1.0), pause(99, 1.0)), (3, 300), "a random part");
    }
}
