//! Real Redis: one server, a master with a Sentinel, a Cluster; each on ports and in a directory of its own.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;

use tempfile::TempDir;
use tokio::process::Command;

use crate::program::Program;
use crate::{eventually, free_port};

/// The server: redis-server, or what `REDIS_SERVER` names, such as valkey-server.
fn server() -> OsString {
    std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
}

/// Valkey's server, which `VALKEY_SERVER` names; CI requires it.
pub fn valkey() -> Option<OsString> {
    let named = std::env::var_os("VALKEY_SERVER");
    assert!(named.is_some() || std::env::var_os("CI").is_none(), "CI requires VALKEY_SERVER");
    named
}

/// A real redis-server, or another that speaks like it.
pub struct Redis {
    /// The process.
    pub program: Program,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it writes on its own account, as when it is replicated.
    _dir: TempDir,
}

impl Redis {
    /// Starts an empty one.
    pub async fn start() -> Self {
        Self::start_at(free_port()).await
    }

    /// Starts an empty one at a port that was used before.
    pub async fn start_at(port: u16) -> Self {
        Self::start_with(port, &["--port", &port.to_string(), "--save", "", "--appendonly", "no"]).await
    }

    /// Starts an empty one of another make, with more environment than usual.
    pub async fn start_in(server: &OsStr, environment: &[(&str, &str)]) -> Self {
        let (port, mut server) = (free_port(), Command::new(server));
        server.envs(environment.iter().copied());
        Self::run(server, port, &["--port", &port.to_string(), "--save", "", "--appendonly", "no"]).await
    }

    /// Starts one with arguments of its own; it listens at `port`.
    pub async fn start_with(port: u16, arguments: &[&str]) -> Self {
        Self::start_server(&server(), port, arguments).await
    }

    /// Starts an empty one of another make.
    pub async fn start_as(server: &OsStr) -> Self {
        let port = free_port();
        Self::start_server(server, port, &["--port", &port.to_string(), "--save", ""]).await
    }

    async fn start_server(server: &OsStr, port: u16, arguments: &[&str]) -> Self {
        Self::run(Command::new(server), port, arguments).await
    }

    async fn run(mut server: Command, port: u16, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        server.args(arguments).args(["--bind", "127.0.0.1", "--daemonize", "no", "--dir"]).arg(dir.path());
        let program = Program::start("redis-server", server);
        let ready =
            |line: &String| line.contains("Ready to accept connections") || line.contains("Sentinel ID is");
        eventually("redis-server is ready", || async { program.log().iter().any(ready) }).await;
        Self { program, address: SocketAddr::from(([127, 0, 0, 1], port)), _dir: dir }
    }

    /// `redis://…`
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// What redis-cli prints for a command.
    pub async fn cli(&self, arguments: &[&str]) -> String {
        cli(self.address.port(), arguments).await
    }

    /// Kills it and waits for its end.
    pub async fn kill(mut self) -> u16 {
        self.program.signal("KILL");
        self.program.ended().await;
        self.address.port()
    }
}

/// A replica of the server at `port`, started with further arguments.
pub async fn replica_of(master: &Redis, more: &[&str]) -> Redis {
    let (port, of) = (free_port().to_string(), master.address.port().to_string());
    let mut arguments =
        vec!["--port", &port, "--replicaof", "127.0.0.1", &of, "--save", "", "--appendonly", "no"];
    arguments.extend(more);
    Redis::start_with(port.parse().unwrap(), &arguments).await
}

async fn cli(port: u16, arguments: &[&str]) -> String {
    let output =
        Command::new("redis-cli").args(["-p", &port.to_string()]).args(arguments).output().await.unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A master, its replica, and a Sentinel that fails over within seconds.
pub struct Sentinel {
    /// The master at the start.
    pub master: Redis,
    /// Its replica.
    pub replica: Redis,
    watcher: Redis,
    _dir: TempDir,
}

impl Sentinel {
    /// Starts all three and waits until the Sentinel knows the replica.
    pub async fn start() -> Self {
        let master = Redis::start().await;
        let replica = replica_of(&master, &[]).await;
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let file = dir.path().join("sentinel.conf");
        let config = format!(
            "port {port}\ndir {}\nsentinel monitor main 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n",
            dir.path().display(),
            master.address.port(),
        );
        std::fs::write(&file, config).unwrap();
        let watcher = Redis::start_with(port, &[file.to_str().unwrap(), "--sentinel"]).await;
        eventually("the sentinel knows the replica", || async {
            watcher.cli(&["sentinel", "replicas", "main"]).await.contains("slave-priority")
        })
        .await;
        eventually("the replica follows the master", || async {
            replica.cli(&["info", "replication"]).await.contains("master_link_status:up")
        })
        .await;
        Self { master, replica, watcher, _dir: dir }
    }

    /// The Sentinel's address, which is all that a gateway is given.
    pub fn url(&self) -> String {
        self.watcher.url()
    }
}

/// Three masters that share the slots.
pub struct Cluster {
    /// The nodes.
    pub nodes: Vec<Redis>,
    _dir: TempDir,
}

impl Cluster {
    /// Starts three nodes and joins them.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut nodes = Vec::new();
        for number in 0..3 {
            let (port, bus) = (free_port(), free_port());
            let file = dir.path().join(format!("nodes-{number}.conf"));
            let arguments = [
                "--port",
                &port.to_string(),
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &bus.to_string(),
                "--cluster-config-file",
                file.to_str().unwrap(),
                "--cluster-node-timeout",
                "2000",
                "--save",
                "",
            ]
            .map(str::to_owned);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            nodes.push(Redis::start_with(port, &arguments).await);
        }
        let addresses: Vec<String> = nodes.iter().map(|node| node.address.to_string()).collect();
        let mut create = vec!["--cluster", "create"];
        create.extend(addresses.iter().map(String::as_str));
        create.push("--cluster-yes");
        cli(nodes[0].address.port(), &create).await;
        for node in &nodes {
            eventually("the cluster is joined", || async {
                node.cli(&["cluster", "info"]).await.contains("cluster_state:ok")
            })
            .await;
        }
        Self { nodes, _dir: dir }
    }

    /// Moves `slots` slots from the first node to the second, while clients continue.
    pub async fn reshard(&self, slots: u32) {
        let [from, to] =
            [0, 1].map(|node: usize| async move { self.nodes[node].cli(&["cluster", "myid"]).await });
        let (from, to) = (from.await, to.await);
        let arguments = [
            "--cluster",
            "reshard",
            &self.nodes[0].address.to_string(),
            "--cluster-from",
            from.trim(),
            "--cluster-to",
            to.trim(),
            "--cluster-slots",
            &slots.to_string(),
            "--cluster-yes",
        ]
        .map(str::to_owned);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.nodes[0].cli(&arguments).await;
    }
}
