//! What an operator does on one of three gateways holds on all.

use tests::redis::Redis;
use tests::three::{Three, limited, use_up};
use tests::{eventually, free_port};

#[tokio::test]
async fn an_operator_refills_a_bucket_on_all() {
    let redis = Redis::start().await;
    let three = Three::on(&redis.url(), &[]).await;
    let keys = "/.well-known/jwks.json";
    let status = async |gateway: usize| {
        three.gateways[gateway].client().at([127, 0, 0, 8]).get(keys, None).await.status()
    };
    for gateway in 0..3 {
        assert_eq!(status(gateway).await, 200);
    }
    for gateway in 0..3 {
        assert_eq!(status(gateway).await, 429);
    }
    let refill = three.gateways[0].operator().ask("DELETE", "/admin/limits/each/127.0.0.8", &[], "").await;
    assert_eq!(refill.status(), 204);
    for gateway in [1, 2, 0] {
        eventually("it is full again", || async { status(gateway).await == 200 }).await;
    }
    let listed = three.gateways[0].operator().get("/admin/limits", None).await.json();
    let each = listed["items"].as_array().unwrap().iter().find(|item| item["name"] == "each").unwrap();
    assert_eq!(each["busiest"][0]["key"], "127.0.0.8");
    let top = three.gateways[0].operator().get("/admin/top?by=ip&window=60s", None).await.json();
    assert_eq!(top["items"][0]["key"], "127.0.0.8");
}

#[tokio::test]
async fn overrides_are_judged_and_hold_on_all_and_over_a_restart_of_redis() {
    let redis = Redis::start().await;
    let three = Three::on(&redis.url(), &[]).await;
    let patch = async |body: &'static str| {
        three.gateways[0].operator().ask("PATCH", "/admin/overrides", &[], body).await
    };
    let bad = patch("{\"limits\":{\"each\":{\"rate\":\"5/minute\",\"brust\":1}}}").await;
    assert_eq!(bad.status(), 422);
    let faults = bad.json()["faults"].to_string();
    assert!(faults.contains("limits.each.rate") && faults.contains("did you mean `burst`"), "{faults}");
    let answer = patch("{\"limits.each.rate\":\"5/min\",\"blocks.deny\":[\"127.8.0.0/16\"]}").await;
    assert_eq!((answer.status(), answer.json()["items"].as_array().map(Vec::len)), (200, Some(2)));
    for gateway in &three.gateways {
        let denied = gateway.client().at([127, 8, 0, 1]);
        eventually("the override holds", || async { denied.get("/health", None).await.status() == 403 })
            .await;
        let limited = gateway.client().at([127, 0, 0, 9]).get("/.well-known/jwks.json", None).await;
        assert_eq!(limited.field("ratelimit-policy"), "\"each\";q=5;w=60");
    }
    let port = redis.kill().await;
    let _redis = Redis::start_at(port).await;
    three.all_on_redis().await;
    let removed = three.gateways[1].operator().ask("DELETE", "/admin/overrides/blocks.deny", &[], "").await;
    assert_eq!(removed.status(), 200);
    for gateway in &three.gateways {
        let denied = gateway.client().at([127, 8, 0, 1]);
        eventually("it is gone", || async { denied.get("/health", None).await.status() == 200 }).await;
        let left = gateway.operator().get("/admin/overrides", None).await.json();
        assert_eq!(left["items"][0]["path"], "limits.each.rate", "{left}");
    }
}

#[tokio::test]
async fn redis_may_want_tls_and_a_user_with_few_rights() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (key, certificate) = (file("key.pem"), file("certificate.pem"));
    let mut openssl = tokio::process::Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    openssl.args(["-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.args(["-keyout", &key, "-out", &certificate]);
    assert!(openssl.output().await.unwrap().status.success());
    let rights =
        "~palisade:* &palisade:* +@hash +@scripting +@pubsub +@connection +del +pexpire +info +role +time";
    let user = format!("user gate on >s3cret {rights}\nuser default off\n");
    let config = format!(
        "port 0\ntls-port {port}\ntls-cert-file {certificate}\ntls-key-file {key}\ntls-auth-clients no\nsave \"\"\n{user}"
    );
    std::fs::write(file("redis.conf"), config).unwrap();
    let _redis = Redis::start_with(port, &[&file("redis.conf")]).await;
    let environment = [
        ("PALISADE_GATEWAY__REDIS__CERTIFICATE_AUTHORITY", certificate.as_str()),
        ("REDIS_PASSWORD", "s3cret"),
    ];
    let three = Three::on(&format!("rediss://gate@127.0.0.1:{port}"), &environment).await;
    use_up(&three, [127, 0, 0, 41]).await;
    assert!(limited(&three, [127, 0, 0, 41]).await);
    for gateway in &three.gateways {
        assert!(!gateway.program.log().iter().any(|line| line.contains("s3cret")));
    }
}
