//! Certificates that are made for one run: no key is ever committed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// A certificate and its key, PEM files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// The certificate, signed by itself.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Certificate {
    /// The one for this name in `dir`, made at the first call by the `openssl` program: P-256, good for three months.
    pub fn make(dir: &Path, name: &str) -> Certificate {
        Self::of(dir, name, &["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
    }

    /// The same with an RSA key of 2,048 bits.
    pub fn rsa(dir: &Path, name: &str) -> Certificate {
        Self::of(dir, name, &["rsa:2048"])
    }

    fn of(dir: &Path, name: &str, kind: &[&str]) -> Certificate {
        static MAKING: Mutex<()> = Mutex::new(());
        // Nothing is left half-done by a panic that the next call would take for whole.
        let _one_at_a_time = MAKING.lock().unwrap_or_else(|e| e.into_inner());
        let [cert, key] = ["pem", "key"].map(|end| dir.join(format!("{name}.{end}")));
        if !cert.exists() {
            let output = Command::new("openssl")
                .args(["req", "-x509", "-nodes", "-newkey"])
                .args(kind)
                .args(["-days", "90", "-subj", &format!("/CN={name}")])
                .args(["-addext", &format!("subjectAltName=DNS:{name}")])
                .args([Path::new("-out"), &cert, Path::new("-keyout"), &key])
                .output()
                .unwrap_or_else(|e| panic!("cannot run openssl: {e}"));
            assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        }
        Certificate { cert, key }
    }
}
