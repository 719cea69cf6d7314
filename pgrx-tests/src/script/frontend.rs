//! The messages that a client sends, as bytes ("Message Formats" in PostgreSQL's documentation). Nothing is checked: a
//! script may well send what is wrong. Runs in test programs.

/// One message, and what is to be waited for when it has been sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    pub bytes: Vec<u8>,
    /// How many `ReadyForQuery` it brings.
    pub owes: u32,
    /// The client reads until nothing is owed any more.
    pub reads: bool,
    /// It ends a COPY from the client, so that a CopyInResponse before it is nothing to stop at.
    pub ends_copy: bool,
    /// The client reads until the server closes the connection.
    pub closes: bool,
}

impl Message {
    /// Any bytes.
    pub fn raw(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }

    /// A type byte, the length, and the body.
    pub fn typed(tag: u8, body: &[u8]) -> Self {
        let mut bytes = vec![tag];
        bytes.extend(length(body.len() + 4));
        bytes.extend(body);
        Self::raw(bytes)
    }

    /// The first packet: version (major and minor) and parameters in the order given.
    pub fn startup(version: (u16, u16), parameters: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let mut body = version.0.to_be_bytes().to_vec();
        body.extend(version.1.to_be_bytes());
        for (name, value) in parameters {
            body.extend(string(name));
            body.extend(string(value));
        }
        body.push(0);
        Self::untyped(&body)
    }

    /// CancelRequest for a key: what followed the process id in BackendKeyData.
    pub fn cancel(process: &[u8], key: &[u8]) -> Self {
        Self::untyped(&[&80_877_102_u32.to_be_bytes(), process, key].concat())
    }

    /// SSLRequest (80877103) and GSSENCRequest (80877104): a number and nothing else.
    pub fn request(code: u32) -> Self {
        Self::untyped(&code.to_be_bytes())
    }

    fn untyped(body: &[u8]) -> Self {
        let mut bytes = length(body.len() + 4).to_vec();
        bytes.extend(body);
        Self::raw(bytes)
    }

    pub fn query(sql: &[u8]) -> Self {
        Self::typed(b'Q', &string(sql)).answered()
    }

    pub fn parse(name: &[u8], sql: &[u8], types: &[u32]) -> Self {
        let mut body = [string(name), string(sql)].concat();
        body.extend(count(types.len()));
        types.iter().for_each(|oid| body.extend(oid.to_be_bytes()));
        Self::typed(b'P', &body)
    }

    /// A parameter that is `None` is NULL.
    pub fn bind(
        portal: &[u8],
        statement: &[u8],
        parameters: &[Option<Vec<u8>>],
        formats: &[u16],
        results: &[u16],
    ) -> Self {
        let mut body = [string(portal), string(statement)].concat();
        body.extend(list(formats));
        body.extend(values(parameters));
        body.extend(list(results));
        Self::typed(b'B', &body)
    }

    /// `kind` is `S` or `P`.
    pub fn describe(kind: u8, name: &[u8]) -> Self {
        Self::typed(b'D', &[&[kind], string(name).as_slice()].concat())
    }

    /// `kind` is `S` or `P`.
    pub fn close(kind: u8, name: &[u8]) -> Self {
        Self::typed(b'C', &[&[kind], string(name).as_slice()].concat())
    }

    /// At most so many rows; 0 is all.
    pub fn execute(portal: &[u8], rows: u32) -> Self {
        Self::typed(b'E', &[string(portal).as_slice(), &rows.to_be_bytes()].concat())
    }

    pub fn flush() -> Self {
        Self::typed(b'H', &[])
    }

    pub fn sync() -> Self {
        Self::typed(b'S', &[]).answered()
    }

    pub fn function_call(oid: u32, arguments: &[Option<Vec<u8>>], formats: &[u16], result: u16) -> Self {
        let mut body = oid.to_be_bytes().to_vec();
        body.extend(list(formats));
        body.extend(values(arguments));
        body.extend(result.to_be_bytes());
        Self::typed(b'F', &body).answered()
    }

    pub fn copy_data(data: &[u8]) -> Self {
        Self::typed(b'd', data)
    }

    pub fn copy_done() -> Self {
        Self { reads: true, ends_copy: true, ..Self::typed(b'c', &[]) }
    }

    pub fn copy_fail(why: &[u8]) -> Self {
        Self { reads: true, ends_copy: true, ..Self::typed(b'f', &string(why)) }
    }

    pub fn terminate() -> Self {
        Self { closes: true, ..Self::typed(b'X', &[]) }
    }

    /// This one and the next in one write.
    pub fn then(mut self, next: Self) -> Self {
        self.bytes.extend(next.bytes);
        self.owes += next.owes;
        self.reads |= next.reads;
        self.ends_copy |= next.ends_copy;
        self.closes |= next.closes;
        self
    }

    fn answered(self) -> Self {
        Self { owes: 1, reads: true, ..self }
    }
}

/// Scripts are short: a length that does not fit is sent as the largest one.
fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

fn count(count: usize) -> [u8; 2] {
    u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes()
}

fn string(text: &[u8]) -> Vec<u8> {
    [text, &[0]].concat()
}

fn list(formats: &[u16]) -> Vec<u8> {
    let mut bytes = count(formats.len()).to_vec();
    formats.iter().for_each(|format| bytes.extend(format.to_be_bytes()));
    bytes
}

fn values(values: &[Option<Vec<u8>>]) -> Vec<u8> {
    let mut bytes = count(values.len()).to_vec();
    for value in values {
        match value {
            None => bytes.extend((-1_i32).to_be_bytes()),
            Some(value) => {
                bytes.extend(length(value.len()));
                bytes.extend(value);
            }
        }
    }
    bytes
}
