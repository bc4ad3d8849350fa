//! Certificates and authorities, read from PEM files and replaced while connections live.
//!
//! Floor 3: imports `config`, `observe`.

pub mod pem;
pub mod server;
