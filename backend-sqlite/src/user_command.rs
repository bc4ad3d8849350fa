//! `backend-sqlite user`: an operator's bootstrap. It works on the database file, while the service runs or not.

use std::collections::BTreeMap;
use std::io::Read as _;

use anyhow::{Context as _, bail};

use crate::config::cli::{DatabasePlace, UserCommand};
use crate::config::{self, Config, Profile};
use crate::model::names::{NAME, is_name};
use crate::model::users::{self, Added, NewUser, User};
use crate::model::{credentials, password_hash, password_rules};
use crate::observe::metrics::Metrics;
use crate::random::random_token;
use crate::storage::{Database, Transaction};

pub(crate) async fn run(command: UserCommand, environment: &BTreeMap<String, String>) -> anyhow::Result<()> {
    match command {
        UserCommand::Add { name, email, roles, password_stdin, hash_stdin, place } => {
            let (database, config) = open(&place, environment)?;
            if !is_name(&name) {
                bail!("a username is {NAME} (got {name:?})");
            }
            let (password_hash, password) = if hash_stdin {
                (hash_from_stdin()?, None)
            } else {
                let password = Password::new(password_stdin, &config, &name)?;
                (password_hash::hash(&password.text)?, Some(password))
            };
            let user = NewUser { username: name.clone(), email, email_verified: true, password_hash, roles };
            match database.write(move |transaction| users::add(transaction, &user)).await? {
                Added::Id(id) => println!("{id}"),
                Added::Taken => bail!("the username `{name}` is taken"),
                Added::UnknownRole(role) => bail!("there is no role `{role}`"),
            }
            password.iter().for_each(Password::print_if_made);
        }
        UserCommand::Passwd { name, password_stdin, place } => {
            let (database, config) = open(&place, environment)?;
            let password = Password::new(password_stdin, &config, &name)?;
            let (hash, username) = (password_hash::hash(&password.text)?, name.clone());
            let set = move |transaction: &Transaction<'_>| match users::by_name(transaction, &username)? {
                Some(user) => credentials::reset_password(transaction, &user, &hash).map(|()| true),
                None => Ok(false),
            };
            if !database.write(set).await? {
                bail!("there is no user `{name}`");
            }
            password.print_if_made();
        }
        UserCommand::List { place } => {
            let (database, _) = open(&place, environment)?;
            let listed = database.read(|transaction| {
                let (users, _) = users::page(transaction, "", usize::MAX)?;
                let with_roles = |user: User| Ok((users::own_roles(transaction, &user.id)?, user));
                users.into_iter().map(with_roles).collect::<crate::storage::Result<Vec<_>>>()
            });
            for (roles, user) in listed.await? {
                let state = if user.active { "active" } else { "inactive" };
                println!("{}\t{}\t{state}\t{}", user.id, user.username, roles.join(","));
            }
        }
    }
    Ok(())
}

/// A hash that another system made: argon2 in its PHC form, or bcrypt.
fn hash_from_stdin() -> anyhow::Result<String> {
    let hash = read_stdin()?;
    if !password_hash::is_hash(&hash) {
        bail!("standard input: expected a hash of {}", password_hash::hash_kinds());
    }
    Ok(hash)
}

fn read_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn open(place: &DatabasePlace, environment: &BTreeMap<String, String>) -> anyhow::Result<(Database, Config)> {
    let mut config = config::load(place.config.as_deref(), environment)?;
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
    fn new(from_stdin: bool, config: &Config, name: &str) -> anyhow::Result<Self> {
        if !from_stdin {
            return Ok(Self { text: random_token()?, made: true });
        }
        let text = read_stdin()?;
        // Whoever can write the database may choose a password that is easy to guess, but not a short one.
        let rules = config.accounts.rules(Profile::Development);
        let violations = password_rules::violations(rules.password, &text, &[name]);
        if let Some(violation) = violations.first() {
            bail!("a password is {}", violation.detail);
        }
        Ok(Self { text, made: false })
    }

    fn print_if_made(&self) {
        if self.made {
            println!("{}", self.text);
        }
    }
}
