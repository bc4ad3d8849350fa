//! A program under test: started, watched through its log, ended.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::{PATIENCE, eventually};

/// A running program. It is killed when dropped, and its log is printed when the test is failing.
pub struct Program {
    name: String,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reading: watch::Sender<bool>,
}

/// The built program `name`, beside the tests' own.
pub fn built(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(|deps| deps.parent()).unwrap().join(name);
    assert!(program.exists(), "`{}` is not built: run `make test`", program.display());
    program
}

/// A command for the built program `name`, without the caller's environment.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(built(name));
    command.env_clear();
    command
}

/// The same for a program whose disk a test lets be full, see [`Program::limit_files`]: a write that finds no room is to
/// fail, not to end the program.
pub fn command_with_a_disk(name: &str) -> Command {
    let mut command = Command::new("sh");
    command.env_clear().args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(built(name));
    command
}

impl Program {
    /// Starts `command`.
    pub fn start(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::null()).kill_on_drop(true);
        Self::spawn(name, command)
    }

    /// Starts `command`, whose standard input ends with the test: so it can end what it has started itself.
    pub fn start_with_input(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::piped());
        Self::spawn(name, command)
    }

    fn spawn(name: &str, mut command: Command) -> Self {
        crate::secrets::note_environment(command.as_std());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (reading, read) = watch::channel(true);
        follow(child.stdout.take().unwrap(), Arc::clone(&log), read.clone());
        follow(child.stderr.take().unwrap(), Arc::clone(&log), read);
        Self { name: name.to_owned(), child, log, reading }
    }

    /// Whether somebody reads what it writes: at first somebody does.
    pub fn is_read(&self, is_read: bool) {
        self.reading.send_replace(is_read);
    }

    /// The lines that it has written so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// The log lines that are JSON.
    pub fn events(&self) -> Vec<Value> {
        self.log().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a log event whose message is `message`, and returns its field `field`.
    pub async fn field_of(&self, message: &str, field: &str) -> String {
        let find = || self.events().into_iter().find(|event| event["message"] == message);
        eventually(&format!("{} logs `{message}`: {:?}", self.name, self.log()), || async {
            find().is_some()
        })
        .await;
        find().unwrap()[field].as_str().unwrap().to_owned()
    }

    /// Sends a signal by its name: `TERM`, `KILL`, `STOP`.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().expect("the program runs").to_string();
        let sent = std::process::Command::new("kill").args([&format!("-{name}"), &id]).status();
        assert!(sent.unwrap().success());
    }

    /// Stops every thread of it where it is, until it is sent `CONT`.
    pub async fn freeze(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.id());
        let stopped = |task: std::fs::DirEntry| {
            let state = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            state.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('T'))
        };
        eventually(&format!("{} has stopped", self.name), || async {
            std::fs::read_dir(&tasks).unwrap().flatten().all(stopped)
        })
        .await;
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// The largest size of a file that it may write, `0` or `unlimited`: as if its disk were full.
    pub fn limit_files(&self, size: &str) {
        let limit = ["--pid", &self.id().to_string(), &format!("--fsize={size}:unlimited")];
        assert!(std::process::Command::new("prlimit").args(limit).status().unwrap().success());
    }

    /// What it holds in memory, in KiB.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Waits for it to end.
    pub async fn ended(&mut self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap()
    }
}

fn follow(
    stream: impl AsyncRead + Send + Unpin + 'static,
    log: Arc<Mutex<Vec<String>>>,
    mut read: watch::Receiver<bool>,
) {
    tokio::spawn(async move {
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            log.lock().unwrap().push(line);
            // The program's end does not end the reading of what it wrote before.
            let _ = read.wait_for(|read| *read).await;
        }
    });
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut text = format!("--- {} ---\n", self.name);
            for line in self.log() {
                let _ = writeln!(text, "{line}");
            }
            eprint!("{text}");
        } else if matches!(self.name.as_str(), "gateway" | "backend") {
            let shown = crate::secrets::shown_in(&self.log());
            assert!(shown.is_empty(), "{} wrote down what it must not: {shown:?}", self.name);
        }
    }
}
