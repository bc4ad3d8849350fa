//! `gateway check` and `gateway explain`: what a policy decides, without a running gateway.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use policy::Policy;
use policy::document::Fault;
use policy::policy_test::RequestLine;
use policy::testing::check::judge;
use policy::testing::simulation::{SIGNATURE, Simulation};
use policy::values::stage::{Finding, Stage};
use serde_json::json;

use crate::clock;
use crate::config::cli::Explain;
use crate::live_policy::files::{LARGEST, lines, read_deny_files};

/// Validates policies and runs their own tests. Every fault of every file is printed.
pub fn check(policies: &[PathBuf]) -> anyhow::Result<()> {
    let mut refused = 0;
    for file in policies {
        let name = file.display().to_string();
        let text = read(file)?;
        let parsed = parse(file, &name, &text);
        for renamed in parsed.as_ref().map(|policy| policy.renamed.as_slice()).unwrap_or_default() {
            eprintln!("{name}: warning: {renamed}");
        }
        for neighbour in parsed.as_ref().map(Policy::weaker_neighbours).unwrap_or_default() {
            eprintln!("{name}: warning: {neighbour}");
        }
        match parsed.and_then(|policy| policy.run_tests(&name, &text)) {
            Ok(tests) => println!("{name}: ok, {tests} tests passed"),
            Err(faults) => {
                eprintln!("{}", lines(&faults));
                refused += 1;
            }
        }
    }
    if refused > 0 {
        bail!("{refused} of {} refused", policies.len());
    }
    Ok(())
}

fn parse(file: &Path, name: &str, text: &str) -> Result<Policy, Vec<Fault>> {
    let mut policy = Policy::parse(name, text, None)?;
    read_deny_files(file, &mut policy)?;
    Ok(policy)
}

/// A policy may come through a pipe here: `gateway check <(helm template …)`.
fn read(file: &Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot read `{}`", file.display());
    let mut text = String::new();
    let opened = std::fs::File::open(file).with_context(cannot)?;
    opened.take(LARGEST + 1).read_to_string(&mut text).with_context(cannot)?;
    anyhow::ensure!(text.len() as u64 <= LARGEST, "{}: it has more than {LARGEST} bytes", cannot());
    Ok(text)
}

/// Prints each stage in order and what it decides.
pub fn explain(arguments: &Explain) -> anyhow::Result<()> {
    let name = arguments.policy.display().to_string();
    let text = read(&arguments.policy)?;
    let policy = parse(&arguments.policy, &name, &text);
    let policy = policy.map_err(|faults| anyhow::anyhow!("refused\n{}", lines(&faults)))?;
    let line: RequestLine =
        arguments.request.parse().map_err(|allowed| anyhow::anyhow!("the request is {allowed}"))?;
    let mut headers = Vec::new();
    for field in &arguments.headers {
        let (name, value) =
            field.split_once(':').with_context(|| format!("a header is `name: value` (got {field:?})"))?;
        headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    if let Some(token) = &arguments.token {
        let signed = token.rsplit_once('.').map_or(token.as_str(), |(signed, _)| signed);
        headers.push(("authorization".to_owned(), format!("Bearer {signed}.{SIGNATURE}")));
    }
    let world = Simulation::at(clock::wall());
    let (verdict, progress) = judge(&policy, &line, arguments.ip, &headers, &world);
    let stages = Stage::JUDGED.map(|stage| {
        let finding = match progress.trail.finding(stage) {
            Some(Finding::Passed) => "passed",
            Some(Finding::Refused) => "refused",
            None => "not reached",
        };
        (stage, finding)
    });
    if arguments.json {
        let stages: Vec<_> = stages
            .iter()
            .map(|(stage, finding)| json!({"stage": stage.step(), "finding": finding}))
            .collect();
        let verdict = match &verdict {
            Ok(admission) => json!({
                "admitted": true,
                "route": &*admission.route.name,
                "upstream": &*admission.route.upstream,
                "user": admission.subject.id(),
            }),
            Err(refusal) => json!({
                "admitted": false,
                "status": refusal.status(),
                "code": refusal.code.as_str(),
                "stage": refusal.stage.as_str(),
                "rule": refusal.rule,
                "reason": refusal.reason,
                "detail": refusal.detail,
            }),
        };
        println!("{}", serde_json::to_string_pretty(&json!({"stages": stages, "verdict": verdict}))?);
        return Ok(());
    }
    for (stage, finding) in stages {
        println!("{:<13} {:<12} {}", stage.step(), finding, stage.what());
    }
    match verdict {
        Ok(admission) => {
            println!(
                "admitted by route `{}` to upstream `{}`",
                admission.route.name, admission.route.upstream
            );
            if let Some(needed) = &admission.route.access.permission {
                println!("(permission {} was granted)", needed.permission);
            }
        }
        Err(refusal) => println!("{} {}: {}", refusal.status(), refusal.code.as_str(), refusal.detail),
    }
    Ok(())
}
