//! Who may try to log in now. A place that an account knows, because its owner logged in from there, is never refused
//! because others fail. All other places share a budget: few guesses at an account, few at all accounts
//! together, so that a crowd of addresses gets nowhere. Whether a name is an account's makes no difference to what
//! is answered. `docs/decisions/0006-who-may-try-to-log-in.md` says why.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::warn;

use super::bucket::{Bucket, Rule};
use crate::config::Lockout;
use crate::model::places::{Hash, HashKey};
use crate::observe::metrics::Metrics;
use crate::problem::Problem;

/// Failures in a row from unknown places, after which an account is guessed at slowly (NIST SP 800-63B, 3.2.2: at most
/// 100).
const IN_A_ROW: u32 = 100;

/// The most names in memory, some 80 bytes each: 5 MiB.
const MOST_NAMES: usize = 65_536;

/// The shortest time between two log lines about refused logins.
const LOG_EVERY: Duration = Duration::from_mins(1);

/// Guesses at one account from places that it does not know.
const fn of_account(failures: f64) -> Rule {
    Rule { rate: 6.0, burst: 2.0 * failures, debt: Duration::from_secs(2) }
}

/// The same, once there were too many in a row.
const SLOW: Rule = Rule { rate: 1.0 / 60.0, burst: 1.0, debt: Duration::ZERO };

/// All accounts at which somebody failed lately, together.
const fn of_guessed_at(failures: f64) -> Rule {
    Rule { rate: 8.0, burst: 3.0 * failures, debt: Duration::from_secs(2) }
}

/// All accounts at which nobody did, together.
const QUIET: Rule = Rule { rate: 20.0, burst: 60.0, debt: Duration::from_secs(2) };

/// Decides who may try; its memory has a bound.
pub(crate) struct LoginGuard {
    key: HashKey,
    rules: Rules,
    state: Mutex<State>,
    metrics: Metrics,
}

#[derive(Clone, Copy)]
struct Rules {
    account: Rule,
    guessed_at: Rule,
    in_a_row: u32,
}

struct State {
    names: HashMap<Hash, Name>,
    guessed_at: Bucket,
    quiet: Bucket,
    logged_at: Option<Instant>,
}

/// What is known of a name at which somebody tries from an unknown place.
#[derive(Clone, Copy)]
struct Name {
    bucket: Bucket,
    /// In a row, as far as is remembered; each failure corrects it from the database.
    failures: u32,
    trying: u32,
}

impl Name {
    const fn is_quiet(&self) -> bool {
        self.failures == 0 && self.trying == 0
    }
}

impl LoginGuard {
    pub(crate) fn new(key: HashKey, lockout: &Lockout, metrics: Metrics) -> Arc<Self> {
        let failures = f64::from(lockout.failures);
        let now = Instant::now();
        Arc::new(Self {
            key,
            rules: Rules {
                account: of_account(failures),
                guessed_at: of_guessed_at(failures),
                in_a_row: IN_A_ROW.max(lockout.failures),
            },
            state: Mutex::new(State {
                names: HashMap::new(),
                guessed_at: Bucket::new(now),
                quiet: Bucket::new(now),
                logged_at: None,
            }),
            metrics,
        })
    }

    /// What names and places are hashed with.
    pub(crate) const fn key(&self) -> &HashKey {
        &self.key
    }

    /// Lets somebody try at `name`: from a place that the account knows, or else while there is room.
    pub(crate) fn admit(self: &Arc<Self>, name: Hash, known: bool) -> Result<Ticket, Problem> {
        self.admit_at(name, known, Instant::now()).map_err(|(limit, wait)| {
            self.metrics.logins_throttled.with_label_values(&[limit]).inc();
            self.log_refusal(limit);
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            Problem::too_many(
                "login_throttled",
                "too many logins fail just now: try again later",
                seconds.max(1),
            )
        })
    }

