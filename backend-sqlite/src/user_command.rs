//! `backend-sqlite user`: an operator's bootstrap. It works on the database file, while the service runs or not.

use std::collections::BTreeMap;
use std::io::Read as _;

use anyhow::{Context as _, bail};

use crate::accounts::{self, Added};
use crate::cli::{DatabasePlace, UserCommand};
use crate::config::Config;
use crate::db::Database;
use crate::metrics::Metrics;
use crate::password;
use crate::tokens::random_token;
use crate::users::{NAME, is_name};

pub(crate) async fn run(command: UserCommand, environment: &BTreeMap<String, String>) -> anyhow::Result<()> {
    match command {
        UserCommand::Add { name, roles, password_stdin, place } => {
            let (database, config) = open(&place, environment)?;
            if !is_name(&name) {
                bail!("a username is {NAME} (got {name:?})");
            }
            let password = password(password_stdin, &config)?;
            let (hash, added_name) = (password::hash(&password.text)?, name.clone());
            match database.write(move |session| accounts::add(session, &added_name, &hash, &roles)).await? {
                Added::Id(id) => println!("{id}"),
                Added::Taken => bail!("the username `{name}` is taken"),
                Added::UnknownRole(role) => bail!("there is no role `{role}`"),
            }
            password.print_if_made();
        }
        UserCommand::Passwd { name, password_stdin, place } => {
            let (database, config) = open(&place, environment)?;
            let password = password(password_stdin, &config)?;
            let (hash, user) = (password::hash(&password.text)?, name.clone());
            if !database.write(move |session| accounts::set_password(session, &user, &hash)).await? {
                bail!("there is no user `{name}`");
            }
            password.print_if_made();
        }
        UserCommand::List { place } => {
            let (database, _) = open(&place, environment)?;
            let users = database
                .read(|session| {
                    let users = accounts::list(session)?;
                    users
                        .into_iter()
                        .map(|user| Ok((accounts::roles(session, &user.id)?, user)))
                        .collect::<crate::db::Result<Vec<_>>>()
                })
                .await?;
            for (roles, user) in users {
                let state = if user.active { "active" } else { "inactive" };
                println!("{}\t{}\t{state}\t{}", user.id, user.username, roles.join(","));
            }
        }
    }
    Ok(())
}

fn open(place: &DatabasePlace, environment: &BTreeMap<String, String>) -> anyhow::Result<(Database, Config)> {
    let mut config = Config::load(place.config.as_deref(), environment)?;
    if let Some(path) = &place.database {
        config.database.path.clone_from(path);
    }
    Ok((Database::open(&config.database, Metrics::new()?)?, config))
}

struct Password {
    text: String,
    made: bool,
}

impl Password {
    fn print_if_made(&self) {
        if self.made {
            println!("{}", self.text);
        }
    }
}

fn password(from_stdin: bool, config: &Config) -> anyhow::Result<Password> {
    if !from_stdin {
        return Ok(Password { text: random_token()?, made: true });
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read the password from standard input")?;
    let text = text.trim_end_matches(['\r', '\n']).to_owned();
    let faults = password::faults(&text, config.accounts.password_min_length);
    if !faults.is_empty() {
        bail!("a password has {}", faults.join(", "));
    }
    Ok(Password { text, made: false })
}
