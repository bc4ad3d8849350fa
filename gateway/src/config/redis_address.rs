//! Where Redis is, as `redis.url` says it: one server, the master that Sentinels name, or a Cluster.
//!
//! `redis://[USER:PASSWORD@]HOST:PORT[,HOST:PORT]...[/DB][?master=NAME]`, `rediss://` for TLS.

use anyhow::{Context as _, anyhow, bail};
use redis::{ConnectionInfo, IntoConnectionInfo as _};

use crate::config::secrets::REDIS_PASSWORD;

/// The most nodes of an address.
const MOST_NODES: usize = 64;

/// Where Redis is, as the settings say.
#[derive(Clone)]
pub struct RedisAddress {
    pub(crate) nodes: Vec<ConnectionInfo>,
    /// The Sentinels' name for the master, when they watch several.
    pub(crate) master: Option<String>,
    pub(crate) certificate_authority: Option<Vec<u8>>,
}

impl RedisAddress {
    /// Reads an address. `password` replaces the password in the address; `certificate_authority` is PEM.
    pub fn parse(
        url: &str,
        password: Option<&str>,
        certificate_authority: Option<Vec<u8>>,
    ) -> anyhow::Result<Self> {
        let allowed = "redis://[USER:PASSWORD@]HOST:PORT[,HOST:PORT]...[/DB][?master=NAME], or rediss://";
        let (scheme, rest) = url.split_once("://").context(allowed)?;
        if url.contains('#') || !matches!(scheme, "redis" | "rediss") {
            bail!(allowed);
        }
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let (credentials, rest) =
            rest.rsplit_once('@').map_or((String::new(), rest), |(user, rest)| (format!("{user}@"), rest));
        let (hosts, database) =
            rest.split_once('/').map_or((rest, String::new()), |(hosts, db)| (hosts, format!("/{db}")));
        let master = match query.map(|query| query.split_once('=')) {
            None => None,
            Some(Some(("master", name))) if !name.is_empty() => Some(name.to_owned()),
            Some(_) => bail!(allowed),
        };
        if hosts.split(',').count() > MOST_NODES {
            bail!("at most {MOST_NODES} nodes");
        }
        let nodes = hosts.split(',').map(|host| {
            // The fault does not quote the address, because a password may be in it.
            let info = format!("{scheme}://{credentials}{host}{database}").into_connection_info();
            let info = info.map_err(|_| anyhow!(allowed))?;
            Ok(match password {
                Some(password) => {
                    let settings = info.redis_settings().clone().set_password(password);
                    info.set_redis_settings(settings)
                }
                None => info,
            })
        });
        Ok(Self { nodes: nodes.collect::<anyhow::Result<_>>()?, master, certificate_authority })
    }

    /// Refuses a user without a password, because the client would then log in without either.
    pub fn check_credentials(&self) -> anyhow::Result<()> {
        let lacks = |node: &ConnectionInfo| {
            node.redis_settings().username().is_some() && node.redis_settings().password().is_none()
        };
        if self.nodes.iter().any(lacks) {
            bail!("it names a user, and there is no {REDIS_PASSWORD}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> anyhow::Result<RedisAddress> {
        RedisAddress::parse(url, Some("from a secret"), None)
    }

    #[test]
    fn an_address_names_nodes_and_perhaps_a_master() {
        let places = parse("redis://user@10.0.0.1:26379,10.0.0.2:26379/2?master=main").unwrap();
        assert_eq!(places.nodes.len(), 2);
        assert_eq!(places.master.as_deref(), Some("main"));
        let settings = places.nodes[1].redis_settings();
        assert_eq!((settings.username(), settings.password()), (Some("user"), Some("from a secret")));
        assert_eq!(settings.db(), 2);
    }

    #[test]
    fn what_is_no_address_is_refused_without_repeating_it() {
        for bad in ["127.0.0.1:6379", "http://u:hidden@h:1", "redis://u:hidden@h:x", "redis://h:1?name=x"] {
            let error = parse(bad).err().map(|error| format!("{error:#}")).unwrap_or_default();
            assert!(error.contains("HOST:PORT") && !error.contains("hidden"), "{bad}: {error}");
        }
    }
}
