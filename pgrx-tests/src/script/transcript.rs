//! What the clients of one replay saw, and the difference of two. Runs in test programs.
//!
//! Hidden is only what differs between two connections to one server: process id and key in BackendKeyData, the process id
//! in NotificationResponse, and the object ids of what the script itself made, which are numbered by their first
//! appearance in RowDescription and ParameterDescription. Everything else counts, file and line of an error too.

use super::connection::Received;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// The first object id that initdb does not give (`FirstNormalObjectId`).
const FIRST_OWN_OID: u32 = 16384;

/// How much of a long text is shown.
const SHOWN: usize = 160;

/// One thing that a client saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub client: char,
    /// The script's line at which it was read; 0 is the end.
    pub line: usize,
    pub what: Received,
}

/// Everything, in the order in which it was read.
#[derive(Debug, Clone, Default)]
pub struct Transcript {
    pub events: Vec<Event>,
    oids: BTreeMap<u32, u32>,
}

impl Transcript {
    /// Adds what was received, with what must not be compared hidden.
    pub fn add(&mut self, client: char, line: usize, mut what: Received) {
        if let Received::Message { tag, body } = &mut what {
            match tag {
                b'K' => body.fill(b'*'),
                b'A' => body.iter_mut().take(4).for_each(|byte| *byte = b'*'),
                b'T' => self.number_columns(body),
                b't' => self.number_parameters(body),
                _ => {}
            }
        }
        self.events.push(Event { client, line, what });
    }

    /// Hides ports in texts: where the digits stand alone.
    pub fn mask_ports(&mut self, ports: &[u16]) {
        for event in &mut self.events {
            if let Received::Message { body, .. } = &mut event.what {
                ports.iter().for_each(|port| *body = without(body, port.to_string().as_bytes()));
            }
        }
    }

    /// From 16 on the server tells of what RESET ALL and DISCARD ALL change in the order in which the session's settings came to differ
    /// from their defaults, which in a pooled backend is not the client's.
    pub fn sort_what_a_reset_reports(&mut self) {
        let is_report = |event: &Event| matches!(&event.what, Received::Message { tag: b'S', .. });
        let is_reset = |event: &Event| {
            matches!(&event.what, Received::Message { tag: b'C', body }
                if body.as_slice() == b"RESET\0" || body.as_slice() == b"DISCARD ALL\0")
        };
        let clients: BTreeSet<char> = self.events.iter().map(|event| event.client).collect();
        for client in clients {
            let mut own: Vec<&mut Event> =
                self.events.iter_mut().filter(|event| event.client == client).collect();
            let mut at = 0;
            while let Some(reset) = own.iter().skip(at).position(|event| is_reset(event)) {
                let start = at + reset + 1;
                at = start + own.iter().skip(start).take_while(|event| is_report(event)).count();
                let mut bodies: Vec<_> = own[start..at].iter().map(|event| event.what.clone()).collect();
                bodies.sort_by_key(|what| match what {
                    Received::Message { body, .. } => body.clone(),
                    _ => Vec::new(),
                });
                for (event, what) in own[start..at].iter_mut().zip(bodies) {
                    event.what = what;
                }
            }
        }
    }

    /// The SQLSTATEs of all ErrorResponses, in order.
    pub fn errors(&self) -> Vec<String> {
        let state = |event: &Event| match &event.what {
            Received::Message { tag: b'E', body } => Some(field(body, b'C').unwrap_or_default()),
            _ => None,
        };
        self.events.iter().filter_map(state).collect()
    }

    /// Whether a message has the text in it.
    pub fn sees(&self, text: &str) -> bool {
        let has = |body: &[u8]| body.windows(text.len().max(1)).any(|part| part == text.as_bytes());
        self.events.iter().any(|event| matches!(&event.what, Received::Message { body, .. } if has(body)))
    }

    /// Whether a client waited for what did not come.
    pub fn is_stuck(&self) -> bool {
        self.events.iter().any(|event| event.what == Received::Silence)
    }

    pub(super) fn last_asks_for_a_password(&self) -> bool {
        self.events.last().is_some_and(
            |event| matches!(&event.what, Received::Message { tag: b'R', body } if body.as_slice() != [0; 4]),
        )
    }