    fn admit_at(
        self: &Arc<Self>,
        name: Hash,
        known: bool,
        now: Instant,
    ) -> Result<Ticket, (&'static str, Duration)> {
        if known {
            return Ok(Ticket { guard: Arc::clone(self), name, lane: None });
        }
        let mut state = self.state.lock();
        let State { names, guessed_at, quiet, .. } = &mut *state;
        if names.len() >= MOST_NAMES && !names.contains_key(&name) {
            make_room(names);
        }
        let one = names.entry(name).or_insert(Name { bucket: Bucket::new(now), failures: 0, trying: 0 });
        let rule = if one.failures >= self.rules.in_a_row {
            one.bucket.shrink(&SLOW);
            &SLOW
        } else {
            &self.rules.account
        };
        one.bucket.take(rule, now).map_err(|wait| ("account", wait))?;
        let lane = if one.is_quiet() { Lane::Quiet } else { Lane::GuessedAt };
        let taken = match lane {
            Lane::Quiet => quiet.take(&QUIET, now).map_err(|wait| ("quiet_accounts", wait)),
            Lane::GuessedAt => {
                guessed_at.take(&self.rules.guessed_at, now).map_err(|wait| ("guessed_accounts", wait))
            }
        };
        match taken {
            Ok(()) => {
                one.trying = one.trying.saturating_add(1);
                drop(state);
                Ok(Ticket { guard: Arc::clone(self), name, lane: Some(lane) })
            }
            Err(refused) => {
                one.bucket.give_back(); // it is not this account that is too busy
                if one.is_quiet() {
                    names.remove(&name);
                }
                Err(refused)
            }
        }
    }

    /// Forgets what failed at a name.
    pub(crate) fn forget(&self, name: Hash) {
        if let Some(one) = self.state.lock().names.get_mut(&name) {
            one.failures = 0;
            one.bucket = Bucket::new(Instant::now());
        }
    }

    fn log_refusal(&self, limit: &str) {
        let mut state = self.state.lock();
        if state.logged_at.is_none_or(|at| at.elapsed() > LOG_EVERY) {
            state.logged_at = Some(Instant::now());
            drop(state);
            warn!(
                limit,
                "logins are refused: too many fail from places that their accounts do not know; \
                 palisade_logins_throttled_total counts them, and who logged in before gets in"
            );
        }
    }
}

/// Drops what is known of a name: one at which nobody is trying now, and of some that lie side by side in the table,
/// which is as good as by chance, the one at which the fewest failed.
fn make_room(names: &mut HashMap<Hash, Name>) {
    const LOOKED_AT: usize = 16;
    let idle = names.iter().filter(|(_, name)| name.trying == 0).take(LOOKED_AT);
    if let Some(least) = idle.min_by_key(|(_, name)| name.failures).map(|(hash, _)| *hash) {
        names.remove(&least);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Quiet,
    GuessedAt,
}

/// A permit to try once. Dropped without an outcome, as when the client disconnects meanwhile, it counts as used.
pub(crate) struct Ticket {
    guard: Arc<LoginGuard>,
    name: Hash,
    lane: Option<Lane>,
}

impl Ticket {
    /// Whether the account knows the place.
    pub(crate) const fn is_known(&self) -> bool {
        self.lane.is_none()
    }

    /// It failed, for so many times in a row.
    pub(crate) fn failed(self, in_a_row: u32) {
        if self.lane.is_some()
            && let Some(name) = self.guard.state.lock().names.get_mut(&self.name)
        {
            name.failures = in_a_row.max(name.failures.saturating_add(1));
        }
    }

    /// It was a login: earlier failures at this name no longer count.
    pub(crate) fn succeeded(self) {
        self.guard.forget(self.name);
        self.give_back();
    }

    /// It was no failure, and no login either: it is not counted.
    pub(crate) fn give_back(mut self) {
        let Some(lane) = self.lane.take() else { return };
        let mut state = self.guard.state.lock();
        match lane {
            Lane::Quiet => state.quiet.give_back(),
            Lane::GuessedAt => state.guessed_at.give_back(),
        }
        if let Some(name) = state.names.get_mut(&self.name) {
            name.bucket.give_back();
            name.trying = name.trying.saturating_sub(1);
            if name.is_quiet() {
                state.names.remove(&self.name); // there is nothing to know of it
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.lane.is_some()
            && let Some(name) = self.guard.state.lock().names.get_mut(&self.name)
        {
            name.trying = name.trying.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests;
