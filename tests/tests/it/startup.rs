//! Bad input to every program: one clear line, an exit code that is not 0, no backtrace.

use std::process::Output;

use tests::program::{Program, command};
use tests::stack::{Backend, Gateway, POLICY, root};

async fn run(name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = command(name);
    command.args(arguments).envs(environment.iter().copied()).current_dir(root());
    tokio::time::timeout(tests::PATIENCE, command.output()).await.expect("it ends by itself").unwrap()
}

/// The program ends with an error that holds `wanted`.
async fn refuses(name: &str, arguments: &[&str], environment: &[(&str, &str)], wanted: &str) {
    let output = run(name, arguments, environment).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{arguments:?}");
    assert!(errors.contains(wanted), "{arguments:?}: {errors:?} does not say {wanted:?}");
    assert!(!errors.contains("panicked") && !errors.contains("backtrace"), "{errors}");
    assert_eq!(errors.lines().count(), 1, "one line: {errors}");
}

const RUN: [&str; 3] = ["run", "--profile", "testing"];
const SERVE: [&str; 3] = ["serve", "--profile", "testing"];

#[tokio::test]
async fn a_missing_file_is_named() {
    refuses("gateway", &["run", "--config", "no.toml"], &[], "cannot read `no.toml`").await;
    refuses("gateway", &["run", "--policy", "no.toml"], &[], "cannot read `no.toml`").await;
    refuses("backend-sqlite", &["serve", "--config", "no.toml"], &[], "cannot read `no.toml`").await;
}

#[tokio::test]
async fn an_unknown_key_names_the_nearest() {
    let over = [("PALISADE_GATEWAY__SERVER__LISTN", "x")];
    refuses("gateway", &RUN, &over, "did you mean `listen`?").await;
    let over = [("PALISADE_BACKEND__DATABASE__PAHT", "x")];
    refuses("backend-sqlite", &SERVE, &over, "did you mean `path`?").await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let state = tempfile::tempdir().unwrap();
    let state = state.path().to_str().unwrap();
    let over =
        [("PALISADE_GATEWAY__SERVER__LISTEN", address.as_str()), ("PALISADE_GATEWAY__STATE__DIR", state)];
    let wanted = format!("server.listen: cannot listen on `{address}`: Address already in use");
    refuses_at_last("gateway", &RUN, &over, &wanted).await;
    let database = format!("{state}/p.db");
    let over = [
        ("PALISADE_BACKEND__SERVER__LISTEN", address.as_str()),
        ("PALISADE_BACKEND__DATABASE__PATH", &database),
    ];
    refuses_at_last("backend-sqlite", &SERVE, &over, &wanted).await;
}

/// As [`refuses`], where the log has begun already: the last line counts.
async fn refuses_at_last(name: &str, arguments: &[&str], environment: &[(&str, &str)], wanted: &str) {
    let output = run(name, arguments, environment).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains(wanted), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
}

#[tokio::test]
async fn a_database_directory_that_cannot_be_made_is_named() {
    // A file where the directory should be: refused for everybody, root too.
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = format!("{}/p.db", file.path().display());
    let over = [("PALISADE_BACKEND__DATABASE__PATH", path.as_str())];
    refuses("backend-sqlite", &SERVE, &over, "database.path: cannot make the directory").await;
}

#[tokio::test]
async fn production_needs_its_secrets_and_they_must_be_long() {
    let nowhere = ("PALISADE_BACKEND__SECRETS__DIR", "/nonexistent");
    refuses(
        "backend-sqlite",
        &["serve", "--profile", "production"],
        &[nowhere],
        "JWT_SECRET (or JWT_KEY) is missing",
    )
    .await;
    let short = ("JWT_SECRET", "too short");
    refuses(
        "backend-sqlite",
        &SERVE,
        &[nowhere, short],
        "JWT_SECRET in the environment: at least 32 characters (got 9)",
    )
    .await;
    let nowhere = ("PALISADE_GATEWAY__SECRETS__DIR", "/nonexistent");
    refuses("gateway", &["run", "--profile", "production"], &[nowhere], "GATEWAY_TOKEN is missing").await;
}

