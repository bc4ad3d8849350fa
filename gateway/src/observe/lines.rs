//! JSON lines to standard output or a file, written by a thread of its own. A writer that cannot keep up loses lines,
//! and who writes is told so; nobody waits.

use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::Context as _;
use serde::Serialize;

/// Lines that wait for the writer.
const QUEUE: usize = 8192;

/// Where lines go.
#[derive(Clone)]
pub struct Lines(Option<SyncSender<Vec<u8>>>);

impl Lines {
    /// `stdout`, `off` or a file, which is appended to; `setting` is what an error names.
    pub fn open(setting: &str, place: &str) -> anyhow::Result<Self> {
        let writer: Box<dyn Write + Send> = match place {
            "off" => return Ok(Self(None)),
            "stdout" => Box::new(std::io::stdout()),
            file => Box::new(
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(file)
                    .with_context(|| format!("{setting}: cannot write `{file}`"))?,
            ),
        };
        let (queue, lines) = sync_channel(QUEUE);
        std::thread::Builder::new().name(setting.to_owned()).spawn(move || write_lines(writer, &lines))?;
        Ok(Self(Some(queue)))
    }

    /// Writes a line; `false` when it was lost.
    pub fn write(&self, line: &impl Serialize) -> bool {
        let Some(queue) = &self.0 else { return true };
        let Ok(mut bytes) = serde_json::to_vec(line) else { return false };
        bytes.push(b'\n');
        queue.try_send(bytes).is_ok()
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
