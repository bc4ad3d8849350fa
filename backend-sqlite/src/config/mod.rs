//! What the program is started with: the command line, the settings and the secrets.
//!
//! Floor 1: it imports nothing of the crate.

pub(crate) mod cli;
mod load;
pub(crate) mod secrets;
mod settings;

pub(crate) use self::load::load;
pub(crate) use self::settings::{
    ADMIN, AccountRules, Config, DatabaseConfig, Lockout, MailConfig, PasswordRule, Profile, ServerConfig,
    Synchronous,
};