    /// All of it, a line a message.
    pub fn text(&self) -> String {
        self.events.iter().map(|event| format!("{}\n", shown(event))).collect()
    }

    /// What two replays of one script differ in, for a reader; `None` when every client saw the same bytes. Clients are
    /// compared one by one.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let clients: BTreeSet<char> =
            self.events.iter().chain(&other.events).map(|event| event.client).collect();
        let mut text = String::new();
        for client in clients {
            let of = |transcript: &Self| -> Vec<Event> {
                transcript.events.iter().filter(|event| event.client == client).cloned().collect()
            };
            if let Some(difference) = difference(&of(self), &of(other)) {
                let _ = write!(text, "client {client}:\n{difference}");
            }
        }
        (!text.is_empty()).then_some(text)
    }

    /// Each field: name, table, column number, type, length, modifier, format.
    fn number_columns(&mut self, body: &mut [u8]) {
        let mut at = 2;
        while let Some(end) = body.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == 0)) {
            at += end + 1;
            self.number(body, at);
            self.number(body, at + 6);
            at += 18;
        }
    }

    fn number_parameters(&mut self, body: &mut [u8]) {
        for at in (2..body.len()).step_by(4) {
            self.number(body, at);
        }
    }

    fn number(&mut self, body: &mut [u8], at: usize) {
        let Some(place) = body.get_mut(at..at + 4) else { return };
        let oid = u32::from_be_bytes([place[0], place[1], place[2], place[3]]);
        if oid >= FIRST_OWN_OID {
            let next = u32::try_from(self.oids.len()).unwrap_or_default();
            let number = *self.oids.entry(oid).or_insert(next);
            place.copy_from_slice(&(u32::MAX - number).to_be_bytes());
        }
    }
}

/// An error that the front itself makes, where a server would make it, has no place in the server's source: the fields F, L and
/// R are missing. Everything else is as the server words it.
fn is_said_by_the_front(our: &Event, their: &Event) -> bool {
    let (ours, theirs) = match (&our.what, &their.what) {
        (Received::Message { tag: b'E', body: ours }, Received::Message { tag: b'E', body: theirs }) => {
            (&ours[..], &theirs[..])
        }
        // Behind a byte that was read for the answer to SSLRequest: the lengths, then the same.
        (Received::Closed { unfinished: ours }, Received::Closed { unfinished: theirs }) => {
            (ours.get(4..).unwrap_or_default(), theirs.get(4..).unwrap_or_default())
        }
        _ => return false,
    };
    let without_place: Vec<&[u8]> = ours
        .split(|byte| *byte == 0)
        .filter(|field| !matches!(field.first(), Some(b'F' | b'L' | b'R')))
        .collect();
    ours.starts_with(b"SFATAL\0") && without_place.join(&0) == *theirs
}

/// Three messages before the first difference, and six from there on.
fn difference(ours: &[Event], theirs: &[Event]) -> Option<String> {
    let same = |(our, their): &(&Event, &Event)| our.what == their.what || is_said_by_the_front(our, their);
    let first = ours.iter().zip(theirs).take_while(same).count();
    if first == ours.len() && first == theirs.len() {
        return None;
    }
    let mut text = String::new();
    for event in &ours[first.saturating_sub(3)..first] {
        let _ = writeln!(text, "    {}", shown(event));
    }
    for (sign, events) in [('-', ours), ('+', theirs)] {
        for event in events.iter().skip(first).take(6) {
            let _ = writeln!(text, "  {sign} {}", shown(event));
        }
        if events.len() == first {
            let _ = writeln!(text, "  {sign} (nothing)");
        }
    }
    if let (Some(our), Some(their)) = (ours.get(first), theirs.get(first)) {
        text.push_str(&first_byte(our, their));
    }
    Some(text)
}

