//! The product, started for one test: a backend, one or more gateways, a Redis where it is asked for.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use crate::client::Client;
use crate::program::{Program, command, command_with_a_disk};

/// What the two programs know of each other.
pub const GATEWAY_TOKEN: &str = "a gateway token for tests, long enough";

/// The password of every account that a test makes.
pub const PASSWORD: &str = "correct horse battery";

/// A policy with `jwks` in place of `{jwks}`.
pub const POLICY: &str = include_str!("policy.toml");

/// A backend with a database of its own.
pub struct Backend {
    /// The process.
    pub program: Program,
    /// Where it listens.
    pub address: SocketAddr,
    dir: TempDir,
}

impl Backend {
    /// Starts a backend, with more environment than usual if need be.
    pub async fn start(environment: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // A port of its own, which is still free when it is started again.
        Self::start_in(dir, &format!("127.0.0.1:{}", crate::free_port()), environment).await
    }

    async fn start_in(dir: TempDir, listen: &str, environment: &[(&str, &str)]) -> Self {
        let mut serve = command_with_a_disk("backend-sqlite");
        serve.arg("serve");
        serve.env("PALISADE_PROFILE", "testing");
        serve.env("PALISADE_BACKEND__SERVER__LISTEN", listen);
        serve.env("PALISADE_BACKEND__DATABASE__PATH", dir.path().join("palisade.db"));
        serve.env("PALISADE_BACKEND__SECRETS__DIR", dir.path());
        serve.env("GATEWAY_TOKEN", GATEWAY_TOKEN);
        serve.envs(environment.iter().copied());
        let program = Program::start("backend", serve);
        let address = program.field_of("serving", "listen").await.parse().unwrap();
        Self { program, address, dir }
    }

    /// Kills it and starts it again on the same database and port.
    pub async fn restart(self) -> Self {
        let Self { mut program, address, dir } = self;
        program.signal("KILL");
        program.ended().await;
        Self::start_in(dir, &address.to_string(), &[]).await
    }

    /// Stops it as an operator does, and starts it again on the same database and port.
    pub async fn stop_and_start(self, environment: &[(&str, &str)]) -> Self {
        self.program.signal("TERM");
        self.start_once_ended(environment).await
    }

    /// Starts it again on the same database and port, once it has ended in peace.
    pub async fn start_once_ended(self, environment: &[(&str, &str)]) -> Self {
        let Self { mut program, address, dir } = self;
        assert!(program.ended().await.success());
        Self::start_in(dir, &address.to_string(), environment).await
    }

    /// The value of a metric, labels and all; zero when it is not there.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = Client::of(self.address).of_host("localhost").get("/metrics", None).await.body;
        value_in(&text, name)
    }

    /// Stops it as an operator does. Returns what it said, and the directory of its database.
    pub async fn stop(self) -> (Vec<String>, TempDir) {
        let Self { mut program, dir, .. } = self;
        program.signal("TERM");
        assert!(program.ended().await.success());
        (program.log(), dir)
    }

    /// The database file.
    pub fn database(&self) -> PathBuf {
        self.dir.path().join("palisade.db")
    }

    /// Adds an account from the command line and returns its id.
    pub async fn add_user(&self, name: &str, roles: &[&str]) -> String {
        let roles: Vec<&str> = roles.iter().flat_map(|role| ["--role", role]).collect();
        self.add(name, "--password-stdin", PASSWORD, &roles).await
    }

    /// Adds an account with a hash from another system.
    pub async fn add_user_with_hash(&self, name: &str, hash: &str) -> String {
        self.add(name, "--hash-stdin", hash, &[]).await
    }

    async fn add(&self, name: &str, what: &str, secret: &str, more: &[&str]) -> String {
        let mut add = command("backend-sqlite");
        add.args(["user", "add", name, what, "--database"]).arg(self.database()).args(more);
        add.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = add.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stdin, secret.as_bytes()).await.unwrap();
        drop(stdin);
        let output = child.wait_with_output().await.unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

/// A gateway with a policy file of its own.
pub struct Gateway {
    /// The process.
    pub program: Program,
    /// The data plane.
    pub address: SocketAddr,
    /// The admin plane.
    pub admin: SocketAddr,
    upstream: SocketAddr,
    dir: TempDir,
}

impl Gateway {
    /// Starts a gateway before `upstream` that judges by `policy`.
    pub async fn start(upstream: SocketAddr, policy: &str, environment: &[(&str, &str)]) -> Self {
        Self::start_beside(&[], upstream, policy, environment).await
    }

    /// Starts a gateway whose policy has `files` beside it, each a name and a text.
    pub async fn start_beside(
        files: &[(&str, &str)],
        upstream: SocketAddr,
        policy: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        std::fs::write(dir.path().join("policy.toml"), policy_for(policy, upstream)).unwrap();
        Self::start_in(dir, upstream, environment).await
    }

