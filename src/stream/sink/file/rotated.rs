//! The files that a file sink has written full: beside the one that it writes, with a number that rises after its name. Engine's thread.

use super::at;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The rotated files of one path, by number.
pub struct Rotated {
    path: PathBuf,
    /// Rising.
    numbers: Vec<(u64, PathBuf)>,
}

impl Rotated {
    /// `directory` is the one that `path` is in.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(path: &Path, directory: &Path) -> io::Result<Self> {
        let name = path.file_name().unwrap_or_default().to_os_string();
        let mut numbers = Vec::new();
        for entry in fs::read_dir(directory).map_err(|error| at(directory, &error))? {
            let entry = entry.map_err(|error| at(directory, &error))?;
            let number = number(entry.file_name().as_encoded_bytes(), name.as_encoded_bytes());
            if let Some(number) = number {
                numbers.push((number, entry.path()));
            }
        }
        numbers.sort();
        Ok(Self { path: path.to_owned(), numbers })
    }

    /// Gives the file its number, the one above all others.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn add(&self, file: &Path) -> io::Result<()> {
        let last = self.numbers.last().map_or(0, |(number, _)| *number);
        let target = self.name(last.saturating_add(1));
        fs::rename(file, &target).map_err(|error| at(&target, &error))
    }

    /// Removes the oldest, so that with the one that was added so many stay; 0 for all.
    ///
    /// # Errors
    /// With the one that cannot be removed.
    pub fn keep(&self, keep: u64) -> Result<(), (PathBuf, io::Error)> {
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        let surplus = if keep == 0 { 0 } else { (self.numbers.len() + 1).saturating_sub(keep) };
        for (_, path) in self.numbers.iter().take(surplus) {
            fs::remove_file(path).map_err(|error| (path.clone(), error))?;
        }
        Ok(())
    }

    /// Six digits sort by name as they do by number, for as long as six are enough.
    fn name(&self, number: u64) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number:06}"));
        name.into()
    }
}

/// The number in `<name>.<number>`.
fn number(entry: &[u8], name: &[u8]) -> Option<u64> {
    let digits = entry.strip_prefix(name)?.strip_prefix(b".")?;
    let digits = std::str::from_utf8(digits).ok()?;
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}
