//! What settings cannot mean, and what is said about it.

use std::path::Path;

use anyhow::bail;

/// Names of Rust in the messages of its libraries, and what people call that.
const PLAIN: [(&str, &str); 11] = [
    ("expected usize", "expected a whole number from 0"),
    ("expected u16", "expected a whole number from 0 to 65535"),
    ("expected u32", "expected a whole number from 0 to 4294967295"),
    ("expected u64", "expected a whole number from 0"),
    ("expected f64", "expected a number"),
    ("expected a boolean", "expected true or false"),
    ("expected a sequence", "expected a list, such as [\"a\", \"b\"]"),
    ("expected a map", "expected a table"),
    ("expected struct ", "expected the table "),
    ("expected a string", "expected text in quotes"),
    ("expected path string", "expected text in quotes"),
];

/// The message of a fault for people, without the text that was found where another type belongs: it may be an address
/// with a password in it.
pub fn in_plain_words(message: &str) -> String {
    let bare = without_values(message);
    let known = PLAIN.into_iter().find(|(rust, _)| bare.contains(rust));
    known.map_or(bare.clone(), |(rust, plain)| bare.replace(rust, plain))
}

fn without_values(message: &str) -> String {
    let text = |begin: &str| Some((message.find(begin)? + begin.len(), message.rfind("\", expected ")?));
    match text("string \"").filter(|(begin, end)| begin <= end) {
        Some((begin, end)) => format!("{}…{}", &message[..begin], &message[end..]),
        None => message.to_owned(),
    }
}

/// Whether `text` is `HOST:PORT`; the name of a host is looked up later.
pub fn is_host_port(text: &str) -> bool {
    let (host, port) = text.rsplit_once(':').unwrap_or_default();
    let odd = |char: char| char.is_whitespace() || char.is_control() || "/@?#".contains(char);
    let is_host = !host.is_empty() && !host.contains(odd) && (!host.contains(':') || host.starts_with('['));
    is_host && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// Refuses `text` where it is nothing to listen on.
pub fn check_listen(setting: &str, text: &str) -> anyhow::Result<()> {
    if !is_host_port(text) {
        bail!("{setting}: expected HOST:PORT, such as 127.0.0.1:8080, got {text:?}");
    }
    Ok(())
}

/// Refuses an empty path: it names nothing, and some libraries take it for something of their own.
pub fn check_path(setting: &str, path: &Path) -> anyhow::Result<()> {
    if path.as_os_str().is_empty() {
        bail!("{setting}: expected a path, got \"\"");
    }
    Ok(())
}

/// Refuses a place of a log that is meant as a word, and is none.
pub fn check_log(setting: &str, place: &str) -> anyhow::Result<()> {
    let is_file = place.contains('/') || (place.contains('.') && !place.starts_with('.'));
    if place != "stdout" && place != "off" && !is_file {
        bail!(
            "{setting}: expected stdout, off or a file, such as /var/log/NAME.log or ./NAME, got {place:?}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_in_the_wrong_place_is_not_quoted() {
        let message =
            "invalid type: string \"redis://:hush\", expected x@h:1\", expected struct RedisSettings";
        assert_eq!(in_plain_words(message), "invalid type: string \"…\", expected the table RedisSettings");
        for message in ["unknown field `lisen`, expected one of `listen`", "string \"", ""] {
            assert_eq!(in_plain_words(message), message);
        }
        let message = "invalid value: integer `-1`, expected usize";
        assert_eq!(in_plain_words(message), "invalid value: integer `-1`, expected a whole number from 0");
    }

    #[test]
    fn what_a_setting_cannot_mean_is_refused() {
        for fine in ["127.0.0.1:0", "0.0.0.0:8080", "[::1]:8080", "localhost:80"] {
            assert!(check_listen("l", fine).is_ok(), "{fine}");
        }
        for bad in [
            "",
            "127.0.0.1",
            ":80",
            "a:",
            "a:99999",
            "http://a:80",
            "::1:80",
            "a:b",
            "a b:1",
            "u@a:1",
            "a:+80",
        ] {
            assert!(check_listen("l", bad).is_err(), "{bad}");
        }
        for fine in ["stdout", "off", "/var/log/a", "./a", "access.log"] {
            assert!(check_log("l", fine).is_ok(), "{fine}");
        }
        for bad in ["", "Off", "stderr", "STDOUT", "none", "false"] {
            assert!(check_log("l", bad).is_err(), "{bad}");
        }
        assert!(check_path("p", Path::new("")).is_err() && check_path("p", Path::new("a")).is_ok());
    }
}
