//! Peers that others wrote: a gRPC server and a client by grpcio, an SMTP server by aiosmtpd.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::program::Program;
use crate::stack::root;

/// A Python with grpcio, grpcio-health-checking and aiosmtpd, which `PEERS_PYTHON` names; CI requires it.
pub fn python() -> Option<PathBuf> {
    let named = std::env::var_os("PEERS_PYTHON").map(PathBuf::from);
    assert!(named.is_some() || std::env::var_os("CI").is_none(), "CI requires PEERS_PYTHON");
    named
}

fn grpc_peer(python: &PathBuf) -> Command {
    let mut command = Command::new(python);
    command.arg(root().join("tests/peers/grpc_peer.py"));
    command
}

/// A gRPC server that echoes, over TLS when it is given a certificate, a key and the authority of clients.
pub async fn grpc_server(python: &PathBuf, files: &[String]) -> (Program, SocketAddr) {
    let mut serve = grpc_peer(python);
    serve.arg("serve").args(files);
    let program = Program::start("grpc server", serve);
    let address = program.field_of("serving", "listen").await.parse().unwrap();
    (program, address)
}

/// Makes calls of gRPC, one after the other over one channel; `ca` is the authority to trust, over TLS.
pub async fn grpc_calls(python: &PathBuf, to: SocketAddr, ca: Option<&str>, calls: &[Value]) -> Vec<Value> {
    let mut client = grpc_peer(python);
    client.arg("call").arg(to.to_string()).args(ca).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut client = client.kill_on_drop(true).spawn().unwrap();
    let lines: Vec<String> = calls.iter().map(Value::to_string).collect();
    let mut stdin = client.stdin.take().unwrap();
    stdin.write_all(lines.join("\n").as_bytes()).await.unwrap();
    drop(stdin);
    let output = client.wait_with_output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// An SMTP server at `port`, which prints each mail as Python's parser reads it; see `tests/peers/smtp_peer.py`.
pub async fn smtp_server(python: &PathBuf, port: u16, arguments: &[&str]) -> Program {
    let mut serve = Command::new(python);
    serve.arg(root().join("tests/peers/smtp_peer.py")).arg(port.to_string()).args(arguments);
    let program = Program::start("smtp server", serve);
    program.field_of("serving", "listen").await;
    program
}
