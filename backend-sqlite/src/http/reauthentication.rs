//! Proving once more to be an account's owner, before something that outlives an access token: a second factor, an API
//! key. A token alone is not enough, because it may be stolen; a login of the last minutes is enough, and else the
//! password.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::clock::now;
use crate::http::app::App;
use crate::http::identity::Holder;
use crate::http::proof::{self, Credentials, Proven};
use crate::problem::{Problem, Result};

/// A login counts as a proof for so long, in seconds.
const FRESH_FOR_SECONDS: i64 = 5 * 60;

/// What an account's owner sends where the last login is longer ago.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Proof {
    /// The current password.
    pub(crate) password: Option<String>,
    /// A code of the second factor, where there is one.
    pub(crate) totp: Option<String>,
}

/// Whether the login by which the request was let in is recent.
fn is_fresh(holder: &Holder) -> bool {
    // A clock that was set back makes a token of the future, which proves nothing.
    holder.auth_time.is_some_and(|at| (0..=FRESH_FOR_SECONDS).contains(&now().saturating_sub(at)))
}

/// Refuses a request that has a token and does not prove to come from the account's owner. A wrong password counts as a
/// failed login.
pub(crate) async fn require(app: &App, holder: &Holder, proof: Proof) -> Result<()> {
    let Some(password) = proof.password else {
        if is_fresh(holder) {
            return Ok(());
        }
        let detail = format!(
            "send the account's password as `password` (and a code as `totp` where it has a second factor), \
             or log in again: the last login is more than {} minutes ago",
            FRESH_FOR_SECONDS / 60
        );
        return Err(Problem::forbidden("reauthentication_required", detail));
    };
    let (name, client) = (holder.user.username.clone(), holder.caller.client.clone());
    match proof::prove(app, Credentials { name, password, totp: proof.totp, client }).await? {
        Proven::Yes(owner) if owner.user.id == holder.user.id => Ok(()),
        Proven::TotpRequired => Err(Proven::TotpRequired.refusal()),
        Proven::Yes(_) | Proven::No => Err(Proven::No.refusal()),
    }
}
