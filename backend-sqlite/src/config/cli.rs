//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::Profile;

/// Palisade's persistence backend: accounts, roles, permissions and JSON records on SQLite.
#[derive(Debug, Parser)]
#[command(name = "backend-sqlite", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the API until SIGTERM.
    Serve {
        #[command(flatten)]
        common: Common,
    },
    /// Manage accounts without HTTP; works while the service runs.
    User {
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Ask a running backend whether it is ready; exit 0 when it is. For container health checks.
    Healthcheck {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Settings; defaults and the environment alone without it.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where the program runs.
    #[arg(long, value_enum, default_value_t, env = "PALISADE_PROFILE")]
    pub(crate) profile: Profile,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Add an account and print its id; without --password-stdin a password is made and printed once.
    Add {
        name: String,
        /// Where mail to its owner goes.
        #[arg(long)]
        email: Option<String>,
        /// Give it this role; may stand several times.
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<String>,
        /// Read the password from standard input.
        #[arg(long)]
        password_stdin: bool,
        /// Read a hash of the password from standard input, from another system: argon2 or bcrypt.
        #[arg(long, conflicts_with = "password_stdin")]
        hash_stdin: bool,
        #[command(flatten)]
        place: DatabasePlace,
    },
    /// Set an account's password and end its sessions.
    Passwd {
        name: String,
        /// Read the password from standard input.
        #[arg(long)]
        password_stdin: bool,
        #[command(flatten)]
        place: DatabasePlace,
    },
    /// List the accounts.
    List {
        #[command(flatten)]
        place: DatabasePlace,
    },
}

/// Which database.
#[derive(Debug, Args)]
pub(crate) struct DatabasePlace {
    /// The database file.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    pub(crate) database: Option<PathBuf>,
    /// Settings that name the database file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}
