//! Checks the health of an address: a path must be answered with a 2xx, or gRPC's own health service must say so
//! (grpc/doc/health-checking.md, `grpc.health.v1`). Without a setting only a connection is made, because not every
//! service has a health check.

use std::time::Duration;

use anyhow::bail;
use http::Request;

use crate::config::health::Health;
use crate::upstream::http_client::HttpClient;

/// Checks an address. The error says what is wrong.
pub async fn ask(health: &Health, http_client: &HttpClient, patience: Duration) -> anyhow::Result<()> {
    match health {
        Health::Nothing => http_client.connect(patience).await,
        Health::Path(path) => {
            let request = Request::builder().method("GET");
            let answer = http_client.send(request, path, Vec::new(), patience).await?;
            if !answer.status().is_success() {
                bail!("status {}", answer.status().as_u16());
            }
            Ok(())
        }
        Health::Grpc(service) => {
            let request = Request::builder()
                .method("POST")
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            let answer = http_client
                .send(request, "/grpc.health.v1.Health/Check", question(service), patience)
                .await?;
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
    fn a_question_is_framed_as_grpc_frames_messages() {
        assert_eq!(question(""), [0, 0, 0, 0, 0]);
        assert_eq!(question("a"), [0, 0, 0, 0, 3, 0x0a, 1, b'a']);
    }
}
