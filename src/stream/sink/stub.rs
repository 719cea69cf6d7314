//! Sinks that deliver nowhere: `stub_discard` only counts, `stub_log` writes each event to the server's log, cut where it is long. For
//! trying a source, and for measuring. Engine's thread.

use super::{Event, Failure, Given, Log, Progress, Setting, Sink};
use crate::stream::lines;
use crate::stream::options::{OptionError, Options};
use std::time::Duration;

struct Stub {
    progress: Progress,
    log: Option<Log>,
}

pub(super) fn discard(
    _options: &mut Options,
    setting: Option<&Setting>,
) -> Result<Option<Box<dyn Sink>>, OptionError> {
    Ok(setting.map(|setting| stub(setting, None)))
}

pub(super) fn log(
    _options: &mut Options,
    setting: Option<&Setting>,
) -> Result<Option<Box<dyn Sink>>, OptionError> {
    Ok(setting.map(|setting| stub(setting, Some(setting.log.clone()))))
}

fn stub(setting: &Setting, log: Option<Log>) -> Box<dyn Sink> {
    Box::new(Stub { progress: Progress { delivered: setting.delivered, ..Progress::default() }, log })
}

impl Sink for Stub {
    fn give(&mut self, event: &Event<'_>) -> Result<Given, Failure> {
        if let Some(log) = &self.log {
            log(lines::cut(event.payload));
        }
        self.progress.delivered = event.serial;
        Ok(Given::Taken)
    }

    fn flush(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn poll(&mut self, _patience: Duration) -> Result<Progress, Failure> {
        Ok(self.progress.clone())
    }
}