    async fn start_in(dir: TempDir, upstream: SocketAddr, environment: &[(&str, &str)]) -> Self {
        let mut run = command_with_a_disk("gateway");
        run.args(["run", "--policy"]).arg(dir.path().join("policy.toml"));
        run.env("PALISADE_PROFILE", "testing");
        run.env("PALISADE_GATEWAY__SERVER__LISTEN", "127.0.0.1:0");
        run.env("PALISADE_GATEWAY__ADMIN__LISTEN", "127.0.0.1:0");
        run.env("PALISADE_GATEWAY__UPSTREAMS__BACKEND__ADDRESSES", upstream.to_string());
        run.env("PALISADE_GATEWAY__STATE__DIR", dir.path().join("state"));
        run.env("PALISADE_GATEWAY__SECRETS__DIR", dir.path());
        run.env("GATEWAY_TOKEN", GATEWAY_TOKEN);
        run.envs(environment.iter().copied());
        let program = Program::start("gateway", run);
        let address = program.field_of("data plane", "listen").await.parse().unwrap();
        let admin = program.field_of("admin plane", "listen").await.parse().unwrap();
        Self { program, address, admin, upstream, dir }
    }

    /// Kills it and starts it again with the same policy file and state, on other ports.
    pub async fn restart(self, environment: &[(&str, &str)]) -> Self {
        let Self { mut program, upstream, dir, .. } = self;
        program.signal("KILL");
        program.ended().await;
        Self::start_in(dir, upstream, environment).await
    }

    /// A client at 127.0.0.1.
    pub fn client(&self) -> Client {
        Client::of(self.address)
    }

    /// A client of the admin plane.
    pub fn operator(&self) -> Client {
        Client::of(self.admin).of_host("localhost")
    }

    /// The file `name` of the state directory.
    pub fn state_file(&self, name: &str) -> PathBuf {
        self.dir.path().join("state").join(name)
    }

    /// The policy file.
    pub fn policy_file(&self) -> PathBuf {
        self.dir.path().join("policy.toml")
    }

    /// Replaces the policy file as an editor does: written beside and renamed. An edit that changes nothing fails.
    pub fn edit_policy(&self, edit: impl FnOnce(String) -> String) {
        let before = std::fs::read_to_string(self.policy_file()).unwrap();
        let text = edit(before.clone());
        assert_ne!(text, before, "the edit changes nothing");
        let beside = self.dir.path().join("policy.toml.new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, self.policy_file()).unwrap();
    }

    /// The digest of the policy in force.
    pub async fn policy_in_force(&self) -> String {
        self.operator().get("/admin/policy", None).await.json()["sha256"].as_str().unwrap().to_owned()
    }

    /// Waits until it follows the backend's feed of changes.
    pub async fn follows_the_feed(&self) {
        crate::eventually("it follows the feed", || async {
            self.metric("palisade_permission_feed_lag_seconds").await >= 0.0
        })
        .await;
    }

    /// Does `work`, and by how many KiB the gateway has grown at most meanwhile.
    pub async fn grows_by<T>(&self, work: impl Future<Output = T>) -> (T, u64) {
        let before = self.memory();
        let (mut most, mut work) = (before, std::pin::pin!(work));
        let mut look = tokio::time::interval(std::time::Duration::from_millis(20));
        loop {
            tokio::select! {
                done = &mut work => return (done, most.max(self.memory()).saturating_sub(before)),
                _ = look.tick() => most = most.max(self.memory()),
            }
        }
    }

    /// What it holds in memory, in KiB.
    pub fn memory(&self) -> u64 {
        self.program.memory()
    }

    /// The value of a metric, labels and all; zero when it is not there.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.operator().get("/metrics", None).await.body;
        value_in(&text, name)
    }
}

fn value_in(metrics: &[u8], name: &str) -> f64 {
    let text = std::str::from_utf8(metrics).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

/// A policy for a gateway before `upstream`.
pub fn policy_for(policy: &str, upstream: SocketAddr) -> String {
    policy.replace("{jwks}", &format!("http://{upstream}/.well-known/jwks.json"))
}

/// A backend with one gateway before it.
pub struct Stack {
    /// The backend.
    pub backend: Backend,
    /// The gateway.
    pub gateway: Gateway,
}

impl Stack {
    /// Starts both with the tests' policy.
    pub async fn start() -> Self {
        Self::with(POLICY, &[]).await
    }

    /// Starts both, with a policy and more environment for the gateway.
    pub async fn with(policy: &str, environment: &[(&str, &str)]) -> Self {
        let backend = Backend::start(&[]).await;
        let gateway = Gateway::start(backend.address, policy, environment).await;
        Self { backend, gateway }
    }

    /// Adds an account and logs it in.
    pub async fn user(&self, name: &str, roles: &[&str]) -> User {
        let id = self.backend.add_user(name, roles).await;
        User { id, token: self.login(name).await }
    }

    /// An access token.
    pub async fn login(&self, name: &str) -> String {
        let body = json!({"username": name, "password": PASSWORD});
        let answer =
            self.gateway.client().at([127, 9, 9, 9]).json("POST", "/v1/auth/login", None, &body).await;
        assert_eq!(answer.status(), 200, "{:?}", answer.body);
        answer.json()["access_token"].as_str().unwrap().to_owned()
    }
}

/// An account with a token.
pub struct User {
    /// Its id.
    pub id: String,
    /// Its access token.
    pub token: String,
}

/// A program from `PATH`, or from where `get-tools` puts those that Debian does not package.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    assert!(
        found.is_some() || std::env::var_os("CI").is_none(),
        "`{name}` is not on PATH, and CI requires it"
    );
    found
}

/// The project's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}
