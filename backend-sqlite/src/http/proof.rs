//! Proving to be an account's owner: a password, and a second factor where there is one. Wrong, unknown, locked and
//! inactive are one answer and take one time. A step on the way, such as the right password without its code, is no
//! failure.

use axum::http::StatusCode;

use crate::api::second_factor;
use crate::http::app::App;
use crate::model::lockout::{self, Failed, Try};
use crate::model::login_guard::{Ticket, Whereabouts};
use crate::model::password_hash;
use crate::model::users::{self, User};
use crate::problem::{Problem, Result};
use crate::storage::{Result as DbResult, Transaction};

/// What somebody sends to prove who it is.
pub(crate) struct Attempt {
    pub(crate) name: String,
    pub(crate) password: String,
    pub(crate) totp: Option<String>,
    pub(crate) whereabouts: Whereabouts,
}

/// A password that was compared. It counts once it is settled.
pub(crate) struct Judged {
    user: Option<User>,
    totp: Option<String>,
    one: Try,
    device_is_known: bool,
    ticket: Ticket,
}

/// What came of it.
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
    /// What is said to whoever proved nothing.
    pub(crate) fn refusal(&self) -> Problem {
        match self {
            // Not 401: gateways count those as failed logins.
            Self::TotpRequired => Problem::new(
                StatusCode::FORBIDDEN,
                "totp_required",
                "the password is right: send it again with the code of the second factor as `totp`",
            ),
            Self::Yes(_) | Self::No => {
                Problem::unauthorized("login_failed", "the username or the password is wrong")
            }
        }
    }
}

/// Leave to try at a name from somewhere, and by what it is counted.
pub(crate) struct Admitted {
    pub(crate) one: Try,
    pub(crate) device_is_known: bool,
    pub(crate) ticket: Ticket,
}

/// Lets somebody try at a name, or says when to come back; the same for names that are no account's.
pub(crate) async fn admit(app: &App, name: &str, whereabouts: &Whereabouts) -> Result<Admitted> {
    let key = app.login_guard.key();
    let (hash, place) = (key.name(name), key.place(whereabouts));
    let typed = name.to_owned();
    let known = app.database.read(move |transaction| lockout::known(transaction, &typed, &place)).await?;
    let ticket = app.login_guard.admit(hash, known.is_some())?;
    let one = Try { name: hash, place: known.unwrap_or(place.network), known: ticket.is_known() };
    Ok(Admitted { one, device_is_known: known.is_some() && known == place.device, ticket })
}

/// Compares a password, unless too many were wrong lately.
pub(crate) async fn judge(app: &App, attempt: Attempt) -> Result<Judged> {
    let Attempt { name, password, totp, whereabouts } = attempt;
    let Admitted { one, device_is_known, ticket } = admit(app, &name, &whereabouts).await?;
    let compare = async {
        let find = move |transaction: &Transaction<'_>| {
            let user = users::by_name(transaction, &name)?.filter(|user| user.active);
            Ok(if lockout::is_locked(transaction, &one)? { None } else { user })
        };
        let user = app.database.read(find).await?;
        let stored = user.as_ref().map(|user| user.password_hash.clone());
        let right = password_hash::verify_async(password, stored).await?;
        Ok(user.filter(|_| right))
    };
    match compare.await {
        Ok(user) => Ok(Judged { user, totp, one, device_is_known, ticket }),
        Err(problem) => {
            ticket.give_back(); // it is not the client's failure
            Err(problem)
        }
    }
}

/// Judges and settles at once.
pub(crate) async fn prove(app: &App, attempt: Attempt) -> Result<Proven> {
    judge(app, attempt).await?.settle(app).await
}

enum Decision {
    Proven(User),
    Failed(Failed),
    TotpRequired,
}

impl Judged {
    /// Whether the password is right.
    pub(crate) const fn is_right(&self) -> bool {
        self.user.is_some()
    }

    /// Lets it not have happened: the password was right, and something else was wrong with the request.
    pub(crate) fn withdraw(self) {
        self.ticket.give_back();
    }

    /// Decides on lock and second factor in one transaction. A failure is counted.
    pub(crate) async fn settle(self, app: &App) -> Result<Proven> {
        let Self { user, totp, one, device_is_known, ticket } = self;
        let rule = app.accounts.lockout;
        let decide = move |transaction: &Transaction<'_>| {
            let refuse = || lockout::failed(transaction, &one, &rule).map(Decision::Failed);
            // Others may have failed while this one was judged.
            if lockout::is_locked(transaction, &one)? {
                return refuse();
            }
            let Some(user) = unchanged(transaction, user.as_ref())? else { return refuse() };
            if user.totp_secret.is_some() {
                let Some(code) = &totp else { return Ok(Decision::TotpRequired) };
                if !second_factor::use_code(transaction, &user, code)? {
                    return refuse();
                }
            }
            lockout::succeeded(transaction, &one)?;
            Ok(Decision::Proven(user))
        };
        Ok(match app.database.write(decide).await? {
            Decision::Proven(user) => {
                ticket.succeeded();
                Proven::Yes(Owner { user, device_is_known })
            }
            Decision::TotpRequired => {
                ticket.give_back();
                Proven::TotpRequired
            }
            Decision::Failed(failed) => {
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

/// The account as it is now, unless its password was changed while it was judged.
pub(crate) fn unchanged(transaction: &Transaction<'_>, judged: Option<&User>) -> DbResult<Option<User>> {
    let Some(judged) = judged else { return Ok(None) };
    let now = users::by_id(transaction, &judged.id)?;
    Ok(now.filter(|now| now.active && now.password_hash == judged.password_hash))
}
