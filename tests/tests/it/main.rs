//! The product from outside, on the real programs.
#![expect(clippy::unwrap_used, reason = "a test panics to fail")]

mod accounts;
mod addresses;
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
mod kept_answers;
mod limits;
mod main_job;
mod own_service;
mod permissions;
mod reload;
mod replicas;
mod response_headers;
mod retries;
mod revocations;
mod slow;
mod startup;
mod stores;
mod streams;
mod tls;
mod tokens;
mod trace;
mod upstream_faults;
mod upstreams;
mod wire;