/// Where two messages of one type part.
fn first_byte(our: &Event, their: &Event) -> String {
    let (Received::Message { tag, body: ours }, Received::Message { tag: other, body: theirs }) =
        (&our.what, &their.what)
    else {
        return String::new();
    };
    if tag != other {
        return String::new();
    }
    let at = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
    let around =
        |body: &[u8]| body[at.saturating_sub(20)..body.len().min(at + 20)].escape_ascii().to_string();
    format!(
        "    from byte {at} of {} and {}: {:?} and {:?}\n",
        ours.len(),
        theirs.len(),
        around(ours),
        around(theirs)
    )
}

fn shown(event: &Event) -> String {
    let place = if event.line == 0 { "end".to_owned() } else { event.line.to_string() };
    let what = match &event.what {
        Received::Message { tag, body } => format!("{} {}", type_name(*tag), content(*tag, body)),
        Received::Byte(byte) => format!("byte {:?}", char::from(*byte)),
        Received::Closed { unfinished } if unfinished.is_empty() => "closed".to_owned(),
        Received::Closed { unfinished } => format!("closed amid \"{}\"", cut(unfinished)),
        Received::Silence => "silence".to_owned(),
    };
    format!("{place:>4} {} {what}", event.client)
}

fn content(tag: u8, body: &[u8]) -> String {
    if matches!(tag, b'E' | b'N') {
        let fields = body.split(|byte| *byte == 0).filter(|field| !field.is_empty());
        let field = |field: &[u8]| format!("{}={}", char::from(field[0]), cut(&field[1..]));
        return fields.map(field).collect::<Vec<_>>().join(" ");
    }
    let length = if body.len() > SHOWN { format!(" ({} bytes)", body.len()) } else { String::new() };
    format!("\"{}\"{length}", cut(body))
}

fn cut(bytes: &[u8]) -> String {
    let dots = if bytes.len() > SHOWN { "..." } else { "" };
    format!("{}{dots}", bytes[..bytes.len().min(SHOWN)].escape_ascii())
}

/// A field of ErrorResponse or NoticeResponse.
fn field(body: &[u8], code: u8) -> Option<String> {
    let mut fields = body.split(|byte| *byte == 0);
    let found = fields.find(|field| field.first() == Some(&code))?;
    Some(String::from_utf8_lossy(&found[1..]).into_owned())
}

fn without(body: &[u8], digits: &[u8]) -> Vec<u8> {
    let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let mut bytes = Vec::with_capacity(body.len());
    let mut at = 0;
    while at < body.len() {
        let alone = !is_digit(bytes.last()) && !is_digit(body.get(at + digits.len()));
        if alone && body[at..].starts_with(digits) {
            bytes.extend_from_slice(b"PORT");
            at += digits.len();
        } else {
            bytes.push(body[at]);
            at += 1;
        }
    }
    bytes
}

/// Backend messages ("Message Formats").
const TYPES: [(u8, &str); 25] = [
    (b'R', "Authentication"),
    (b'K', "BackendKeyData"),
    (b'2', "BindComplete"),
    (b'3', "CloseComplete"),
    (b'C', "CommandComplete"),
    (b'd', "CopyData"),
    (b'c', "CopyDone"),
    (b'G', "CopyInResponse"),
    (b'H', "CopyOutResponse"),
    (b'W', "CopyBothResponse"),
    (b'D', "DataRow"),
    (b'I', "EmptyQueryResponse"),
    (b'E', "ErrorResponse"),
    (b'V', "FunctionCallResponse"),
    (b'v', "NegotiateProtocolVersion"),
    (b'n', "NoData"),
    (b'N', "NoticeResponse"),
    (b'A', "NotificationResponse"),
    (b't', "ParameterDescription"),
    (b'S', "ParameterStatus"),
    (b'1', "ParseComplete"),
    (b's', "PortalSuspended"),
    (b'Z', "ReadyForQuery"),
    (b'T', "RowDescription"),
    (b'?', "unknown"),
];

fn type_name(tag: u8) -> String {
    let known = TYPES.iter().find(|(byte, _)| *byte == tag);
    known.map_or_else(|| format!("type {:?}", char::from(tag)), |(_, name)| (*name).to_owned())
}

