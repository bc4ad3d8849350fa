//! Connects to Redis: one server, the master that Sentinels name, or a Cluster. The node at an address says which of
//! them it is, so an operator names any node and nothing else.
//!
//! `redis://[USER:PASSWORD@]HOST:PORT[,HOST:PORT]...[/DB][?master=NAME]`, `rediss://` for TLS.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, Pipeline, RedisFuture, TlsCertificates,
    Value,
};
use tokio::time::timeout;

use crate::config::redis_address::RedisAddress;

/// The timeout for connecting. No request waits for it.
const CONNECT: Duration = Duration::from_secs(1);

/// The timeout for finding out what one address is, and for connecting to the server that it leads to.
const ONE_NODE: Duration = Duration::from_secs(3);

/// A connection; cheap to clone.
#[derive(Clone)]
pub enum RedisConnection {
    /// To one server.
    One(MultiplexedConnection),
    /// To a Cluster.
    Cluster(ClusterConnection),
}

/// A connection, and the node for subscriptions.
pub struct Connected {
    /// For commands.
    pub connection: RedisConnection,
    /// For subscriptions.
    pub node: Client,
}

impl RedisAddress {
    fn client(&self, node: ConnectionInfo) -> redis::RedisResult<Client> {
        match &self.certificate_authority {
            None => Client::open(node),
            Some(authority) => {
                let certificates = TlsCertificates { client_tls: None, root_cert: Some(authority.clone()) };
                Client::build_with_tls(node, certificates)
            }
        }
    }

    /// Connects to the first node that leads to a server that takes writes: a master, one that a Sentinel names, or a Cluster.
    pub async fn connect(&self) -> anyhow::Result<Connected> {
        let mut faults = Vec::new();
        for node in &self.nodes {
            // Each node has its own timeout, so that dead nodes do not use up the time of the others.
            match timeout(ONE_NODE, self.connect_through(node)).await {
                Ok(Ok(linked)) => return Ok(linked),
                Ok(Err(error)) => faults.push(format!("{}: {error:#}", node.addr())),
                Err(_) => faults.push(format!("{}: no answer", node.addr())),
            }
        }
        bail!("{}", faults.join("; "))
    }

    async fn connect_through(&self, node: &ConnectionInfo) -> anyhow::Result<Connected> {
        let client = self.client(node.clone())?;
        match open(&client).await {
            Ok(mut connection) => match mode(&mut connection).await?.as_str() {
                "cluster" => self.connect_cluster(client).await,
                "sentinel" => self.connect_master(node, &mut connection).await,
                _ => {
                    require_master(&mut connection).await?;
                    Ok(Connected { connection: RedisConnection::One(connection), node: client })
                }
            },
            Err(error) => self.connect_through_open_sentinel(node, error).await,
        }
    }

    /// Sentinels often have no password where their master has one. A server without a password is not the one that the
    /// settings mean: the result is `refusal` then, and also for every reason other than the password.
    async fn connect_through_open_sentinel(
        &self,
        node: &ConnectionInfo,
        refusal: redis::RedisError,
    ) -> anyhow::Result<Connected> {
        if refusal.kind() != ErrorKind::AuthenticationFailed || node.redis_settings().password().is_none() {
            return Err(refusal.into());
        }
        let client = self.client(node.clone().set_redis_settings(redis::RedisConnectionInfo::default()))?;
        let Ok(mut connection) = open(&client).await else { return Err(refusal.into()) };
        match mode(&mut connection).await.as_deref() {
            Ok("sentinel") => self.connect_master(node, &mut connection).await,
            _ => {
                Err(refusal).context("the user or the password is refused (REDIS_PASSWORD, or in redis.url)")
            }
        }
    }

    async fn connect_cluster(&self, node: Client) -> anyhow::Result<Connected> {
        let mut cluster: ClusterClientBuilder = ClusterClient::builder(self.nodes.clone())
            .connection_timeout(CONNECT)
            .response_timeout(CONNECT)
            .retries(2);
        if let Some(authority) = &self.certificate_authority {
            let root_cert = Some(authority.clone());
            cluster = cluster.certs(TlsCertificates { client_tls: None, root_cert });
        }
        let connection = cluster.build()?.get_async_connection().await?;
        Ok(Connected { connection: RedisConnection::Cluster(connection), node })
    }

    async fn connect_master(
        &self,
        node: &ConnectionInfo,
        sentinel: &mut MultiplexedConnection,
    ) -> anyhow::Result<Connected> {
        let masters: Vec<HashMap<String, String>> =
            redis::cmd("SENTINEL").arg("MASTERS").query_async(sentinel).await?;
        let wanted = |master: &&HashMap<String, String>| {
            self.master.as_ref().is_none_or(|name| master.get("name") == Some(name))
        };
        let found: Vec<_> = masters.iter().filter(wanted).collect();
        let [master] = found.as_slice() else {
            let names: Vec<_> = masters.iter().filter_map(|master| master.get("name")).collect();
            bail!("the Sentinels watch {names:?}: say which with ?master=NAME");
        };
        let (host, port) = (master.get("ip").context("no ip")?, master.get("port").context("no port")?);
        let address = match node.addr() {
            redis::ConnectionAddr::TcpTls { insecure, tls_params, .. } => redis::ConnectionAddr::TcpTls {
                host: host.clone(),
                port: port.parse()?,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => redis::ConnectionAddr::Tcp(host.clone(), port.parse()?),
        };
        let client = self.client(node.clone().set_addr(address))?;
        let mut connection = open(&client).await.context("the master that the Sentinel names")?;
        require_master(&mut connection).await.context("the master that the Sentinel names")?;
        Ok(Connected { connection: RedisConnection::One(connection), node: client })
    }
}

/// Refuses a server that takes no writes.
async fn require_master(connection: &mut MultiplexedConnection) -> anyhow::Result<()> {
    let role: Vec<Value> = redis::cmd("ROLE").query_async(connection).await?;
    let text = |at: usize| match role.get(at) {
        Some(Value::BulkString(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        Some(Value::Int(number)) => number.to_string(),
        _ => String::new(),
    };
    match text(0).as_str() {
        "master" => Ok(()),
        "slave" => bail!("it is a replica of {}:{}: name its master in redis.url as well", text(1), text(2)),
        other => bail!("it is no server that takes writes ({other:?})"),
    }
}

async fn open(client: &Client) -> redis::RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(CONNECT));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// `standalone`, `sentinel` or `cluster`. Valkey has another name for the same line.
async fn mode(connection: &mut MultiplexedConnection) -> redis::RedisResult<String> {
    let about: String = redis::cmd("INFO").arg("server").query_async(connection).await?;
    let names = ["redis_mode:", "server_mode:"];
    let mode = about.lines().find_map(|line| names.iter().find_map(|name| line.strip_prefix(name)));
    Ok(mode.unwrap_or("standalone").trim().to_owned())
}

impl ConnectionLike for RedisConnection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}
