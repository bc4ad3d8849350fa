//! One trace from the gateway down to the SQL statement, in a real Jaeger, asked through its query API.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};
use tests::client::Client;
use tests::policy_text::PolicyText;
use tests::program::Program;
use tests::redis::Redis;
use tests::stack::{Backend, Gateway, POLICY, Stack, tool};
use tests::{eventually, free_port};
use tokio::process::Command;

struct Jaeger {
    _program: Program,
    otlp: SocketAddr,
    query: Client,
}

/// A Jaeger that takes OTLP over `protocol`: `grpc` or `http`.
async fn jaeger(path: &std::path::Path, protocol: &str) -> Jaeger {
    let (otlp, query, grpc, health, metrics) =
        (free_port(), free_port(), free_port(), free_port(), free_port());
    let config = format!(
        r"
service:
  extensions: [jaeger_storage, jaeger_query, healthcheckv2]
  pipelines:
    traces: {{receivers: [otlp], processors: [], exporters: [jaeger_storage_exporter]}}
  telemetry:
    metrics:
      readers: [{{pull: {{exporter: {{prometheus: {{host: 127.0.0.1, port: {metrics}}}}}}}}}]
extensions:
  healthcheckv2: {{use_v2: true, http: {{endpoint: '127.0.0.1:{health}'}}}}
  jaeger_query:
    storage: {{traces: memory}}
    http: {{endpoint: '127.0.0.1:{query}'}}
    grpc: {{endpoint: '127.0.0.1:{grpc}'}}
  jaeger_storage: {{backends: {{memory: {{memory: {{max_traces: 1000}}}}}}}}
receivers:
  otlp: {{protocols: {{{protocol}: {{endpoint: '127.0.0.1:{otlp}'}}}}}}
exporters:
  jaeger_storage_exporter: {{trace_storage: memory}}
"
    );
    let file = std::env::temp_dir().join(format!("palisade-jaeger-{otlp}.yaml"));
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(path);
    command.arg("--config").arg(&file);
    let program = Program::start("jaeger", command);
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    eventually("jaeger listens", || async {
        let up = |port| async move { tokio::net::TcpStream::connect(at(port)).await.is_ok() };
        up(otlp).await && up(query).await
    })
    .await;
    Jaeger { _program: program, otlp: at(otlp), query: Client::of(at(query)) }
}

fn tag<'s>(span: &'s Value, key: &str) -> Option<&'s Value> {
    span["tags"].as_array()?.iter().find(|tag| tag["key"] == key).map(|tag| &tag["value"])
}

#[tokio::test]
async fn one_trace_goes_from_the_gateway_down_to_the_sql_statement() {
    one_trace_over("grpc").await;
}

#[tokio::test]
async fn the_same_trace_goes_over_http() {
    one_trace_over("http").await;
}

/// Both programs with traces of what brings a `traceparent`, and of nothing else.
async fn traced(protocol: &str, endpoint: &str, redis: &Redis) -> Stack {
    let backend = Backend::start(&[
        ("PALISADE_BACKEND__TELEMETRY__OTLP_ENDPOINT", endpoint),
        ("PALISADE_BACKEND__TELEMETRY__PROTOCOL", protocol),
        ("PALISADE_BACKEND__TELEMETRY__SAMPLE_RATIO", "0.0"),
    ])
    .await;
    let policy = PolicyText::usual().set("routes.read-record.limits", vec!["shared"]);
    let gateway = Gateway::start(
        backend.address,
        &policy,
        &[
            ("PALISADE_GATEWAY__TELEMETRY__OTLP_ENDPOINT", endpoint),
            ("PALISADE_GATEWAY__TELEMETRY__PROTOCOL", protocol),
            ("PALISADE_GATEWAY__TELEMETRY__SAMPLE_RATIO", "0.0"),
            ("PALISADE_GATEWAY__REDIS__URL", &redis.url()),
        ],
    )
    .await;
    eventually("redis is there", || async { gateway.metric("palisade_redis_up").await > 0.5 }).await;
    Stack { backend, gateway }
}

