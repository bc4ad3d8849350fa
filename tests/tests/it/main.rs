//! The product from outside, on the real programs.
#![expect(clippy::unwrap_used, reason = "a test panics to fail")]

mod accounts;
mod answers;
mod api_keys;
mod balance;
mod chaos;
mod chart;
mod degraded;
mod drain;
mod framing;
mod grpc;
mod hop;
mod http2;
mod identity;
mod limits;
mod logs;
mod main_job;
mod outside;
mod permissions;
mod reload;
mod replicas;
mod retries;
mod revocations;
mod secrecy;
mod slow;
mod startup;
mod stores;
mod streams;
mod tls;
mod tokens;
mod trace;
mod upstreams;
mod wire;
