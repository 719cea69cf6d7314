//! Certificates for tests and benchmarks, made by openssl. They run in test and benchmark programs.

use crate::{installation, machine};
use anyhow::Result;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A certificate and its key, as PEM files that the server user may read.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificate {
    /// A new self-signed one for `localhost`, as `server.crt` and `server.key` in an existing directory.
    ///
    /// # Errors
    /// When openssl is missing or refuses.
    pub fn self_signed(directory: &Path) -> Result<Self> {
        let names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"];
        Self::made(directory, "server", "localhost", &names)
    }

    /// A new authority of that name, with files of that name.
    ///
    /// # Errors
    /// As [`Certificate::self_signed`].
    pub fn authority(directory: &Path, name: &str) -> Result<Self> {
        Self::made(directory, name, name, &[])
    }

    /// A new one for `localhost` that this authority has signed, as `server.crt` and `server.key` in an existing directory.
    ///
    /// # Errors
    /// As [`Certificate::self_signed`].
    pub fn issued(directory: &Path, authority: &Self) -> Result<Self> {
        let (certificate, key) = (authority.certificate.to_string_lossy(), authority.key.to_string_lossy());
        let names = "subjectAltName=DNS:localhost,IP:127.0.0.1";
        // One that may sign others is no server's for some clients.
        let more = ["-addext", names, "-addext", "basicConstraints=critical,CA:FALSE"];
        let by = ["-CA", &certificate, "-CAkey", &key];
        Self::made(directory, "server", "localhost", &[&more[..], &by[..]].concat())
    }

    fn made(directory: &Path, files: &str, common_name: &str, more: &[&str]) -> Result<Self> {
        let made = Self {
            certificate: directory.join(format!("{files}.crt")),
            key: directory.join(format!("{files}.key")),
        };
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"]);
        openssl.args(["-subj", &format!("/CN={common_name}")]).args(more);
        openssl.arg("-keyout").arg(&made.key).arg("-out").arg(&made.certificate);
        installation::run(&mut openssl)?;
        for file in [&made.certificate, &made.key] {
            // PostgreSQL refuses a key that others may read.
            fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
            machine::give_to_server_user(file)?;
        }
        Ok(made)
    }
}
