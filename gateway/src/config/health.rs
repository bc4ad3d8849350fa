//! How the health of an address is checked, as the settings say.

use anyhow::bail;

/// So that a length is one byte.
const LONGEST_NAME: usize = 120;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nothing. No check is made at intervals; where an operator asks, a connection is made and no more.
    Nothing,
    /// A path.
    Path(String),
    /// A service by its gRPC name; the empty name means the server as a whole.
    Grpc(String),
}

impl Health {
    /// Reads the empty text, `/PATH`, `grpc` or `grpc:SERVICE`.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        match text.split_once(':') {
            None if text.is_empty() => Ok(Self::Nothing),
            _ if text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Ok(Self::Path(text.to_owned()))
            }
            Some(("grpc", service)) if service.len() <= LONGEST_NAME => Ok(Self::Grpc(service.to_owned())),
            None if text == "grpc" => Ok(Self::Grpc(String::new())),
            _ => bail!("a path, `grpc`, `grpc:SERVICE` or nothing (got {text:?})"),
        }
    }

    /// Whether addresses are checked at intervals.
    pub fn asks(&self) -> bool {
        *self != Self::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_check_is_a_path_or_grpc_or_nothing() {
        assert_eq!(Health::parse("").unwrap(), Health::Nothing);
        assert_eq!(Health::parse("/ready").unwrap(), Health::Path("/ready".to_owned()));
        assert_eq!(Health::parse("grpc").unwrap(), Health::Grpc(String::new()));
        assert_eq!(Health::parse("grpc:a.B").unwrap(), Health::Grpc("a.B".to_owned()));
        let error = Health::parse("ready").unwrap_err().to_string();
        assert_eq!(error, "a path, `grpc`, `grpc:SERVICE` or nothing (got \"ready\")");
        assert!(Health::parse(&format!("grpc:{}", "a".repeat(121))).is_err());
    }
}
