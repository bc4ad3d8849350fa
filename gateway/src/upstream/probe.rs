//! How an address is asked whether it is well: a path that is answered with a 2xx, or gRPC's own health service
//! (grpc/doc/health-checking.md, `grpc.health.v1`). A service that is not ours is asked nothing unless the settings say
//! so.

use std::time::Duration;

use anyhow::bail;
use http::Request;

use crate::upstream::http_client::Fetch;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nothing: a connection is proof enough, and none is made only for that.
    Nothing,
    /// A path.
    Path(String),
    /// A service by its gRPC name; empty: the server as a whole.
    Grpc(String),
}

impl Health {
    /// Reads the empty text, `/PATH`, `grpc` or `grpc:SERVICE`.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        match text.split_once(':') {
            None if text.is_empty() => Ok(Self::Nothing),
            _ if text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Ok(Self::Path(text.to_owned()))
            }
            Some(("grpc", service)) if service.len() <= LONGEST_NAME => Ok(Self::Grpc(service.to_owned())),
            None if text == "grpc" => Ok(Self::Grpc(String::new())),
            _ => bail!("a path, `grpc`, `grpc:SERVICE` or nothing (got {text:?})"),
        }
    }

    /// Whether addresses are asked now and then.
    pub fn asks(&self) -> bool {
        *self != Self::Nothing
    }

    /// Asks; an error says what is wrong.
    pub async fn ask(&self, fetch: &Fetch, patience: Duration) -> anyhow::Result<()> {
        match self {
            Self::Nothing => fetch.connect(patience).await,
            Self::Path(path) => {
                let request = Request::builder().method("GET");
                let answer = fetch.send(request, path, Vec::new(), patience).await?;
                if !answer.status().is_success() {
                    bail!("status {}", answer.status().as_u16());
                }
                Ok(())
            }
            Self::Grpc(service) => {
                let request = Request::builder()
                    .method("POST")
                    .header("content-type", "application/grpc")
                    .header("te", "trailers");
                let answer =
                    fetch.send(request, "/grpc.health.v1.Health/Check", question(service), patience).await?;
                if answer.body().as_ref() == SERVING {
                    return Ok(());
                }
                match answer.headers().get("grpc-status") {
                    Some(code) => bail!("grpc-status {}", code.to_str().unwrap_or("unreadable")),
                    None => bail!("not serving (status {})", answer.status().as_u16()),
                }
            }
        }
    }
}

/// So that a length is one byte.
const LONGEST_NAME: usize = 120;

/// A message that is not compressed, of two bytes: field 1 (`status`), 1 (`SERVING`).
const SERVING: &[u8] = &[0, 0, 0, 0, 2, 0x08, 1];

/// A message that is not compressed: field 1 (`service`), or nothing.
fn question(service: &str) -> Vec<u8> {
    let length = |bytes: usize| u8::try_from(bytes).unwrap_or(u8::MAX);
    let mut message = Vec::new();
    if !service.is_empty() {
        message.extend([0x0a, length(service.len())]);
        message.extend(service.as_bytes());
    }
    let mut framed = vec![0, 0, 0, 0, length(message.len())];
    framed.append(&mut message);
    framed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_check_is_a_path_or_grpc_or_nothing() {
        assert_eq!(Health::parse("").unwrap(), Health::Nothing);
        assert_eq!(Health::parse("/ready").unwrap(), Health::Path("/ready".to_owned()));
        assert_eq!(Health::parse("grpc").unwrap(), Health::Grpc(String::new()));
        assert_eq!(Health::parse("grpc:a.B").unwrap(), Health::Grpc("a.B".to_owned()));
        let error = Health::parse("ready").unwrap_err().to_string();
        assert_eq!(error, "a path, `grpc`, `grpc:SERVICE` or nothing (got \"ready\")");
        assert!(Health::parse(&format!("grpc:{}", "a".repeat(121))).is_err());
    }

    #[test]
    fn a_question_is_framed_as_grpc_frames_messages() {
        assert_eq!(question(""), [0, 0, 0, 0, 0]);
        assert_eq!(question("a"), [0, 0, 0, 0, 3, 0x0a, 1, b'a']);
    }
}
