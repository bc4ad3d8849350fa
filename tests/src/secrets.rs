//! Every secret that a test uses, and that no program may write down: tokens, passwords, cookies, keys. What a program
//! wrote is searched for all of them when it ends.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Mutex;

use crate::stack::{GATEWAY_TOKEN, PASSWORD};

/// What is shorter is found by chance.
const SHORTEST: usize = 16;

static KNOWN: Mutex<Option<HashSet<String>>> = Mutex::new(None);

/// Notes a secret that a test uses.
pub fn note(secret: &str) {
    if secret.len() >= SHORTEST {
        let mut known = KNOWN.lock().unwrap();
        known
            .get_or_insert_with(|| HashSet::from([GATEWAY_TOKEN, PASSWORD].map(str::to_owned)))
            .insert(secret.to_owned());
    }
}

/// Notes what a header field holds, where that is a secret.
pub fn note_field(name: &str, value: &str) {
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        "authorization" => note(value.rsplit(' ').next().unwrap_or_default()),
        "cookie" => {
            value.split(';').filter_map(|pair| pair.split_once('=')).for_each(|(_, value)| note(value));
        }
        "x-api-key" => note(value),
        _ => {}
    }
}

/// Notes the secrets in a program's environment.
pub fn note_environment(command: &Command) {
    for (name, value) in command.get_envs() {
        let name = name.to_string_lossy();
        if ["_TOKEN", "_SECRET", "_PASSWORD", "_KEY"].iter().any(|end| name.ends_with(end))
            && !name.contains("__")
        {
            note(&value.unwrap_or_default().to_string_lossy());
        }
    }
}

/// The secrets that lines hold, with the line.
pub fn shown_in(lines: &[String]) -> Vec<(String, String)> {
    let known = KNOWN.lock().unwrap().clone().unwrap_or_default();
    let text = lines.join("\n");
    let shown = known.into_iter().filter(|secret| text.contains(secret.as_str()));
    let line = |secret: &str| lines.iter().find(|line| line.contains(secret)).cloned().unwrap_or_default();
    shown.map(|secret| (line(&secret), secret)).map(|(line, secret)| (secret, line)).collect()
}
