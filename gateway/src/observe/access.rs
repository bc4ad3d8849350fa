//! The access log: one JSON line a request, written by a thread of its own. A writer that cannot keep up loses lines,
//! which is counted, and never holds up a request.

use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::Context as _;
use serde::Serialize;

use super::metrics::Metrics;

/// Lines that wait for the writer.
const QUEUE: usize = 8192;

/// One request. No token, cookie, query or header value is in it.
#[derive(Serialize)]
pub struct Line<'a> {
    /// RFC 3339, when the request began.
    pub time: String,
    /// As in the answer.
    pub request_id: &'a str,
    /// The client's address.
    pub client: &'a str,
    /// The method.
    pub method: &'a str,
    /// The normal path; the raw one when it has none.
    pub path: &'a str,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: &'a str,
    /// The route, once it was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<&'a str>,
    /// The subject, once it was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<&'a str>,
    /// 0 when the client left before an answer.
    pub status: u16,
    /// Where it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<&'a str>,
    /// By which rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<&'a str>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'a str>,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
    /// From the header to the end of the answer.
    pub duration_ms: f64,
    /// Of that, in the upstream.
    pub upstream_ms: f64,
}

/// Where the lines go.
#[derive(Clone)]
pub struct AccessLog {
    queue: Option<SyncSender<Vec<u8>>>,
    metrics: Metrics,
}

impl AccessLog {
    /// `stdout`, `off` or a file, which is appended to.
    pub fn open(place: &str, metrics: Metrics) -> anyhow::Result<Self> {
        let writer: Box<dyn Write + Send> = match place {
            "off" => return Ok(Self { queue: None, metrics }),
            "stdout" => Box::new(std::io::stdout()),
            file => Box::new(
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(file)
                    .with_context(|| format!("log.access: cannot write `{file}`"))?,
            ),
        };
        let (queue, lines) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_lines(writer, &lines))?;
        Ok(Self { queue: Some(queue), metrics })
    }

    /// Logs a request.
    pub fn log(&self, line: &Line<'_>) {
        let Some(queue) = &self.queue else { return };
        let Ok(mut bytes) = serde_json::to_vec(line) else { return };
        bytes.push(b'\n');
        if queue.try_send(bytes).is_err() {
            self.metrics.access_log_dropped.inc();
        }
    }
}

fn write_lines(writer: impl Write, lines: &Receiver<Vec<u8>>) {
    let mut writer = BufWriter::new(writer);
    while let Ok(line) = lines.recv() {
        let mut written = writer.write_all(&line);
        while let Ok(line) = lines.try_recv() {
            written = written.and_then(|()| writer.write_all(&line));
        }
        if written.and_then(|()| writer.flush()).is_err() {
            return; // nobody reads any more
        }
    }
}
