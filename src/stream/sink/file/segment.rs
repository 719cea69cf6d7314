//! The file that a file sink is writing: opened, its end mended, locked against a second writer. Engine's thread.

use super::{Plan, at};
use std::fs::{self, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// So much is read at once in search of the last newline.
const PIECE: usize = 64 * 1024;

/// An open file that ends in a whole line.
pub struct Segment {
    file: fs::File,
    path: PathBuf,
    length: u64,
    /// Up to here it is on disk.
    safe: u64,
    born: SystemTime,
}

impl Segment {
    /// Opens the file, makes it if there is none, and cuts off what a crash has left of a line. Also says how many bytes those were.
    ///
    /// # Errors
    /// When it cannot be opened or mended, is no file, or is written by somebody else.
    pub fn open(plan: &Plan) -> io::Result<(Self, u64)> {
        let Plan { path, directory, mode, .. } = plan;
        // Not blocking: a named pipe would make it wait for a reader.
        let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
        let mut options = OpenOptions::new();
        options.read(true).append(true).mode(*mode).custom_flags(nonblocking);
        let file = match options.clone().create_new(true).open(path) {
            Ok(file) => {
                // The server's umask leaves nothing for group and others. One that is there already is as somebody wants it.
                file.set_permissions(fs::Permissions::from_mode(*mode))?;
                file
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(path)?,
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::other("somebody else is writing it"),
            TryLockError::Error(error) => error,
        })?;
        // Another writer may have rotated it between the two.
        if fs::metadata(path)?.ino() != metadata.ino() {
            return Err(io::Error::other("somebody else is writing it"));
        }
        let length = file.metadata()?.len();
        let whole = end_of_last_line(&file, length)?;
        if whole < length {
            file.set_len(whole)?;
        }
        file.sync_all()?;
        sync_directory(directory)?;
        let born = metadata.created().or_else(|_| metadata.modified());
        let born = if whole == 0 { SystemTime::now() } else { born.unwrap_or_else(|_| SystemTime::now()) };
        let path = path.clone();
        Ok((Self { file, path, length: whole, safe: whole, born }, length - whole))
    }

    /// # Errors
    /// As the system says; a part may have been written.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// # Errors
    /// As the system says; what is not safe by then may never be, whatever a second attempt says. And when somebody has removed the file:
    /// what was written into it since is nowhere.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.safe < self.length {
            if self.file.metadata()?.nlink() == 0 {
                return Err(io::Error::other("somebody has removed it while it was written"));
            }
            self.file.sync_data()?;
            self.safe = self.length;
        }
        Ok(())
    }

    /// Somebody has renamed or removed it: what comes now belongs into another.
    pub fn has_gone(&self) -> bool {
        let there = self.file.metadata().ok().zip(fs::metadata(&self.path).ok());
        there.is_none_or(|(ours, found)| (ours.dev(), ours.ino()) != (found.dev(), found.ino()))
    }

    /// Best effort: what stays is delivered twice.
    pub fn cut_off_unsafe(self) {
        let _ = self.file.set_len(self.safe);
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn age(&self) -> Duration {
        // A clock that was set back makes it young.
        self.born.elapsed().unwrap_or_default()
    }

    #[cfg(test)]
    pub fn replace_file(&mut self, file: fs::File) {
        self.file = file;
    }
}

/// A name is safe when its directory has been synced.
///
/// # Errors
/// As the system says.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    fs::File::open(directory).and_then(|file| file.sync_all()).map_err(|error| at(directory, &error))
}

/// The length without what follows the last newline.
fn end_of_last_line(file: &fs::File, length: u64) -> io::Result<u64> {
    let mut piece = vec![0; PIECE];
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(PIECE as u64);
        let piece = &mut piece[..usize::try_from(end - start).unwrap_or(PIECE)];
        file.read_exact_at(piece, start)?;
        if let Some(newline) = piece.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + newline as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}
