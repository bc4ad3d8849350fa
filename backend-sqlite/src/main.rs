//! Palisade's persistence backend: accounts, roles, permissions and JSON records on SQLite.
//!
//! The code is a house of floors. A file uses what lies beside it in its room and what lies on lower floors, never a
//! higher one, and no two files use each other:
//!
//! 1. [`config`], [`observe`], [`clock`], [`random`]: settings and secrets, metrics, time, chance;
//! 2. [`mail`], [`storage`]: the mail server, and the only way to SQLite; [`storage::sql`] holds every statement;
//! 3. [`problem`]: every error that a client sees;
//! 4. [`model`]: what the service knows and does, as functions over a transaction, without HTTP;
//! 5. [`http`]: what handlers share: the parts of a request, who sent it, and what proves that;
//! 6. [`api`]: one file a resource; [`api::routes`] lists every address;
//! 7. [`maintenance`], [`outbox`], [`serve`], [`user_command`], [`healthcheck`]: what runs beside requests, and the commands.

mod api;
mod clock;
mod config;
mod healthcheck;
mod http;
mod mail;
mod maintenance;
mod model;
mod observe;
mod outbox;
mod problem;
mod random;
mod serve;
mod storage;
mod user_command;

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Parser as _;
use service::telemetry::Start;

use crate::config::cli::{Cli, Command};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            service::panics::last_words(format!("backend-sqlite: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(cli: Cli) -> anyhow::Result<()> {
    let environment: BTreeMap<String, String> = std::env::vars().collect();
    match cli.command {
        Command::Serve { common } => {
            let config = config::load(common.config.as_deref(), &environment)?;
            let start = Start {
                service: "palisade-backend",
                target: "backend_sqlite",
                level: config.log.level,
                format: config.log.format(common.profile),
                telemetry: &config.telemetry,
            };
            start.start()?;
            serve::serve(config, common.profile, &environment).await
        }
        Command::User { command } => user_command::run(command, &environment).await,
        Command::Healthcheck { common } => {
            healthcheck::run(&config::load(common.config.as_deref(), &environment)?.server.listen)
        }
    }
}
