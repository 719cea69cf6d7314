//! Messages as bytes, appended to a buffer: those that the front sends to a client, and those that it sends to the server
//! when it opens a pooled connection. Pure.

/// An ErrorResponse or NoticeResponse, in the fields that the server sends for every one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// `ERROR`, `FATAL` or `WARNING`, never translated. Empty for a client of a protocol before 3, which knows no fields.
    pub severity: &'static str,
    pub sqlstate: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// Source file, line and routine, where the server has them.
    pub place: Option<(String, u32, String)>,
}

impl Report {
    pub fn fatal(sqlstate: &str, message: impl Into<String>) -> Self {
        Self { severity: "FATAL", sqlstate: sqlstate.to_owned(), message: message.into(), ..Self::default() }
    }

    pub fn error(sqlstate: &str, message: impl Into<String>) -> Self {
        Self { severity: "ERROR", sqlstate: sqlstate.to_owned(), message: message.into(), ..Self::default() }
    }

    /// For a client of a protocol before 3.
    pub fn before_protocol_3(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// As an ErrorResponse. Before protocol 3 that was a letter, a line and a zero byte.
    pub fn to_bytes(&self) -> Vec<u8> {
        if self.severity.is_empty() {
            return format!("EFATAL:  {}\n\0", self.message).into_bytes();
        }
        let mut bytes = Vec::new();
        error_response(&mut bytes, self);
        bytes
    }
}

/// Appends one message: its type, its length, and what `body` appends.
pub fn put(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    put_untyped(out, body);
}

/// Appends a length word and what `body` appends, as a startup packet is.
pub fn put_untyped(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; 4]);
    body(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends a terminated string; a NUL inside it ends it early.
pub fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    out.extend(&text[..end]);
    out.push(0);
}

pub fn error_response(out: &mut Vec<u8>, report: &Report) {
    put_report(out, b'E', report);
}

pub fn notice_response(out: &mut Vec<u8>, report: &Report) {
    put_report(out, b'N', report);
}

fn put_report(out: &mut Vec<u8>, tag: u8, report: &Report) {
    put(out, tag, |out| {
        let mut field = |code: u8, text: &str| {
            out.push(code);
            put_string(out, text.as_bytes());
        };
        field(b'S', report.severity);
        field(b'V', report.severity);
        field(b'C', &report.sqlstate);
        field(b'M', &report.message);
        if let Some(detail) = &report.detail {
            field(b'D', detail);
        }
        if let Some(hint) = &report.hint {
            field(b'H', hint);
        }
        if let Some((file, line, routine)) = &report.place {
            field(b'F', file);
            field(b'L', &line.to_string());
            field(b'R', routine);
        }
        out.push(0);
    });
}

/// What an Authentication message asks for, with the codes of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication<'a> {
    Ok,
    CleartextPassword,
    Md5Password([u8; 4]),
    /// The mechanisms' names, the preferred one first.
    Sasl(&'a [&'a str]),
    SaslContinue(&'a [u8]),
    SaslFinal(&'a [u8]),
}

/// AuthenticationOk as a whole message.
pub const AUTHENTICATION_OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";

pub fn authentication(out: &mut Vec<u8>, request: &Authentication<'_>) {
    put(out, b'R', |out| {
        let (code, data): (u32, &[u8]) = match request {
            Authentication::Ok => (0, &[]),
            Authentication::CleartextPassword => (3, &[]),
            Authentication::Md5Password(salt) => (5, salt),
            Authentication::Sasl(_) => (10, &[]),
            Authentication::SaslContinue(data) => (11, data),
            Authentication::SaslFinal(data) => (12, data),
        };
        out.extend(code.to_be_bytes());
        out.extend(data);
        if let Authentication::Sasl(mechanisms) = request {
            for mechanism in *mechanisms {
                put_string(out, mechanism.as_bytes());
            }
            out.push(0);
        }
    });
}

pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    put(out, b'S', |out| {
        put_string(out, name.as_bytes());
        put_string(out, value.as_bytes());
    });
}

pub fn backend_key_data(out: &mut Vec<u8>, pid: u32, key: &[u8]) {
    put(out, b'K', |out| {
        out.extend(pid.to_be_bytes());
        out.extend(key);
    });
}

/// `status` is I, T or E.
pub fn ready_for_query(out: &mut Vec<u8>, status: u8) {
    put(out, b'Z', |out| out.push(status));
}

/// NegotiateProtocolVersion: the minor version that will be spoken, which is no newer than what the client asked for, and the options
/// that are not known.
pub fn negotiate_protocol_version(out: &mut Vec<u8>, minor: u16, unrecognized: &[Vec<u8>]) {
    put(out, b'v', |out| {
        out.extend(((3u32 << 16) | u32::from(minor)).to_be_bytes());
        out.extend(u32::try_from(unrecognized.len()).unwrap_or(u32::MAX).to_be_bytes());
        for name in unrecognized {
            put_string(out, name);
        }
    });
}

/// A startup packet of protocol 3.0.
pub fn startup(out: &mut Vec<u8>, parameters: &[(&[u8], &[u8])]) {
    put_untyped(out, |out| {
        out.extend((3u32 << 16).to_be_bytes());
        for (name, value) in parameters {
            put_string(out, name);
            put_string(out, value);
        }
        out.push(0);
    });
}

/// A CancelRequest.
pub fn cancel_request(out: &mut Vec<u8>, pid: u32, key: &[u8]) {
    put_untyped(out, |out| {
        out.extend(((1234u32 << 16) | 5678).to_be_bytes());
        out.extend(pid.to_be_bytes());
        out.extend(key);
    });
}

