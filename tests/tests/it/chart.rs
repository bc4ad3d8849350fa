//! The chart, read by the tool that reads it.

use std::process::Command;

use gateway::config::settings::{Profile, Settings};
use tests::program::built;
use tests::stack::{root, tool};

fn helm(helm: &std::path::Path, arguments: &[&str]) -> String {
    let output = Command::new(helm).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The policy in the rendered `ConfigMap`.
fn rendered_policy(manifests: &str) -> String {
    let begin = manifests.find("policy.toml: |").expect("a ConfigMap with the policy");
    let lines =
        manifests[begin..].lines().skip(1).take_while(|line| line.starts_with("    ") || line.is_empty());
    lines.map(|line| line.strip_prefix("    ").unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_chart_lints_and_renders_in_both_modes_and_its_policy_is_good() {
    let Some(path) = tool("helm") else { return eprintln!("helm is not on PATH: not tried") };
    for mode in ["sidecar", "standalone"] {
        let set = format!("mode={mode}");
        helm(&path, &["lint", "--strict", "charts/palisade", "--set", &set]);
        let manifests = helm(&path, &["template", "test", "charts/palisade", "--set", &set]);
        for wanted in ["runAsNonRoot: true", "readOnlyRootFilesystem: true", "/health/ready", "secretName"] {
            assert!(manifests.contains(wanted), "{mode}: {wanted}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.toml");
        std::fs::write(&file, rendered_policy(&manifests)).unwrap();
        let checked = Command::new(built("gateway")).arg("check").arg(&file).output().unwrap();
        assert!(checked.status.success(), "{mode}: {}", String::from_utf8_lossy(&checked.stderr));
    }
}

/// The keys of the Secret that a volume holds, in the rendered manifests.
fn keys_of(manifests: &str, volume: &str) -> Vec<String> {
    let Some(begin) = manifests.find(&format!("- name: {volume}\n")) else { return Vec::new() };
    let lines = manifests[begin..].lines().skip(1);
    let own = lines.take_while(|line| !line.trim_start().starts_with("- name:") && *line != "---");
    own.filter_map(|line| line.split_once("key: \"")?.1.split('"').next().map(str::to_owned)).collect()
}

#[test]
fn each_container_mounts_its_own_secrets_alone() {
    let Some(path) = tool("helm") else { return eprintln!("helm is not on PATH: not tried") };
    for mode in ["sidecar", "standalone"] {
        let set = format!("mode={mode},gateway.secretKeys={{PARTNER_SECRET}}");
        let manifests = helm(&path, &["template", "test", "charts/palisade", "--set", &set]);
        let (gateway, backend) =
            (keys_of(&manifests, "gateway-secrets"), keys_of(&manifests, "backend-secrets"));
        let has = |keys: &[String], key: &str| keys.iter().any(|one| one == key);
        assert!(has(&gateway, "ADMIN_TOKEN") && has(&gateway, "PARTNER_SECRET"), "{mode}: {gateway:?}");
        assert!(!has(&gateway, "JWT_KEY") && !has(&gateway, "SMTP_PASSWORD"), "{mode}: {gateway:?}");
        assert!(has(&backend, "JWT_KEY") && !has(&backend, "ADMIN_TOKEN"), "{mode}: {backend:?}");
    }
}

#[test]
fn the_chart_refuses_values_that_it_does_not_know() {
    let Some(path) = tool("helm") else { return eprintln!("helm is not on PATH: not tried") };
    for bad in ["mode=other", "gateway.replicass=2", "gateway.replicas=many"] {
        let arguments = ["template", "test", "charts/palisade", "--set", bad];
        let output = Command::new(&path).args(arguments).current_dir(root()).output().unwrap();
        assert!(!output.status.success(), "{bad}");
    }
}

/// Values of the chart, the setting that each becomes, and what is tried for it.
const SAME: [(&str, &str, &[&str]); 4] = [
    (
        "redis.url",
        "REDIS__URL",
        &[
            "",
            "redis://redis:6379",
            "rediss://redis:6379",
            "rediss://gate@a:1,b:2/0?master=main",
            "http://redis:6379",
            "redis:6379",
        ],
    ),
    (
        "telemetry.otlpEndpoint",
        "TELEMETRY__OTLP_ENDPOINT",
        &[
            "",
            "http://collector:4317",
            "http://[::1]:4318/prefix",
            "https://collector:4317",
            "collector:4317",
        ],
    ),
    ("telemetry.protocol", "TELEMETRY__PROTOCOL", &["grpc", "http", "HTTP", ""]),
    ("telemetry.sampleRatio", "TELEMETRY__SAMPLE_RATIO", &["0", "0.5", "1", "-0.1", "1.1"]),
];

#[test]
fn the_chart_takes_what_the_program_takes_and_nothing_else() {
    let Some(path) = tool("helm") else { return eprintln!("helm is not on PATH: not tried") };
    for (key, setting, values) in SAME {
        for value in values {
            let json = if key.ends_with("Ratio") { (*value).to_owned() } else { format!("{value:?}") };
            let set = format!("{key}={json}");
            let arguments = ["template", "test", "charts/palisade", "--set-json", &set];
            let output = Command::new(&path).args(arguments).current_dir(root()).output().unwrap();
            let environment = [(format!("PALISADE_GATEWAY__{setting}"), (*value).to_owned())].into();
            let settings = Settings::load(None, &environment, Profile::Testing);
            assert_eq!(output.status.success(), settings.is_ok(), "{set}: {:?}", settings.err());
        }
    }
}

/// Helm reads no file outside of the chart, so the chart has a copy.
#[test]
fn the_chart_ships_the_policy_of_the_project() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    assert_eq!(read("charts/palisade/files/policy.toml"), read("config/policy.toml"));
}
