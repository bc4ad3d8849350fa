//! Who may try to log in now: a leaky bucket for each name and for all of them, in memory.
//!
//! `docs/decisions/0006-who-may-try-to-log-in.md` says why. It imports `places`.

mod bucket;
mod guard;

pub(crate) use self::guard::{LoginGuard, Ticket};
