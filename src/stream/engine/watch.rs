//! What the engine counts of each event that it hands over, and says of it while somebody has switched debugging on. Engine's thread.

use crate::stream::position::Position;
use crate::stream::shared::{Header, Source, Stream};
use crate::stream::sink::Event;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// Where that goes.
pub struct Watch {
    pub header: &'static Header,
    pub source: &'static Source,
    /// To main, which logs; what finds it full is dropped and counted.
    pub line: SyncSender<String>,
}

impl Watch {
    /// A stream has taken an event.
    pub(super) fn given(&self, stream: &Stream, position: Position, event: &Event<'_>, time: Duration) {
        stream.timings.add(time);
        if self.header.debug.load(Relaxed) == 1 {
            self.say(line(&stream.name.text(), position, event));
        }
    }

    /// Every stream has.
    pub(super) fn done(&self, time: Duration) {
        self.source.timings.add(time);
    }

    fn say(&self, line: String) {
        if self.line.try_send(line).is_err() {
            self.header.lines_dropped.fetch_add(1, Relaxed);
        }
    }
}

/// Not what the event says: who reads the server's log need not be allowed to read the table.
fn line(stream: &str, position: Position, event: &Event<'_>) -> String {
    let what = match event.table {
        "" => "an event of no table".to_owned(),
        table => format!("an event of {}.{table}", event.schema),
    };
    format!("debug: stream \"{stream}\" was given {what} at {position}, {} bytes", event.payload.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::position::Lsn;
    use std::sync::mpsc::sync_channel;

    fn leaked<T: Default>() -> &'static T {
        Box::leak(Box::default())
    }

    #[test]
    fn events_are_said_while_debugging_is_on_without_their_content_and_lines_beyond_the_queue_are_counted() {
        let (line, lines) = sync_channel(1);
        let watch = Watch { header: leaked(), source: leaked(), line };
        let stream: &Stream = leaked();
        stream.name.set(b"a to b");
        let event = Event { serial: 1, schema: "public", table: "T", key: None, payload: br#"{"secret":1}"# };
        let at = Position { commit: Lsn(0x1_0000_0010), ordinal: 7 };
        let time = Duration::from_millis(1);
        watch.given(stream, at, &event, time);
        assert!(lines.try_recv().is_err(), "debugging is off");
        watch.header.debug.store(1, Relaxed);
        watch.given(stream, at, &event, time);
        watch.given(stream, at, &event, time);
        assert_eq!(
            lines.try_recv().unwrap(),
            "debug: stream \"a to b\" was given an event of public.T at 1/10:7, 12 bytes"
        );
        assert_eq!(watch.header.lines_dropped.load(Relaxed), 1);
        watch.done(time);
        assert_eq!((stream.timings.get().count, watch.source.timings.get().count), (3, 1));
    }
}