/// A PasswordMessage: a password, an md5 answer, or the text of a SASL message.
pub fn password(out: &mut Vec<u8>, data: &[u8]) {
    put(out, b'p', |out| out.extend(data));
}

/// A column of a RowDescription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column<'a> {
    pub name: &'a str,
    /// The OID of its type, and the type's length (-1 is variable).
    pub type_oid: u32,
    pub type_length: i16,
}

/// A RowDescription of values sent as text.
pub fn row_description(out: &mut Vec<u8>, columns: &[Column<'_>]) {
    row_description_in(out, columns, |_| 0);
}

/// A RowDescription; `format` gives the format code of a column by its place: 0 is text, 1 binary.
pub fn row_description_in(out: &mut Vec<u8>, columns: &[Column<'_>], format: impl Fn(usize) -> u16) {
    put(out, b'T', |out| {
        out.extend(u16::try_from(columns.len()).unwrap_or(u16::MAX).to_be_bytes());
        for (place, column) in columns.iter().enumerate() {
            put_string(out, column.name.as_bytes());
            out.extend([0; 6]);
            out.extend(column.type_oid.to_be_bytes());
            out.extend(column.type_length.to_be_bytes());
            out.extend((-1i32).to_be_bytes());
            out.extend(format(place).to_be_bytes());
        }
    });
}

/// A DataRow whose values are not text: `value` appends the bytes of a column by its place and says whether there is a
/// value; without one it is NULL.
pub fn data_row_with(out: &mut Vec<u8>, columns: usize, value: impl Fn(usize, &mut Vec<u8>) -> bool) {
    put(out, b'D', |out| {
        out.extend(u16::try_from(columns).unwrap_or(u16::MAX).to_be_bytes());
        for place in 0..columns {
            let start = out.len();
            out.extend((-1i32).to_be_bytes());
            if value(place, out) {
                let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
                out[start..start + 4].copy_from_slice(&length.to_be_bytes());
            } else {
                out.truncate(start + 4);
            }
        }
    });
}

/// The types of a statement's parameters.
pub fn parameter_description(out: &mut Vec<u8>, type_oids: &[u32]) {
    put(out, b't', |out| {
        out.extend(u16::try_from(type_oids.len()).unwrap_or(u16::MAX).to_be_bytes());
        for oid in type_oids {
            out.extend(oid.to_be_bytes());
        }
    });
}

pub fn data_row(out: &mut Vec<u8>, values: &[Option<String>]) {
    put(out, b'D', |out| {
        out.extend(u16::try_from(values.len()).unwrap_or(u16::MAX).to_be_bytes());
        for value in values {
            match value {
                Some(text) => {
                    out.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
                    out.extend(text.as_bytes());
                }
                None => out.extend((-1i32).to_be_bytes()),
            }
        }
    });
}

pub fn command_complete(out: &mut Vec<u8>, tag: &str) {
    put(out, b'C', |out| put_string(out, tag.as_bytes()));
}

/// A message without a body: ParseComplete (1), BindComplete (2), CloseComplete (3), NoData (n), EmptyQueryResponse (I),
/// PortalSuspended (s).
pub fn bodiless(out: &mut Vec<u8>, tag: u8) {
    put(out, tag, |_| ());
}

/// The fields of an ErrorResponse's body that somebody reads: SQLSTATE and message.
pub fn read_error(body: &[u8]) -> (String, String) {
    let mut found = (String::new(), String::new());
    for field in body.split(|byte| *byte == 0) {
        match field.split_first() {
            Some((b'C', text)) => found.0 = String::from_utf8_lossy(text).into_owned(),
            Some((b'M', text)) => found.1 = String::from_utf8_lossy(text).into_owned(),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_its_fields_in_the_servers_order() {
        let bytes = Report::fatal("53300", "too many").with_detail("d").with_hint("h").to_bytes();
        assert_eq!(bytes, b"E\0\0\0\x2aSFATAL\0VFATAL\0C53300\0Mtoo many\0Dd\0Hh\0\0");
        assert_eq!(read_error(&bytes[5..]), ("53300".into(), "too many".into()));
    }

    #[test]
    fn a_length_counts_itself_and_the_body() {
        let mut out = vec![9];
        ready_for_query(&mut out, b'I');
        assert_eq!(out, b"\x09Z\0\0\0\x05I");
        out.clear();
        authentication(&mut out, &Authentication::Sasl(&["SCRAM-SHA-256"]));
        assert_eq!(out, b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0");
    }

    #[test]
    fn a_row_has_its_lengths_and_nulls() {
        let mut out = Vec::new();
        data_row_with(&mut out, 2, |place, out| {
            out.extend([7, 8]);
            place == 0
        });
        assert_eq!(out, b"D\0\0\0\x10\0\x02\0\0\0\x02\x07\x08\xff\xff\xff\xff");
        let mut text = Vec::new();
        data_row(&mut text, &[Some("\x07\x08".into()), None]);
        assert_eq!(out, text);
    }

    #[test]
    fn a_startup_packet_is_read_back() {
        let mut out = Vec::new();
        startup(&mut out, &[(b"user", b"a"), (b"database", b"b")]);
        let body = &out[4..];
        assert_eq!(super::super::startup::body_length(*out.first_chunk().unwrap()).unwrap(), body.len());
        let parsed = super::super::startup::parse(body, 0).unwrap();
        assert!(matches!(parsed, super::super::startup::Startup::Session(m) if m.database == b"b"));
    }
}
