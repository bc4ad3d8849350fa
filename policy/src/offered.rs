//! The settings of a policy that allow only a few words, each with all of its words. The documentation lists them, and
//! a test checks that each word is switched on by an end-to-end test.

use crate::routes::WhenOpen;
use crate::rules::authenticate::token::Algorithm;
use crate::rules::concurrency::Priority;
use crate::rules::limits::{Counts, Mode, OnStoreFailure, Scope};
use crate::rules::permissions::OnPermissionFailure;
use crate::rules::response_headers;
use crate::rules::retry::Growth;
use crate::values::path::EncodedSlash;

/// A setting: its path in the file, and its words.
pub type Offer = (&'static str, &'static [&'static str]);

/// Every such setting.
pub const OFFERED: [Offer; 12] = [
    ("routes.priority", Priority::WORDS),
    ("headers.mode", response_headers::Mode::WORDS),
    ("jwt.algorithms", Algorithm::WORDS),
    ("limits.counts", Counts::WORDS),
    ("limits.key", &["ip", "user", "api_key", "route", "global", "header:NAME", "field:NAME"]),
    ("limits.mode", Mode::WORDS),
    ("limits.on_store_failure", OnStoreFailure::WORDS),
    ("limits.scope", Scope::WORDS),
    ("permissions.on_failure", OnPermissionFailure::WORDS),
    ("requests.encoded_slash", EncodedSlash::WORDS),
    ("retries.backoff", Growth::WORDS),
    ("routes.when_open", WhenOpen::WORDS),
];
