//! The files that the TLS settings name, read whole. Network threads, at start and on reload.

use super::Error;
use crate::settings::TlsFiles;
use sha2::{Digest, Sha256};
use std::fs::{File, Metadata};
use std::io::{Error as IoError, Read};
use std::os::unix::fs::MetadataExt;
use zeroize::Zeroizing;

/// Bytes of the largest file that is read; revocation lists are the large ones.
const MOST_BYTES: u64 = 64 * 1024 * 1024;

/// Files of `ssl_crl_dir` that are read at most.
const MOST_LISTS: usize = 1000;

/// One file.
pub(super) struct Part {
    pub setting: &'static str,
    pub path: String,
    pub bytes: Zeroizing<Vec<u8>>,
}

impl Part {
    /// The error that this file's content is not what it should be.
    pub fn refuse(&self, reason: impl ToString) -> Error {
        Error::Content { setting: self.setting, file: self.path.clone(), reason: reason.to_string() }
    }
}

/// All of them.
pub(super) struct Files {
    pub certificate: Part,
    pub key: Part,
    pub authorities: Option<Part>,
    /// `None` where no setting asks for revocation lists; empty where their directory is.
    pub revocations: Option<Vec<Part>>,
}

impl Files {
    /// # Errors
    /// [`Error::Read`] and, where the key's permissions are not what the server demands, [`Error::Content`].
    pub fn read(files: &TlsFiles) -> Result<Self, Error> {
        let certificate = read("ssl_cert_file", &files.certificate, |_| None)?;
        let key = read("ssl_key_file", &files.key, key_permissions)?;
        let authorities = match &files.authorities[..] {
            "" => None,
            path => Some(read("ssl_ca_file", path, |_| None)?),
        };
        let mut revocations = None;
        if !files.revocations.is_empty() {
            let list = read("ssl_crl_file", &files.revocations, |_| None)?;
            revocations.get_or_insert_with(Vec::new).push(list);
        }
        if !files.revocation_directory.is_empty() {
            revocations.get_or_insert_with(Vec::new).extend(directory(&files.revocation_directory)?);
        }
        Ok(Self { certificate, key, authorities, revocations })
    }

    /// Tells contents apart.
    pub fn digest(&self) -> [u8; 32] {
        let single = [Some(&self.certificate), Some(&self.key), self.authorities.as_ref()];
        let mut hash = Sha256::new();
        for part in single.into_iter().flatten().chain(self.revocations.iter().flatten()) {
            for bytes in [part.setting.as_bytes(), part.path.as_bytes(), &part.bytes] {
                hash.update((bytes.len() as u64).to_le_bytes());
                hash.update(bytes);
            }
        }
        hash.finalize().into()
    }
}

/// Reads a file unless `objection` has something against it.
fn read(
    setting: &'static str,
    path: &str,
    objection: impl Fn(&Metadata) -> Option<&'static str>,
) -> Result<Part, Error> {
    let failed = |source| Error::Read { setting, file: path.to_owned(), source };
    // Before opening: to open a pipe would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(IoError::other("it is not a regular file")));
    }
    if metadata.len() > MOST_BYTES {
        return Err(failed(IoError::other("it is larger than 64 MB")));
    }
    let mut part = Part { setting, path: path.to_owned(), bytes: Zeroizing::new(Vec::new()) };
    if let Some(reason) = objection(&metadata) {
        return Err(part.refuse(reason));
    }
    // A growing vector would leave copies of a key behind.
    part.bytes.reserve_exact(metadata.len() as usize + 1);
    File::open(path).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut part.bytes)).map_err(failed)?;
    Ok(part)
}

/// What check_ssl_key_file_permissions() of the server objects to (src/backend/libpq/be-secure-common.c).
fn key_permissions(metadata: &Metadata) -> Option<&'static str> {
    let us = rustix::process::geteuid().as_raw();
    match metadata.uid() {
        uid if uid != us && uid != 0 => Some("it must be owned by the database user or root"),
        uid if uid == us && uid != 0 && metadata.mode() & 0o077 != 0 => Some(KEY_ACCESS),
        0 if metadata.mode() & 0o037 != 0 => Some(KEY_ACCESS),
        _ => None,
    }
}

const KEY_ACCESS: &str = "it has group or world access; permissions should be u=rw (0600) or less if owned by the \
                          database user, or permissions u=rw,g=r (0640) or less if owned by root";

/// The revocation lists of a directory that `openssl rehash` has prepared: `<hash of the issuer>.r<number>`.
fn directory(path: &str) -> Result<Vec<Part>, Error> {
    let setting = "ssl_crl_dir";
    let failed = |source| Error::Read { setting, file: path.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(name) = name.to_str().filter(|name| is_list_name(name)) {
            names.push(name.to_owned());
        }
    }
    if names.len() > MOST_LISTS {
        return Err(failed(IoError::other("it holds more than 1000 revocation lists")));
    }
    names.sort();
    names.iter().map(|name| read(setting, &format!("{path}/{name}"), |_| None)).collect()
}

fn is_list_name(name: &str) -> bool {
    name.split_once(".r").is_some_and(|(hash, number)| {
        hash.len() == 8
            && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_openssl_would_look_for_are_lists() {
        for (name, is) in [
            ("1a2b3c4d.r0", true),
            ("1a2b3c4d.r12", true),
            ("1a2b3c4d.0", false),
            ("1a2b3c4d.r", false),
            ("root.crl", false),
            ("xxxxxxxx.r0", false),
        ] {
            assert_eq!(is_list_name(name), is, "{name}");
        }
    }
}
