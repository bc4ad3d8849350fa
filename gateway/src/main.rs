//! The command line of the gateway.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Parser as _;
use gateway::config::cli::{Cli, Command};
use gateway::config::settings::Settings;
use gateway::{check, healthcheck, run};
use service::telemetry::Start;

fn main() -> ExitCode {
    match dispatch(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            service::panics::last_words(format!("gateway: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<()> {
    let environment: BTreeMap<String, String> = std::env::vars().collect();
    match cli.command {
        Command::Run { common, policy } => {
            let settings = Settings::load(common.config.as_deref(), &environment, common.profile)?;
            let start = Start {
                service: "palisade-gateway",
                target: "gateway",
                level: settings.log.level,
                format: settings.log.format(common.profile),
                telemetry: &settings.telemetry,
            };
            start.start()?;
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            if settings.server.threads > 0 {
                runtime.worker_threads(settings.server.threads);
            }
            let runtime = runtime.enable_all().build()?;
            runtime.block_on(run::run(settings, policy, common.profile, &environment))
        }
        Command::Check { policies } => check::check(&policies),
        Command::Explain(arguments) => check::explain(&arguments),
        Command::Healthcheck { common } => {
            let settings = Settings::load(common.config.as_deref(), &environment, common.profile)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(healthcheck::run(&settings.admin.listen))
        }
    }
}
