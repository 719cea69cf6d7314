//! The file sink: one JSON object a line, appended to a file that is rotated by size and age. An event is delivered when the file has been
//! synced to disk. Engine's thread; a disk that hangs holds it up, as it holds up the server.
//!
//! - [`segment`]: one file: opening, mending its end, writing, syncing
//! - [`rotated`]: the names of the files that were written full

mod rotated;
mod segment;
#[cfg(test)]
mod tests;

use self::rotated::Rotated;
use self::segment::Segment;
use super::{Event, Failure, Given, Log, Progress, Setting, Sink};
use crate::stream::options::{OptionError, Options};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Lines are gathered up to so many bytes before they are written.
const GATHERED: usize = 64 * 1024;

/// A file sink as its options describe it.
#[derive(Debug, Clone)]
struct Plan {
    path: PathBuf,
    directory: PathBuf,
    /// Bytes from which on the file is rotated; 0 for never.
    rotate_size: u64,
    /// Age from which on the file is rotated; zero for never.
    rotate_age: Duration,
    /// How many rotated files stay; 0 for all.
    keep: u64,
    /// Time between two syncs.
    sync: Duration,
    /// Permissions of new files.
    mode: u32,
}

struct File {
    plan: Plan,
    setting: Setting,
    /// None until the first event: a sink is made without touching anything.
    segment: Option<Segment>,
    /// Lines that are not written yet.
    gathered: Vec<u8>,
    /// The last event that was gathered.
    taken: u64,
    delivered: u64,
    /// What the engine has been told of that.
    told: u64,
    /// Why it ends, once the engine has been told.
    failure: Option<Failure>,
    /// When the first of the lines that are not safe yet was taken.
    unsafe_since: Option<Instant>,
}

pub(super) fn make(
    options: &mut Options,
    setting: Option<&Setting>,
) -> Result<Option<Box<dyn Sink>>, OptionError> {
    let plan = Plan::read(options)?;
    let Some(setting) = setting else { return Ok(None) };
    // Only now: a definition must be as right on another machine, to which a dump of it goes.
    plan.look()?;
    Ok(Some(Box::new(File::new(plan, setting))))
}

impl Plan {
    /// Whether the file can be where it is to be.
    fn look(&self) -> Result<(), OptionError> {
        if !self.directory.is_dir() {
            let why = format!("is in \"{}\", which is no directory", self.directory.display());
            return Err(OptionError::new("path", why));
        }
        if self.path.exists() && !self.path.is_file() {
            let why = format!("names \"{}\", which is no file", self.path.display());
            return Err(OptionError::new("path", why));
        }
        Ok(())
    }

    fn read(options: &mut Options) -> Result<Self, OptionError> {
        let path = PathBuf::from(options.required("path")?);
        let directory = match (path.is_absolute(), path.parent(), path.file_name()) {
            (true, Some(directory), Some(_)) => directory.to_owned(),
            _ => return Err(OptionError::new("path", "must be the absolute path of a file")),
        };
        let mode = options.text("mode")?.unwrap_or_else(|| "0600".to_owned());
        let mode = u32::from_str_radix(&mode, 8).ok().filter(|mode| mode & !0o666 == 0 && mode & 0o200 != 0);
        Ok(Self {
            path,
            directory,
            rotate_size: options.bytes("rotate_size", 64 << 20)?,
            rotate_age: options.time("rotate_age", Duration::ZERO)?,
            keep: options.number("keep", 0, 0, 1_000_000)?,
            sync: options.time("sync", Duration::from_secs(1))?,
            mode: mode.ok_or_else(|| {
                OptionError::new(
                    "mode",
                    "must be octal permissions that let the owner write, such as \"0640\"",
                )
            })?,
        })
    }
}

impl File {
    fn new(plan: Plan, setting: &Setting) -> Self {
        let delivered = setting.delivered;
        let setting = setting.clone();
        Self {
            plan,
            setting,
            segment: None,
            gathered: Vec::new(),
            taken: delivered,
            delivered,
            told: delivered,
            failure: None,
            unsafe_since: None,
        }
    }

