//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::settings::Profile;

/// Palisade: a gateway that hardens any HTTP service.
#[derive(Debug, Parser)]
#[command(name = "gateway", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the gateway can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enforce the policy until SIGTERM.
    Run {
        /// Where the settings are.
        #[command(flatten)]
        common: Common,
        /// The policy, instead of the one that the settings name.
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
    },
    /// Validate policies and run their own tests; exit 1 with <FILE:LINE:COL>: reason.
    Check {
        /// The policies.
        #[arg(value_name = "POLICY", required = true)]
        policies: Vec<PathBuf>,
    },
    /// Say what each stage decides for a request that is never sent.
    Explain(Explain),
    /// Ask a running gateway whether it is ready; exit 0 when it is. For container health checks.
    Healthcheck {
        /// Where the settings are.
        #[command(flatten)]
        common: Common,
    },
}

/// Where the settings are.
#[derive(Debug, Args)]
pub struct Common {
    /// Settings; defaults and the environment alone without it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the program runs.
    #[arg(long, value_enum, default_value_t, env = "PALISADE_PROFILE")]
    pub profile: Profile,
}

/// `gateway explain`
#[derive(Debug, Args)]
pub struct Explain {
    /// The policy.
    #[arg(long, value_name = "FILE")]
    pub policy: PathBuf,
    /// A method and a path: 'POST /v1/auth/login'.
    pub request: String,
    /// The client's address.
    #[arg(long, default_value = "127.0.0.1")]
    pub ip: IpAddr,
    /// A header field, `name: value`; may stand several times.
    #[arg(long = "header", value_name = "FIELD")]
    pub headers: Vec<String>,
    /// A token. It is judged by its claims; its signature is assumed to be valid.
    #[arg(long, value_name = "JWT")]
    pub token: Option<String>,
    /// Prints JSON, for programs.
    #[arg(long)]
    pub json: bool,
}