async fn one_trace_over(protocol: &str) {
    let Some(path) = tool("jaeger") else { return eprintln!("jaeger is not on PATH: not tried") };
    let (jaeger, redis) = (jaeger(&path, protocol).await, Redis::start().await);
    let stack = traced(protocol, &format!("http://{}", jaeger.otlp), &redis).await;
    let admin = stack.user("root", &["admin"]).await.token;
    let client = stack.gateway.client();
    client.json("PUT", "/v1/collections/notes", Some(&admin), &json!({})).await;
    client.json("PUT", "/v1/collections/notes/records/a", Some(&admin), &json!(1)).await;
    // A token that the gateway has not seen yet: one that it has is not verified again.
    let admin = stack.login("root").await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");
    let fields = [("authorization", format!("Bearer {admin}")), ("traceparent", traceparent)];
    let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(client.ask("GET", "/v1/collections/notes/records/a", &fields, "").await.status(), 200);

    let read = || async {
        let answer = jaeger.query.get(&format!("/api/traces/{trace}"), None).await;
        if answer.status() == 200 { answer.json()["data"][0].clone() } else { Value::Null }
    };
    let has = |trace: &Value, name: &str| {
        trace["spans"].as_array().is_some_and(|spans| spans.iter().any(|span| span["operationName"] == name))
    };
    eventually("both programs have sent their spans", || async {
        let trace = read().await;
        has(&trace, "RECORD") && has(&trace, "GET read-record")
    })
    .await;
    let trace = read().await;
    let spans = trace["spans"].as_array().unwrap();
    let find = |name: &str| {
        spans.iter().find(|span| span["operationName"] == name).unwrap_or_else(|| panic!("no span {name}"))
    };
    let parent = |span: &Value| span["references"][0]["spanID"].as_str().unwrap_or_default().to_owned();
    let id = |span: &Value| span["spanID"].as_str().unwrap().to_owned();
    let request = find("GET read-record");
    assert_eq!(parent(request), "00f067aa0ba902b7", "the client's span");
    assert_eq!(tag(request, "http.response.status_code"), Some(&json!(200)));
    for name in ["authenticate", "authorize", "EVALSHA take"] {
        assert_eq!(parent(find(name)), id(request), "{name}");
    }
    let question = find("POST /internal/permissions");
    assert_eq!(parent(question), id(find("authorize")));
    assert_eq!(parent(find("DECIDING_GRANT")), id(question));
    let served = find("GET /v1/collections/{collection}/records/{*key}");
    assert_eq!(parent(served), id(request));
    let statement = find("RECORD");
    assert_eq!(parent(statement), id(served));
    assert!(tag(statement, "db.query.text").unwrap().as_str().unwrap().starts_with("SELECT value"));
    let process =
        |span: &Value| trace["processes"][span["processID"].as_str().unwrap()]["serviceName"].clone();
    assert_eq!(
        (process(request), process(statement)),
        (json!("palisade-gateway"), json!("palisade-backend"))
    );
    assert!(!trace.to_string().contains(&admin), "no token is in a trace");
}

fn said(program: &Program) -> usize {
    program.log().iter().filter(|line| line.contains("traces cannot be exported")).count()
}

#[tokio::test]
async fn a_collector_that_is_unavailable_or_speaks_another_protocol_is_logged_once_and_counted() {
    let lost = "palisade_spans_exported_total{result=\"lost\"}";
    let other = Backend::start(&[]).await; // it speaks HTTP/1.1, and knows no traces
    for (endpoint, protocol) in [
        (format!("127.0.0.1:{}", free_port()), "grpc"),
        (format!("127.0.0.1:{}", free_port()), "http"),
        (other.address.to_string(), "grpc"),
        (other.address.to_string(), "http"),
    ] {
        let endpoint = format!("http://{endpoint}");
        let backend = Backend::start(&[
            ("PALISADE_BACKEND__TELEMETRY__OTLP_ENDPOINT", &endpoint),
            ("PALISADE_BACKEND__TELEMETRY__PROTOCOL", protocol),
            ("PALISADE_BACKEND__TELEMETRY__SAMPLE_RATIO", "1.0"),
        ])
        .await;
        let gateway = Gateway::start(
            backend.address,
            POLICY,
            &[
                ("PALISADE_GATEWAY__TELEMETRY__OTLP_ENDPOINT", &endpoint),
                ("PALISADE_GATEWAY__TELEMETRY__PROTOCOL", protocol),
                ("PALISADE_GATEWAY__TELEMETRY__SAMPLE_RATIO", "1.0"),
            ],
        )
        .await;
        let what = format!("{protocol} to {endpoint}");
        for more in [1.0, 2.0] {
            let before = (gateway.metric(lost).await, backend.metric(lost).await);
            assert_eq!(gateway.client().get("/.well-known/jwks.json", None).await.status(), 200, "{what}");
            eventually(&format!("{what}: spans are lost for the {more}. time"), || async {
                gateway.metric(lost).await > before.0 && backend.metric(lost).await > before.1
            })
            .await;
        }
        assert_eq!((said(&gateway.program), said(&backend.program)), (1, 1), "{what}");
        let noise =
            |program: &Program| program.log().iter().any(|line| line.contains("\"target\":\"opentelemetry"));
        assert!(!noise(&gateway.program) && !noise(&backend.program), "{what}");
    }
}
