//! A service of the user's own, which is asked nothing that its clients did not ask.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tests::client::Client;
use tests::eventually;
use tests::policy_text::PolicyText;
use tests::program::{Program, built, command};
use tests::stack::{Gateway, root};
use tests::upstream::RawUpstream;
use tokio::process::Command;

const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

const PASS: &str = "version = 1\n[[routes]]\nname = \"all\"\npath = \"/{*rest}\"\nupstream = \"backend\"\n";

/// The block of README's section *In front of your own service* in `language`.
fn block(language: &str) -> String {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let section = readme.split_once("## In front of your own service").unwrap().1;
    let block = section.split_once(&format!("```{language}\n")).unwrap().1;
    block.split_once("```").unwrap().0.to_owned()
}

/// Looks for some seconds, longer than whatever is done now and then takes to come round.
async fn for_a_while(mut look: impl FnMut()) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        look();
        tokio::time::sleep(Duration::from_millis(50)).await; // a look
    }
}

/// The lines of the section as a program in `dir`, which ends with its standard input.
fn section(dir: &Path, gateway: u16, service: u16) -> Program {
    let lines = block("sh");
    assert!(lines.lines().count() <= 5, "{lines}");
    let lines = lines.replace("target/debug/gateway", built("gateway").to_str().unwrap());
    let lines = lines.replace(":8080", &format!(":{gateway}")).replace("3000", &service.to_string());
    let mut shell = Command::new("bash");
    shell.args(["-c", &format!("{lines}\necho; echo it is done; read -t 60; kill $(jobs -p); wait")]);
    shell.current_dir(dir).stdin(Stdio::piped());
    shell.env("PALISADE_GATEWAY__SERVER__LISTEN", format!("127.0.0.1:{gateway}"));
    shell.env("PALISADE_GATEWAY__ADMIN__LISTEN", "127.0.0.1:0");
    Program::start_with_input("README", shell)
}

#[tokio::test]
async fn the_lines_of_the_readme_work_and_the_service_s_log_shows_its_clients_requests_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("hello.toml"), block("toml")).unwrap();
    let (gateway, service) = (tests::free_port(), tests::free_port());
    let program = section(dir.path(), gateway, service);
    eventually("the lines are through", || async { program.log().iter().any(|line| line == "it is done") })
        .await;
    let log = program.log();
    assert!(log.iter().any(|line| line.trim_end() == "200 200 200 200 429"), "{log:#?}");
    assert!(log.iter().any(|line| line == "hello"), "the page: {log:#?}");
    for field in ["x-frame-options: ", "ratelimit: \"each\"", "x-request-id: "] {
        assert!(log.iter().any(|line| line.to_ascii_lowercase().starts_with(field)), "{field}: {log:#?}");
    }
    let requests = || {
        let log = program.log();
        let lines = log.iter().filter(|line| line.contains(" - - ["));
        lines.map(|line| line.split_once("] ").unwrap().1.to_owned()).collect::<Vec<_>>()
    };
    for_a_while(|| assert_eq!(requests(), vec!["\"GET /page.html HTTP/1.1\" 200 -"; 6])).await;
}

#[tokio::test]
async fn a_service_receives_its_clients_requests_and_nothing_else() {
    let service = RawUpstream::start(vec![(Duration::ZERO, GOOD)], false).await;
    // Two addresses are balanced; the name is that of the upstream which is asked about permissions where somebody is.
    let both = format!("{},localhost:{}", service.address, service.address.port());
    let places = [("PALISADE_GATEWAY__UPSTREAMS__BACKEND__ADDRESSES", both.as_str())];
    let gateway = Gateway::start(service.address, PASS, &places).await;
    assert_eq!(gateway.client().get("/internal/changes", None).await.status(), 200, "the path is its own");
    for_a_while(|| assert_eq!(service.received().len(), 1, "{:?}", service.received())).await;
    let received = service.received().join("").to_ascii_lowercase();
    assert!(!received.contains("x-palisade"), "{received}");
}

#[tokio::test]
async fn production_needs_the_secret_of_the_permission_service_only_where_there_is_one() {
    let service = RawUpstream::start(vec![(Duration::ZERO, GOOD)], false).await;
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.toml");
    std::fs::write(&policy, PASS).unwrap();
    let mut run = command("gateway");
    run.args(["run", "--profile", "production", "--policy"]).arg(&policy);
    run.env("PALISADE_GATEWAY__SERVER__LISTEN", "127.0.0.1:0")
        .env("PALISADE_GATEWAY__ADMIN__LISTEN", "127.0.0.1:0");
    run.env("PALISADE_GATEWAY__UPSTREAMS__BACKEND__ADDRESSES", service.address.to_string());
    run.env("PALISADE_GATEWAY__STATE__DIR", dir.path().join("state"));
    run.env("PALISADE_GATEWAY__SECRETS__DIR", "/nonexistent");
    let program = Program::start("gateway", run);
    let client = Client::of(program.field_of("data plane", "listen").await.parse().unwrap());
    let operator = Client::of(program.field_of("admin plane", "listen").await.parse().unwrap());
    let operator = operator.of_host("localhost");
    assert_eq!(client.get("/a", None).await.status(), 200);
    // A policy that begins to ask could not be served: it is refused, and says why.
    std::fs::write(dir.path().join("new.toml"), format!("{PASS}[permissions]\n")).unwrap();
    std::fs::rename(dir.path().join("new.toml"), &policy).unwrap();
    eventually("the policy is refused", || async {
        let state = operator.get("/admin/policy", None).await.json();
        state["last_refusal"].to_string().contains("GATEWAY_TOKEN was missing")
    })
    .await;
    assert_eq!(client.get("/a", None).await.status(), 200);
}

#[tokio::test]
async fn a_feed_that_is_not_there_is_said_once_and_asked_for_ever_more_seldom() {
    let nothing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let service = RawUpstream::start(vec![(Duration::ZERO, nothing)], false).await;
    let policy = PolicyText::of(PASS).set("routes.all.auth", vec!["api_key"]) + "[permissions]\n";
    let gateway = Gateway::start(service.address, &policy, &[]).await;
    let asked = || service.received().iter().filter(|one| one.starts_with("GET /internal/changes")).count();
    for_a_while(|| assert!(asked() <= 8, "{}", asked())).await;
    assert!(asked() >= 3, "{}", asked());
    let events = gateway.program.events();
    let said = events.iter().filter(|line| line["message"].to_string().contains("change feed"));
    assert_eq!(said.count(), 1, "{events:#?}");
}
