//! `gateway healthcheck`: asks the gateway of this container whether it is ready. For images without a shell.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use crate::config::address::Address;
use crate::upstream::http_client::HttpClient;

/// Succeeds when `/health/ready` on the admin plane answers 200.
pub async fn run(admin_listen: &str) -> anyhow::Result<()> {
    let address = admin_listen.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:");
    let http_client = HttpClient::of(&Address::parse(&address)?, Arc::default());
    http_client
        .get("/health/ready", Duration::from_secs(3))
        .await
        .with_context(|| format!("not ready at {address}"))?;
    Ok(())
}
