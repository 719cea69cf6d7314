//! What the engine counts of each event that it hands over, and says of it while somebody has switched debugging on. Engine's thread.

use crate::stream::lines::Lines;
use crate::stream::position::Position;
use crate::stream::shared::{Header, Source, Stream};
use crate::stream::sink::Event;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Where that goes.
pub struct Watch {
    pub header: &'static Header,
    pub source: &'static Source,
    pub lines: Lines,
}

impl Watch {
    /// A stream has taken an event.
    pub(super) fn given(
        &self,
        stream: &Stream,
        position: Option<Position>,
        event: &Event<'_>,
        time: Duration,
    ) {
        stream.timings.add(time);
        if self.header.debug.load(Relaxed) == 1 {
            self.lines.say(line(&stream.name.text(), position, event));
        }
    }

    /// Every stream has.
    pub(super) fn done(&self, time: Duration) {
        self.source.timings.add(time);
    }
}

/// Not what the event says: who reads the server's log need not be allowed to read the table.
fn line(stream: &str, position: Option<Position>, event: &Event<'_>) -> String {
    let what = match (event.schema, event.table) {
        (_, "") => "an event of no table".to_owned(),
        ("", table) => format!("an event of {table}"),
        (schema, table) => format!("an event of {schema}.{table}"),
    };
    let at = position.map_or_else(String::new, |position| format!(" at {position}"));
    format!("debug: stream \"{stream}\" was given {what}{at}, {} bytes", event.payload.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::lines::{WAITING, lines};
    use crate::stream::position::Lsn;

    fn leaked<T: Default>() -> &'static T {
        Box::leak(Box::default())
    }

    #[test]
    fn events_are_said_while_debugging_is_on_without_their_content_and_lines_beyond_the_queue_are_counted() {
        let header = leaked();
        let (lines, waiting) = lines(header);
        let watch = Watch { header, source: leaked(), lines };
        let stream: &Stream = leaked();
        stream.name.set(b"a to b");
        let event = Event { serial: 1, schema: "public", table: "T", key: None, payload: br#"{"secret":1}"# };
        let at = Some(Position { commit: Lsn(0x1_0000_0010), ordinal: 7 });
        let time = Duration::from_millis(1);
        watch.given(stream, at, &event, time);
        assert!(waiting.take().is_empty(), "debugging is off");
        watch.header.debug.store(1, Relaxed);
        watch.given(stream, at, &event, time);
        watch.given(stream, None, &Event { schema: "", ..event }, time);
        assert_eq!(
            waiting.take(),
            [
                "debug: stream \"a to b\" was given an event of public.T at 1/10:7, 12 bytes",
                "debug: stream \"a to b\" was given an event of T, 12 bytes"
            ]
        );
        (0..=WAITING).for_each(|_| watch.given(stream, at, &event, time));
        assert_eq!(watch.header.lines_dropped.load(Relaxed), 1);
        watch.done(time);
        assert_eq!((stream.timings.get().count, watch.source.timings.get().count), (4 + WAITING as u64, 1));
    }
}
