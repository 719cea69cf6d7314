//! The bodies of a client's query messages (documentation, "Message Formats"), read as the server reads them
//! (pq_getmsgstring() and pq_getmsgend() in src/backend/libpq/pqformat.c). Pure.

use super::Error;

/// Parse: a statement's name (empty is the unnamed one), its text, and the types given for its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parse<'a> {
    pub statement: &'a [u8],
    pub query: &'a [u8],
    pub types: Vec<u32>,
}

/// Bind, without the values of its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind<'a> {
    pub portal: &'a [u8],
    pub statement: &'a [u8],
    /// How many parameters have a value.
    pub parameters: usize,
    /// Format codes of the result's columns: none, one for all, or one each.
    pub formats: Vec<u16>,
}

/// How a column's values are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Format {
    Text = 0,
    Binary = 1,
}

/// What a Describe or Close names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named<'a> {
    Statement(&'a [u8]),
    Portal(&'a [u8]),
}

/// Execute: a portal and how many rows at most; 0 and less is all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Execute<'a> {
    pub portal: &'a [u8],
    pub rows: i32,
}

/// The text of a Query.
///
/// # Errors
/// [`Error::MessageFormat`], here and below, where the body is shorter or longer than it says.
pub fn query(body: &[u8]) -> Result<&[u8], Error> {
    let mut rest = Rest(body);
    let text = rest.string()?;
    rest.end(text)
}

/// # Errors
/// See [`query`].
pub fn parse(body: &[u8]) -> Result<Parse<'_>, Error> {
    let mut rest = Rest(body);
    let statement = rest.string()?;
    let query = rest.string()?;
    let types = (0..rest.u16()?).map(|_| rest.u32()).collect::<Result<_, _>>()?;
    rest.end(Parse { statement, query, types })
}

/// # Errors
/// See [`query`].
pub fn bind(body: &[u8]) -> Result<Bind<'_>, Error> {
    let mut rest = Rest(body);
    let portal = rest.string()?;
    let statement = rest.string()?;
    for _ in 0..rest.u16()? {
        rest.u16()?;
    }
    let parameters = rest.u16()?;
    for _ in 0..parameters {
        // -1 is NULL; any other negative length is refused by the server too.
        match i32::from_be_bytes(rest.u32()?.to_be_bytes()) {
            -1 => {}
            length => {
                rest.bytes(usize::try_from(length).map_err(|_| Error::MessageFormat)?)?;
            }
        }
    }
    let formats = (0..rest.u16()?).map(|_| rest.u16()).collect::<Result<_, _>>()?;
    rest.end(Bind { portal, statement, parameters: usize::from(parameters), formats })
}

impl Bind<'_> {
    /// Checks a Bind to a statement that takes no parameters.
    ///
    /// # Errors
    /// [`Error::BindParameters`].
    pub fn check_no_parameters(&self) -> Result<(), Error> {
        match self.parameters {
            0 => Ok(()),
            count => Err(Error::BindParameters(count, String::from_utf8_lossy(self.statement).into_owned())),
        }
    }

    /// One format for each of so many columns, as PortalSetResultFormat() (src/backend/tcop/pquery.c) reads the codes; without
    /// columns nobody looks at them.
    ///
    /// # Errors
    /// [`Error::FormatCode`] and [`Error::Formats`].
    pub fn formats_for(&self, columns: usize) -> Result<Vec<Format>, Error> {
        let format = |code: &u16| match code {
            0 => Ok(Format::Text),
            1 => Ok(Format::Binary),
            other => Err(Error::FormatCode(*other)),
        };
        match &self.formats[..] {
            _ if columns == 0 => Ok(Vec::new()),
            [] => Ok(vec![Format::Text; columns]),
            [code] => Ok(vec![format(code)?; columns]),
            codes if codes.len() == columns => codes.iter().map(format).collect(),
            codes => Err(Error::Formats(codes.len(), columns)),
        }
    }
}

/// The body of a Describe or a Close.
///
/// # Errors
/// See [`query`].
pub fn named(body: &[u8]) -> Result<Named<'_>, Error> {
    let (kind, name) = body.split_first().ok_or(Error::MessageFormat)?;
    let mut rest = Rest(name);
    let name = rest.string()?;
    match kind {
        b'S' => rest.end(Named::Statement(name)),
        b'P' => rest.end(Named::Portal(name)),
        _ => Err(Error::MessageFormat),
    }
}

