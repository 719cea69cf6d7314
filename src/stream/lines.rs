//! Lines for the server's log, from threads that may not write it to main, which does. Bounded in number and in length; what finds the queue
//! full is dropped, counted, and said.

use super::shared::Header;
use super::sink::Log;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Lines that may wait.
pub const WAITING: usize = 256;

/// Bytes of a line; of a longer one its beginning is shown, and how much is not.
pub const LONGEST: usize = 8 << 10;

/// The threads' end.
#[derive(Clone)]
pub struct Lines {
    queue: SyncSender<String>,
    /// Since main has looked.
    dropped: Arc<AtomicU64>,
    header: &'static Header,
}

/// Main's end.
pub struct Waiting {
    queue: Receiver<String>,
    dropped: Arc<AtomicU64>,
}

/// A queue.
pub fn lines(header: &'static Header) -> (Lines, Waiting) {
    let (queue, waiting) = sync_channel(WAITING);
    let dropped = Arc::new(AtomicU64::new(0));
    (Lines { queue, dropped: Arc::clone(&dropped), header }, Waiting { queue: waiting, dropped })
}

impl Lines {
    pub fn say(&self, line: String) {
        let line = if line.len() > LONGEST { cut(line.as_bytes()) } else { line };
        if self.queue.try_send(line).is_err() {
            self.header.lines_dropped.fetch_add(1, Relaxed);
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// For sinks and sources.
    pub fn log(&self) -> Log {
        let lines = self.clone();
        Arc::new(move |line| lines.say(line))
    }
}

impl Waiting {
    /// What waits, and how many found no place since this was called last.
    pub fn take(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.queue.try_iter().take(WAITING).collect();
        match self.dropped.swap(0, Relaxed) {
            0 => {}
            dropped => lines.push(format!("{dropped} lines were dropped: {WAITING} waited already")),
        }
        lines
    }
}

/// A text as a line shows it: what is too long is cut, and how much is said. What is not UTF-8 is replaced.
pub fn cut(text: &[u8]) -> String {
    if text.len() <= LONGEST {
        return String::from_utf8_lossy(text).into_owned();
    }
    // Room for what is said behind it; between two characters.
    let end = LONGEST - 64;
    let end = (end - 3..=end).rev().find(|end| text[*end] & 0xc0 != 0x80).unwrap_or(end);
    let mut line = String::from_utf8_lossy(&text[..end]).into_owned();
    line.truncate(line.floor_char_boundary(LONGEST - 64));
    line.push_str(&format!("… (cut: {} bytes more)", text.len() - end));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_queue_are_counted_and_said() {
        let header: &'static Header = Box::leak(Box::default());
        let (lines, waiting) = lines(header);
        let log = lines.log();
        for number in 0..WAITING {
            lines.say(number.to_string());
        }
        log("one too many".to_owned());
        lines.say("another".to_owned());
        assert_eq!(header.lines_dropped.load(Relaxed), 2);
        let taken = waiting.take();
        assert_eq!(taken.len(), WAITING + 1);
        assert_eq!(taken.last().map(String::as_str), Some("2 lines were dropped: 256 waited already"));
        log("there is room".to_owned());
        assert_eq!(waiting.take(), ["there is room"]);
    }

    #[test]
    fn a_long_line_is_cut_and_says_how_much() {
        let (lines, waiting) = lines(Box::leak(Box::default()));
        lines.say("ü".repeat(1 << 20));
        lines.say("x".repeat(LONGEST));
        let taken = waiting.take();
        assert!(taken[0].len() <= LONGEST && taken[1].len() == LONGEST, "{}", taken[0].len());
        assert!(taken[0].starts_with("üü") && !taken[0].contains('\u{fffd}'));
        let shown = taken[0].matches('ü').count() * 2;
        assert!(
            taken[0].ends_with(&format!("ü… (cut: {} bytes more)", (2 << 20) - shown)),
            "{}",
            &taken[0][8000..]
        );
        assert!(cut(&vec![0xff; 1 << 20]).len() <= LONGEST);
    }
}