#[tokio::test]
async fn check_prints_every_fault_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    std::fs::write(&file, "version = 1\n[limits.a]\nkey = \"ipp\"\nrate = \"1/s\"\n[[routes]]\nname = \"a\"\npath = \"a\"\nupstream = \"b\"\n").unwrap();
    let name = file.to_str().unwrap();
    let output = run("gateway", &["check", name], &[]).await;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        errors.contains(&format!(
            "{name}:3:7: limits.a.key: ip, user, api_key, route, global, header:NAME or field:NAME (got \"ipp\")"
        )),
        "{errors}"
    );
    assert!(errors.contains(&format!("{name}:7:8: routes[0].path: a path begins with `/`")), "{errors}");
    let output = run("gateway", &["check", "config/policy.toml"], &[]).await;
    assert!(output.status.success());
}

#[tokio::test]
async fn explain_says_what_each_stage_decides() {
    let arguments =
        ["explain", "--policy", "config/policy.toml", "GET /v1/collections/notes/records/a", "--json"];
    let output = run("gateway", &arguments, &[]).await;
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (said["verdict"]["code"].as_str(), said["verdict"]["stage"].as_str()),
        (Some("token_missing"), Some("authenticate"))
    );
    let stages: Vec<_> =
        said["stages"].as_array().unwrap().iter().map(|stage| stage["stage"].as_str().unwrap()).collect();
    assert_eq!(
        stages,
        [
            "identify",
            "block",
            "route",
            "limit",
            "limit",
            "authenticate",
            "limit",
            "authorize",
            "length",
            "concurrency",
            "break"
        ]
    );
}

#[tokio::test]
async fn every_shipped_configuration_starts() {
    let stack = tests::stack::Stack::start().await;
    let state = tempfile::tempdir().unwrap();
    let mut run = command("gateway");
    run.args(["run", "--profile", "testing", "--config", "config/gateway.toml"]).current_dir(root());
    run.env("PALISADE_GATEWAY__SERVER__LISTEN", "127.0.0.1:0")
        .env("PALISADE_GATEWAY__ADMIN__LISTEN", "127.0.0.1:0");
    run.env("PALISADE_GATEWAY__STATE__DIR", state.path());
    run.env("PALISADE_GATEWAY__UPSTREAMS__BACKEND__ADDRESSES", stack.backend.address.to_string());
    let program = tests::program::Program::start("gateway", run);
    let address = program.field_of("data plane", "listen").await.parse().unwrap();
    assert_eq!(tests::client::Client::of(address).get("/.well-known/jwks.json", None).await.status(), 200);
}

#[tokio::test]
async fn the_first_line_says_what_is_off_and_which_secrets_were_found_where() {
    let backend =
        Backend::start(&[("PALISADE_BACKEND__TELEMETRY__OTLP_ENDPOINT", "http://127.0.0.1:9")]).await;
    let token = "an-admin-token-that-is-long-enough";
    let gateway = Gateway::start_beside(&[("ADMIN_TOKEN", token)], backend.address, POLICY, &[]).await;
    let first = |program: &Program| {
        program.events().into_iter().find(|event| event["message"] == "starting").unwrap()
    };
    let (gateway_says, backend_says) = (first(&gateway.program), first(&backend.program));
    let found = gateway_says["secrets_found"].as_str().unwrap();
    assert!(
        found.starts_with("ADMIN_TOKEN in `/") && found.contains("GATEWAY_TOKEN in the environment"),
        "{found}"
    );
    let off = gateway_says["not_set"].as_str().unwrap();
    assert!(
        off.contains("redis.url") && off.contains("METRICS_TOKEN") && !off.contains("log.access"),
        "{off}"
    );
    assert_eq!(backend_says["secrets_found"], "GATEWAY_TOKEN in the environment");
    let off = backend_says["not_set"].as_str().unwrap();
    assert!(off.contains("mail.url") && !off.contains("telemetry"), "{off}");
    assert!(!gateway_says.to_string().contains(token));
}
