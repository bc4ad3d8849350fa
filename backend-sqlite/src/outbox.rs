//! Sends the mails to reset a password. They are stored in the database from the request on until they are sent. When
//! the mail server is unavailable it is tried again, with growing pauses; a shutdown waits for what is being sent, and
//! the next start continues with the rest.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::clock::now;
use crate::mail::{self, Mail, MailError};
use crate::model::password_resets::{self, Due};
use crate::model::users::User;
use crate::observe::metrics::Metrics;
use crate::random::{random_bytes, random_token};
use crate::storage::Database;

/// Mails that are sent at a time.
const AT_ONCE: i64 = 8;

/// The first pause after a failure and the longest one, in seconds; each is twice the one before, less a random part.
const FIRST_PAUSE: i64 = 5;
const LONGEST_PAUSE: i64 = 10 * 60;

/// What is asked for in this time is sent together.
const BATCH_DELAY: Duration = Duration::from_millis(500);

/// The longest time without a look at what is due, in seconds.
const LONGEST_WAIT: i64 = 60;

/// A mail that could not be sent for so long is given up, in seconds.
const GIVEN_UP_AFTER: i64 = 24 * 3_600;

/// What sending needs.
pub(crate) struct Outbox {
    pub(crate) database: Database,
    pub(crate) mail: Arc<Mail>,
    pub(crate) metrics: Metrics,
    /// Somebody asked for a mail.
    pub(crate) requested: Arc<Notify>,
    /// The kind of the last fault, while nothing can be sent.
    pub(crate) trouble: Mutex<Option<u16>>,
}

impl Outbox {
    /// Sends what is due, until `stop`; what is being sent then is finished.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        let outbox = Arc::new(self);
        loop {
            // Where the database is unavailable or read-only, that is logged elsewhere.
            let pause =
                outbox.send_due(&stop).await.unwrap_or(Duration::from_secs(FIRST_PAUSE.unsigned_abs()));
            // Not at once: otherwise the time of the writes for a request would show whether there is such an account.
            let requested = async {
                outbox.requested.notified().await;
                tokio::time::sleep(BATCH_DELAY).await;
            };
            tokio::select! {
                () = requested => {}
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Sends what is due now, and returns how long nothing else is.
    async fn send_due(self: &Arc<Self>, stop: &watch::Receiver<bool>) -> anyhow::Result<Duration> {
        let mut next = i64::MAX;
        while !*stop.borrow() {
            if self.database.read(password_resets::is_unresolved).await? {
                self.database.write(password_resets::find_accounts).await?;
            }
            next = self.report_waiting().await?;
            let due = self
                .database
                .read(|transaction| password_resets::due(transaction, LONGEST_PAUSE, AT_ONCE))
                .await?;
            if due.is_empty() {
                break;
            }
            let tries: Vec<_> =
                due.into_iter().map(|due| tokio::spawn(Arc::clone(self).try_one(due))).collect();
            let mut all = Ok(());
            for one in tries {
                all = all.and(one.await?); // all of them are waited for, whatever becomes of one
            }
            all?;
        }
        Ok(Duration::from_secs(next.saturating_sub(now()).clamp(0, LONGEST_WAIT).unsigned_abs()))
    }

    /// Shows operators how many mails wait, and returns when the next one is due.
    async fn report_waiting(&self) -> anyhow::Result<i64> {
        let (waiting, next) = self.database.read(password_resets::waiting).await?;
        self.metrics.mails_waiting.set(waiting);
        Ok(next)
    }

    async fn try_one(self: Arc<Self>, due: Due) -> anyhow::Result<()> {
        let (token, request, tries, asked_at) = (random_token()?, due.request, due.tries + 1, due.asked_at);
        let Some(user) = self.begin(due, token.clone()).await? else { return Ok(()) };
        let address = user.email.as_deref().unwrap_or_default();
        let sent = timeout(mail::SEND_TIMEOUT, self.mail.send_reset(address, &user.username, &token)).await;
        let result = match sent
            .unwrap_or_else(|_| Err(MailError::temporary("the mail server took too long".to_owned())))
        {
            Ok(()) => {
                self.report_success();
                self.database
                    .write(move |transaction| password_resets::mark_sent(transaction, request))
                    .await?;
                self.metrics.user_operations.with_label_values(&["forgot_password"]).inc();
                "sent"
            }
            Err(fault) if fault.is_final || now() - asked_at > GIVEN_UP_AFTER => {
                error!(user = user.id, error = %fault, tries, "a mail to reset a password is given up");
                self.database
                    .write(move |transaction| password_resets::drop_request(transaction, request))
                    .await?;
                "failed"
            }
            Err(fault) => {
                self.report_fault(&fault);
                "late"
            }
        };
        self.metrics.mails.with_label_values(&[result]).inc();
        Ok(())
    }

    /// `None` where there is nobody to send the mail to any more.
    async fn begin(&self, due: Due, token: String) -> anyhow::Result<Option<User>> {
        let pause = pause(due.tries, f64::from(random_bytes::<1>()?[0]) / 255.0);
        let begin =
            self.database.write(move |transaction| password_resets::begin(transaction, &due, &token, pause));
        Ok(begin.await?)
    }

    fn report_success(&self) {
        if self.trouble.lock().take().is_some() {
            info!("mail is sent again");
        }
    }

    fn report_fault(&self, fault: &MailError) {
        if self.trouble.lock().replace(fault.kind) != Some(fault.kind) {
            warn!(
                error = %fault,
                "mail cannot be sent: it is stored for a day and tried again; check mail.url, SMTP_PASSWORD \
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
