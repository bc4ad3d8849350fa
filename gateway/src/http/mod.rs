//! What HTTP means on either side of the gateway: chunks, calls of gRPC, problem documents.
//!
//! Floor 1: imports nothing of this crate but its own files.

pub(crate) mod body_fault;
pub(crate) mod chunked;
pub(crate) mod fields;
pub(crate) mod grpc;
pub mod problem;