/// # Errors
/// See [`query`].
pub fn execute(body: &[u8]) -> Result<Execute<'_>, Error> {
    let mut rest = Rest(body);
    let portal = rest.string()?;
    let rows = i32::from_be_bytes(rest.u32()?.to_be_bytes());
    rest.end(Execute { portal, rows })
}

/// What of a body is not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Error::MessageFormat)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, Error> {
        let (word, rest) = self.0.split_first_chunk().ok_or(Error::MessageFormat)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*word))
    }

    fn u32(&mut self) -> Result<u32, Error> {
        let (word, rest) = self.0.split_first_chunk().ok_or(Error::MessageFormat)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*word))
    }

    fn string(&mut self) -> Result<&'a [u8], Error> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Error::MessageFormat)?;
        let text = self.bytes(end)?;
        self.bytes(1)?;
        Ok(text)
    }

    fn end<T>(&self, read: T) -> Result<T, Error> {
        if self.0.is_empty() { Ok(read) } else { Err(Error::MessageFormat) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bodies_are_read_as_they_were_meant() {
        assert_eq!(query(b"show pools\0"), Ok(&b"show pools"[..]));
        let read = parse(b"s\0select $1\0\0\x01\0\0\0\x17").unwrap();
        assert_eq!((read.statement, read.query, read.types), (&b"s"[..], &b"select $1"[..], vec![23]));
        let read = bind(b"p\0s\0\0\x01\0\x01\0\x02\xff\xff\xff\xff\0\0\0\x01x\0\x02\0\0\0\x01").unwrap();
        assert_eq!((read.portal, read.statement, read.parameters), (&b"p"[..], &b"s"[..], 2));
        assert_eq!(read.formats, [0, 1]);
        assert_eq!(named(b"Sx\0"), Ok(Named::Statement(b"x")));
        assert_eq!(named(b"P\0"), Ok(Named::Portal(b"")));
        assert_eq!(execute(b"\0\0\0\0\x05"), Ok(Execute { portal: b"", rows: 5 }));
    }

    #[test]
    fn a_body_too_short_or_too_long_is_refused() {
        for body in [&b""[..], b"show", b"show\0 more", b"\0\0"] {
            assert_eq!(query(body), Err(Error::MessageFormat), "{body:?}");
        }
        assert_eq!(parse(b"\0x\0\0\x01"), Err(Error::MessageFormat));
        assert_eq!(bind(b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0"), Err(Error::MessageFormat), "length -2");
        assert_eq!(named(b"Xa\0"), Err(Error::MessageFormat));
        assert_eq!(execute(b"\0\0\0\0"), Err(Error::MessageFormat));
    }

    #[test]
    fn every_column_has_a_format_or_the_bind_is_refused() {
        let formats = |codes: &[u16], columns| {
            let bind = Bind { portal: b"", statement: b"s", parameters: 0, formats: codes.to_vec() };
            bind.formats_for(columns)
        };
        use Format::{Binary, Text};
        assert_eq!(formats(&[], 2), Ok(vec![Text, Text]));
        assert_eq!(formats(&[1], 2), Ok(vec![Binary, Binary]));
        assert_eq!(formats(&[0, 1], 2), Ok(vec![Text, Binary]));
        assert_eq!(formats(&[2, 0, 7], 0), Ok(vec![]));
        assert_eq!(formats(&[0, 0, 0], 2), Err(Error::Formats(3, 2)));
        assert_eq!(formats(&[0, 0], 1), Err(Error::Formats(2, 1)));
        for codes in [&[2][..], &[0, 2]] {
            assert_eq!(formats(codes, 2), Err(Error::FormatCode(2)));
        }
        assert_eq!(Error::Formats(3, 2).sqlstate(), "08P01");
        assert_eq!(Error::FormatCode(2).sqlstate(), "22023");
    }

    #[test]
    fn values_for_a_statement_without_parameters_are_refused() {
        let bind = |parameters| Bind { portal: b"", statement: b"s\xff", parameters, formats: Vec::new() };
        assert_eq!(bind(0).check_no_parameters(), Ok(()));
        let error = bind(2).check_no_parameters().unwrap_err();
        assert_eq!(error, Error::BindParameters(2, "s\u{fffd}".to_owned()));
        assert_eq!(error.sqlstate(), "08P01");
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = (query(&body), parse(&body), bind(&body), named(&body), execute(&body));
        }
    }
}
