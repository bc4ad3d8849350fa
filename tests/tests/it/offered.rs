//! Every value of every setting that is one of a few words is switched on by a test. What is offered is asked of the
//! programs themselves; [`SWITCHED_ON`] says by which test.

use std::collections::{BTreeMap, BTreeSet};

use tests::program::command;

use crate::switched_on::LEVELS;

/// A setting, its values, and the test that switches all of them on.
type Row = (&'static str, &'static [&'static str], &'static str);

/// Settings by program, and those of a policy.
const SWITCHED_ON: &[Row] = &[
    (
        "backend database.synchronous",
        &["full", "normal"],
        "switched_on::an_acknowledged_write_outlives_a_kill_however_the_disk_is_written",
    ),
    (
        "backend log.format",
        &["json", "text"],
        "switched_on::each_level_and_format_of_the_log_shows_what_it_should",
    ),
    ("backend log.level", LEVELS, "switched_on::each_level_and_format_of_the_log_shows_what_it_should"),
    (
        "backend mail.url",
        &["none", "opportunistic", "required", "smtps"],
        "switched_on::mail_goes_out_by_each_kind_of_address",
    ),
    (
        "backend telemetry.protocol",
        &["grpc"],
        "trace::one_trace_goes_from_the_gateway_down_to_the_sql_statement",
    ),
    ("backend telemetry.protocol", &["http"], "trace::the_same_trace_goes_over_http"),
    ("gateway log.access", &["stdout"], "main_job::the_access_log_has_what_happened_and_no_secret"),
    ("gateway log.access", &["off"], "switched_on::a_log_that_is_off_writes_nothing"),
    ("gateway log.access", &["file"], "logs::lines_come_back_after_a_full_disk"),
    ("gateway log.audit", &["stdout", "file"], "logs::lines_come_back_after_a_full_disk"),
    ("gateway log.audit", &["off"], "switched_on::a_log_that_is_off_writes_nothing"),
    (
        "gateway log.format",
        &["json", "text"],
        "switched_on::each_level_and_format_of_the_log_shows_what_it_should",
    ),
    ("gateway log.level", LEVELS, "switched_on::each_level_and_format_of_the_log_shows_what_it_should"),
    (
        "gateway telemetry.protocol",
        &["grpc"],
        "trace::one_trace_goes_from_the_gateway_down_to_the_sql_statement",
    ),
    ("gateway telemetry.protocol", &["http"], "trace::the_same_trace_goes_over_http"),
    (
        "gateway upstreams.backend.protocol",
        &["auto", "http1", "http2"],
        "switched_on::an_upstream_is_spoken_to_in_the_protocol_that_is_set",
    ),
    (
        "policy headers.mode",
        &["fill", "replace"],
        "response_headers::a_field_of_the_policy_replaces_or_removes_or_only_fills_in",
    ),
    (
        "policy jwt.algorithms",
        &["EdDSA", "ES256", "HS256", "RS256"],
        "switched_on::a_token_of_each_algorithm_is_verified",
    ),
    ("policy limits.counts", &["failures", "requests"], "switched_on::each_limit_counts_what_its_rule_says"),
    ("policy limits.key", &["api_key"], "api_keys::a_limit_counts_each_api_key_by_itself"),
    (
        "policy limits.key",
        &["field:NAME", "global", "header:NAME", "ip", "route", "user"],
        "switched_on::each_limit_counts_what_its_rule_says",
    ),
    ("policy limits.mode", &["enforce", "shadow"], "switched_on::each_limit_counts_what_its_rule_says"),
    (
        "policy limits.on_store_failure",
        &["allow", "deny", "local"],
        "switched_on::a_shared_limit_without_redis_does_what_it_says",
    ),
    (
        "policy limits.scope",
        &["local", "shared"],
        "switched_on::a_shared_limit_without_redis_does_what_it_says",
    ),
    (
        "policy permissions.on_failure",
        &["deny"],
        "permissions::a_permission_answer_counts_no_longer_than_max_staleness_without_the_feed",
    ),
    (
        "policy permissions.on_failure",
        &["stale"],
        "degraded::a_client_gets_its_own_last_good_answer_while_the_breaker_is_open",
    ),
    (
        "policy requests.encoded_slash",
        &["keep", "refuse"],
        "switched_on::an_encoded_slash_is_refused_or_kept",
    ),
    (
        "policy retries.backoff",
        &["exponential", "fixed", "linear"],
        "switched_on::pauses_between_tries_grow_as_the_policy_says",
    ),
    (
        "policy routes.priority",
        &["high", "low", "normal"],
        "degraded::an_upstream_is_sent_no_more_than_it_can_take_and_what_matters_least_is_shed",
    ),
    (
        "policy routes.when_open",
        &["fail"],
        "main_job::a_dead_backend_is_502_and_then_503_while_the_breaker_is_open",
    ),
    (
        "policy routes.when_open",
        &["stale"],
        "degraded::a_client_gets_its_own_last_good_answer_while_the_breaker_is_open",
    ),
    (
        "profile",
        &["development"],
        "own_service::the_lines_of_the_readme_work_and_the_service_s_log_shows_its_clients_requests_alone",
    ),
    ("profile", &["testing"], "main_job::a_record_is_written_and_read_back_with_its_etag"),
    (
        "profile",
        &["production"],
        "identity::a_password_is_strong_and_an_administrator_has_a_second_factor_in_production",
    ),
];

/// What a program says of a settings file.
async fn said_of(program: &str, settings: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), settings).unwrap();
    let mut run = command(program);
    run.arg(if program == "gateway" { "run" } else { "serve" }).arg("--config").arg(file.path());
    // Judged after the file: so nothing is ever started.
    run.env("PALISADE_GATEWAY__SERVER__THREADS", "none").env("PALISADE_BACKEND__DATABASE__POOL_SIZE", "none");
    let said = String::from_utf8(run.output().await.unwrap().stderr).unwrap();
    let place = format!("{}: {}:", program, file.path().display());
    said.lines().find_map(|line| line.strip_prefix(&place)).unwrap_or_default().to_owned()
}

fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Finds the settings of a program that are one of a few words, by asking it what it would have taken.
async fn settings_of(program: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    let mut tables = vec![String::new()];
    tables.extend((program == "gateway").then(|| "upstreams.backend".to_owned()));
    while let Some(table) = tables.pop() {
        let header = if table.is_empty() { String::new() } else { format!("[{table}]\n") };
        let said = said_of(program, &format!("{header}no-such-key = 1\n")).await;
        let Some((_, keys)) = said.split_once("expected ") else { panic!("{program} [{table}]: {said}") };
        let keys = keys.split(": did you mean").next().unwrap();
        for key in quoted(keys).iter().filter(|key| *key != "upstreams") {
            let path = if table.is_empty() { key.clone() } else { format!("{table}.{key}") };
            if said_of(program, &format!("[{path}]\nno-such-key = 1\n"))
                .await
                .contains("unknown field `no-such-key`")
            {
                tables.push(path);
                continue;
            }
            let said = said_of(program, &format!("{header}{key} = \"?\"\n")).await;
            if let Some((_, words)) = said.split_once("unknown variant `?`, expected ") {
                found.insert(format!("{program} {path}"), quoted(words).into_iter().collect());
            } else if let Some((_, words)) =
                said.split_once("error, ").filter(|_| said.ends_with("(got \"?\")"))
            {
                let words = words.trim_end_matches(" (got \"?\")").replace(" or ", ", ");
                let words = words.split(", ").chain(["error"]).map(str::to_owned);
                found.insert(format!("{program} {path}"), words.collect());
            }
        }
    }
    found
}

#[tokio::test]
async fn every_value_that_is_offered_is_switched_on_by_a_test() {
    let mut offered = settings_of("gateway").await;
    assert!(offered.len() >= 4, "{offered:?}");
    for (path, words) in settings_of("backend-sqlite").await {
        offered.insert(path.replace("backend-sqlite ", "backend "), words);
    }
    for (path, words) in policy::offered::OFFERED {
        offered.insert(format!("policy {path}"), words.iter().map(|word| (*word).to_owned()).collect());
    }
    let help =
        String::from_utf8(command("gateway").args(["run", "--help"]).output().await.unwrap().stdout).unwrap();
    let profiles = help.split("Possible values:").nth(1).expect("the profiles in the help");
    let words = profiles.lines().filter_map(|line| line.trim().strip_prefix("- ")?.split(':').next());
    offered.insert("profile".to_owned(), words.map(str::to_owned).collect());
    // These are a word, or something else: their faults say so.
    for log in ["gateway log.access", "gateway log.audit"] {
        offered.insert(log.to_owned(), ["stdout", "off", "file"].map(str::to_owned).into());
    }
    let tls = ["none", "opportunistic", "required", "smtps"];
    offered.insert("backend mail.url".to_owned(), tls.map(str::to_owned).into());

    let mut switched_on: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (setting, words, _) in SWITCHED_ON {
        switched_on
            .entry((*setting).to_owned())
            .or_default()
            .extend(words.iter().map(|word| (*word).to_owned()));
    }
    assert_eq!(offered, switched_on);
    let listed = std::process::Command::new(std::env::current_exe().unwrap()).arg("--list").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for (setting, words, test) in SWITCHED_ON {
        println!("{setting} = {}: {test}", words.join(" | "));
        assert!(listed.contains(&format!("{test}: test")), "{setting}: there is no test {test}");
    }
}
