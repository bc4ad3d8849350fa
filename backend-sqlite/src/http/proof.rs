//! Proving to be an account's owner: a password, and a second factor where there is one. Wrong, unknown, locked and
//! inactive are one answer and take one time. A step on the way, such as the right password without its code, is no
//! failure.

use crate::http::app::App;
use crate::http::client::Client;
use crate::model::credentials::{self, Unproven};
use crate::model::lockout::{self, Attempt, Failed};
use crate::model::login_guard::Ticket;
use crate::model::password_hash;
use crate::model::users::{self, User};
use crate::problem::{Problem, Result};
use crate::storage::Transaction;

/// What somebody sends to prove who they are.
pub(crate) struct Credentials {
    pub(crate) name: String,
    pub(crate) password: String,
    pub(crate) totp: Option<String>,
    pub(crate) client: Client,
}

/// A password that was compared. It counts once it is settled.
pub(crate) struct Judged {
    user: Option<User>,
    totp: Option<String>,
    admitted: Admitted,
}

/// The outcome.
pub(crate) enum Proven {
    /// It is this account's owner.
    Yes(Owner),
    No,
    /// The password is right, and the second factor is missing.
    TotpRequired,
}

/// An account's owner.
pub(crate) struct Owner {
    pub(crate) user: User,
    /// Whether the account knows the device, and not only the network.
    pub(crate) device_is_known: bool,
}

impl Proven {
    /// The response where nothing was proved.
    pub(crate) fn refusal(&self) -> Problem {
        match self {
            // Not 401: gateways count those as failed logins.
            Self::TotpRequired => Problem::forbidden(
                "totp_required",
                "the password is right: send it again with the code of the second factor as `totp`",
            ),
            Self::Yes(_) | Self::No => {
                Problem::unauthorized("login_failed", "the username or the password is wrong")
            }
        }
    }
}

/// An attempt at a name from somewhere that may be made, and by what it is counted.
pub(crate) struct Admitted {
    pub(crate) attempt: Attempt,
    pub(crate) device_is_known: bool,
    pub(crate) ticket: Ticket,
}

/// Lets somebody try at a name, or says when to try again; the same for names that have no account.
pub(crate) async fn admit(app: &App, name: &str, client: &Client) -> Result<Admitted> {
    let key = app.login_guard.key();
    let (hash, place) = (key.name(name), client.place(key));
    let typed = name.to_owned();
    let known = app.database.read(move |transaction| lockout::known(transaction, &typed, &place)).await?;
    let ticket = app.login_guard.admit(hash, known.is_some())?;
    let attempt = Attempt { name: hash, place: known.unwrap_or(place.network), known: ticket.is_known() };
    Ok(Admitted { attempt, device_is_known: known.is_some() && known == place.device, ticket })
}

/// Compares a password, unless too many were wrong lately.
pub(crate) async fn judge(app: &App, credentials: Credentials) -> Result<Judged> {
    let Credentials { name, password, totp, client } = credentials;
    let admitted = admit(app, &name, &client).await?;
    let attempt = admitted.attempt;
    let compare = async {
        let find = move |transaction: &Transaction<'_>| {
            let user = users::by_name(transaction, &name)?.filter(|user| user.active);
            Ok(if lockout::is_locked(transaction, &attempt)? { None } else { user })
        };
        let user = app.database.read(find).await?;
        let stored = user.as_ref().map(|user| user.password_hash.clone());
        let right = password_hash::verify_async(password, stored).await?;
        Ok(user.filter(|_| right))
    };
    match compare.await {
        Ok(user) => Ok(Judged { user, totp, admitted }),
        Err(problem) => {
            admitted.ticket.give_back(); // it is not the client's failure
            Err(problem)
        }
    }
}

/// Judges and settles at once.
pub(crate) async fn prove(app: &App, credentials: Credentials) -> Result<Proven> {
    judge(app, credentials).await?.settle(app).await
}

impl Judged {
    /// Whether the password is right.
    pub(crate) const fn is_right(&self) -> bool {
        self.user.is_some()
    }

    /// Undoes the attempt: the password was right, and something else was wrong with the request.
    pub(crate) fn withdraw(self) {
        self.admitted.ticket.give_back();
    }

    /// Decides on lock and second factor in one transaction. A failure is counted.
    pub(crate) async fn settle(self, app: &App) -> Result<Proven> {
        let Self { user, totp, admitted: Admitted { attempt, device_is_known, ticket } } = self;
        let (rule, is_right) = (app.rules.lockout, user.is_some());
        let decided = app.database.write_and_commit_refusal(move |transaction| {
            credentials::prove(transaction, user.as_ref(), totp.as_deref(), &attempt, &rule)
        });
        let decided = match decided.await {
            // As in read-only mode. A wrong password counts all the same, or guessing would cost nothing meanwhile.
            Err(fault) => {
                if is_right {
                    ticket.give_back();
                }
                return Err(fault.into());
            }
            Ok(decided) => decided,
        };
        Ok(match decided {
            Ok(user) => {
                ticket.succeeded();
                Proven::Yes(Owner { user, device_is_known })
            }
            Err(Unproven::TotpRequired) => {
                ticket.give_back();
                Proven::TotpRequired
            }
            Err(Unproven::Failed(failed)) => {
                count(app, failed);
                ticket.failed(failed.in_a_row);
                Proven::No
            }
        })
    }
}

/// Counts a failure for operators.
pub(crate) fn count(app: &App, failed: Failed) {
    app.metrics.failed_logins.inc();
    if failed.locked {
        app.metrics.locked_accounts.inc();
    }
}