    fn segment(&mut self) -> io::Result<&mut Segment> {
        if self.segment.is_none() {
            let (segment, cut) = Segment::open(&self.plan)?;
            if cut > 0 {
                self.say(format!(
                    "{cut} bytes of an unfinished line were cut off \"{}\"",
                    self.plan.path.display()
                ));
            }
            self.segment = Some(segment);
        }
        // It was put there.
        self.segment.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn say(&self, line: String) {
        let Setting { stream, log, .. } = &self.setting;
        let log: &Log = log;
        log(format!("stream \"{stream}\": {line}"));
    }

    fn take(&mut self, event: &Event<'_>) -> io::Result<()> {
        self.segment()?;
        if self.is_full(event.payload.len() as u64 + 1) {
            self.rotate()?;
        }
        let start = self.gathered.len();
        self.gathered.extend_from_slice(event.payload);
        // What comes from elsewhere may be spread over lines; between the words of JSON a newline is as good as a space.
        for byte in &mut self.gathered[start..] {
            if *byte == b'\n' {
                *byte = b' ';
            }
        }
        self.gathered.push(b'\n');
        self.taken = event.serial;
        self.unsafe_since.get_or_insert_with(Instant::now);
        if self.gathered.len() >= GATHERED.min(self.setting.buffer_size) {
            self.write()?;
            self.sync_if_due()?;
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        if !self.gathered.is_empty() {
            let gathered = std::mem::take(&mut self.gathered);
            let written = self.segment()?.write(&gathered);
            self.gathered = gathered;
            self.gathered.clear();
            // One large event is no reason to keep so much for ever.
            self.gathered.shrink_to(GATHERED);
            written?;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.write()?;
        if let Some(segment) = &mut self.segment {
            segment.sync()?;
            if segment.has_gone() {
                self.segment = None;
            }
        }
        self.delivered = self.taken;
        self.unsafe_since = None;
        Ok(())
    }

    fn sync_if_due(&mut self) -> io::Result<()> {
        match self.unsafe_since {
            Some(since) if since.elapsed() >= self.plan.sync => self.sync(),
            _ => Ok(()),
        }
    }

    /// Whether the file must be rotated before a line of so many bytes.
    fn is_full(&self, line: u64) -> bool {
        let Some(segment) = &self.segment else { return false };
        let length = segment.length() + self.gathered.len() as u64;
        let Plan { rotate_size, rotate_age, .. } = self.plan;
        let large = rotate_size > 0 && length + line > rotate_size;
        let old = !rotate_age.is_zero() && segment.age() >= rotate_age;
        length > 0 && (large || old)
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.sync()?;
        self.segment = None;
        let rotated = Rotated::list(&self.plan.path, &self.plan.directory)?;
        rotated.add(&self.plan.path)?;
        segment::sync_directory(&self.plan.directory)?;
        // Those that stay too long do no harm to the stream.
        if let Err((path, error)) = rotated.keep(self.plan.keep) {
            self.say(format!("cannot remove \"{}\": {error}", path.display()));
        }
        self.segment().map(|_| ())
    }

    fn progress(&mut self, patience: Duration) -> io::Result<Progress> {
        // It may have been full or old without any event since.
        if self.segment.is_some() && self.is_full(0) {
            self.rotate()?;
        }
        self.write()?;
        self.sync_if_due()?;
        if let Some(since) = self.unsafe_since {
            std::thread::sleep(self.plan.sync.saturating_sub(since.elapsed()).min(patience));
            self.sync_if_due()?;
        }
        Ok(Progress { delivered: self.delivered, skipped: 0, trouble: None })
    }

    /// The sink ends. What is not delivered is cut off again, as far as that goes: it will come once more.
    fn failed(&mut self, error: &io::Error) -> Failure {
        if let Some(segment) = self.segment.take() {
            segment.cut_off_unsafe();
        }
        self.gathered = Vec::new();
        Failure { message: format!("cannot write \"{}\": {error}", self.plan.path.display()), lasting: false }
    }

    /// What is safe and was not told yet is told first, or it would come once more.
    fn ends(&mut self, failure: Failure) -> Result<(), Failure> {
        if self.told == self.delivered {
            return Err(failure);
        }
        self.failure = Some(failure);
        Ok(())
    }

    fn attempt<T>(&mut self, what: impl FnOnce(&mut Self) -> io::Result<T>) -> Result<T, Failure> {
        what(self).map_err(|error| self.failed(&error))
    }
}

impl Drop for File {
    /// What is not delivered comes once more: it is cut off, so that it is not there twice.
    fn drop(&mut self) {
        if self.delivered < self.taken
            && let Some(segment) = self.segment.take()
        {
            segment.cut_off_unsafe();
        }
    }
}

impl Sink for File {
    fn give(&mut self, event: &Event<'_>) -> Result<Given, Failure> {
        if self.failure.is_some() {
            return Ok(Given::Full);
        }
        match self.attempt(|file| file.take(event)) {
            Ok(()) => Ok(Given::Taken),
            Err(failure) => self.ends(failure).map(|()| Given::Full),
        }
    }

    fn flush(&mut self) -> Result<(), Failure> {
        if self.failure.is_some() {
            return Ok(());
        }
        self.attempt(Self::write).or_else(|failure| self.ends(failure))
    }

    fn poll(&mut self, patience: Duration) -> Result<Progress, Failure> {
        if self.failure.is_none() {
            match self.attempt(|file| file.progress(patience)) {
                Ok(progress) => {
                    self.told = progress.delivered;
                    return Ok(progress);
                }
                Err(failure) => self.ends(failure)?,
            }
        }
        if self.told < self.delivered {
            self.told = self.delivered;
            return Ok(Progress { delivered: self.delivered, skipped: 0, trouble: None });
        }
        let progress = Progress { delivered: self.delivered, skipped: 0, trouble: None };
        self.failure.take().map_or(Ok(progress), Err)
    }
}

/// With the path in the text: it is not always the one that the operator gave.
fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