/// The type byte of a message that is given by its name or by the byte.
pub(super) fn type_byte(name: &str) -> Option<u8> {
    match name.as_bytes() {
        [byte] => Some(*byte),
        _ => TYPES.iter().find(|(_, known)| *known == name).map(|(byte, _)| *byte),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript(messages: &[(u8, &[u8])]) -> Transcript {
        let mut transcript = Transcript::default();
        for (line, (tag, body)) in messages.iter().enumerate() {
            transcript.add('A', line + 1, Received::Message { tag: *tag, body: body.to_vec() });
        }
        transcript
    }

    #[test]
    fn keys_and_nothing_else_may_differ() {
        let one = transcript(&[(b'K', b"\0\0\0\x01abcd"), (b'A', b"\0\0\0\x01news\0\0"), (b'Z', b"I")]);
        let other = transcript(&[(b'K', b"\0\0\0\x02efgh"), (b'A', b"\0\0\0\x02news\0\0"), (b'Z', b"I")]);
        assert_eq!(one.difference(&other), None);
        let other = transcript(&[(b'K', b"\0\0\0\x02efgh"), (b'A', b"\0\0\0\x02olds\0\0"), (b'Z', b"I")]);
        assert!(one.difference(&other).is_some());
    }

    #[test]
    fn a_difference_shows_the_message_and_the_byte() {
        let one = transcript(&[(b'C', b"SELECT 1\0"), (b'Z', b"I")]);
        let other = transcript(&[(b'C', b"SELECT 2\0"), (b'Z', b"I")]);
        let difference = one.difference(&other).unwrap();
        assert!(difference.contains("CommandComplete") && difference.contains("from byte 7"), "{difference}");
        let shorter = transcript(&[(b'C', b"SELECT 1\0")]);
        assert!(one.difference(&shorter).unwrap().contains("+ (nothing)"));
        assert!(shorter.difference(&one).unwrap().contains("- (nothing)"));
    }

    #[test]
    fn own_object_ids_are_numbered_and_the_system_s_kept() {
        let column = |table: u32, kind: u32| {
            let mut body = b"\0\x01a\0".to_vec();
            body.extend(table.to_be_bytes());
            body.extend([0, 1]);
            body.extend(kind.to_be_bytes());
            body.extend([0, 4, 0xff, 0xff, 0xff, 0xff, 0, 0]);
            body
        };
        let one = transcript(&[(b'T', &column(20001, 23)), (b'T', &column(20002, 23))]);
        let other = transcript(&[(b'T', &column(30007, 23)), (b'T', &column(30009, 23))]);
        assert_eq!(one.difference(&other), None);
        let other = transcript(&[(b'T', &column(30007, 23)), (b'T', &column(30007, 23))]);
        assert!(one.difference(&other).is_some());
        let other = transcript(&[(b'T', &column(20001, 25)), (b'T', &column(20002, 23))]);
        assert!(one.difference(&other).is_some());
    }

    #[test]
    fn only_the_reports_of_a_reset_are_in_any_order() {
        let same = |ours: &[(u8, &[u8])], theirs: &[(u8, &[u8])]| {
            let (mut ours, mut theirs) = (transcript(ours), transcript(theirs));
            ours.sort_what_a_reset_reports();
            theirs.sort_what_a_reset_reports();
            ours.difference(&theirs).is_none()
        };
        let [a, b] = [&b"a\0x\0"[..], b"b\0y\0"].map(|body| (b'S', body));
        for reset in [&b"RESET\0"[..], b"DISCARD ALL\0"] {
            let reset = (b'C', reset);
            assert!(
                same(&[reset, a, b], &[reset, b, a])
                    && same(&[reset, a, reset, b, a], &[reset, a, reset, a, b])
            );
            assert!(!same(&[reset, a, b], &[reset, a]) && !same(&[a, b, reset], &[b, a, reset]));
        }
        assert!(!same(&[(b'C', b"SET\0"), a, b], &[(b'C', b"SET\0"), b, a]));
    }

    #[test]
    fn a_port_is_masked_where_it_stands_alone() {
        let mut masked = transcript(&[(b'D', b"5432 15432 54321"), (b'D', b"x5432")]);
        masked.mask_ports(&[5432]);
        assert!(masked.sees("PORT 15432 54321") && masked.sees("xPORT"));
    }
}
