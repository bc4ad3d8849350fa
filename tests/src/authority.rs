//! A certificate authority of a test's own, by openssl.

use std::path::PathBuf;

use tokio::process::Command;

/// A directory with an authority, and certificates that it signs.
pub struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    /// A new one, which nobody trusts yet.
    pub async fn new() -> Self {
        let authority = Self { dir: tempfile::tempdir().unwrap() };
        authority.openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem").await;
        authority
    }

    async fn openssl(&self, arguments: &str) {
        let mut openssl = Command::new("openssl");
        let output = openssl.args(arguments.split(' ')).current_dir(self.dir.path()).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Signs a certificate for 127.0.0.1; `name` says whose it is.
    pub async fn sign(&self, name: &str) {
        std::fs::write(self.file("extensions"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
            .unwrap();
        self.openssl(&format!("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr")).await;
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -days 2 -extfile extensions -out {name}.pem"
        ))
        .await;
    }

    /// A file of its directory: `ca.pem`, and `NAME.pem` with `NAME.key` for whom it signed.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its path.
    pub fn path(&self, name: &str) -> String {
        self.file(name).to_str().unwrap().to_owned()
    }
}
