//! The text of a script. Runs in test programs.
//!
//! A line is a step; `#` opens a comment, and the first comment says what the script is about. In front of the steps:
//!
//! ```text
//! setup create table t (a int)      SQL run before, as superuser, on a connection of its own; may be repeated
//! teardown drop table t             the same, afterwards
//! errors 22012 42P05                the SQLSTATEs of all ErrorResponses that a server gives, in order
//! sees "work_mem"                   a text that a server's answers contain; may be repeated
//! mask ports                        the ports of both ends are hidden in texts
//! alone                             another client that plays the same script would disturb it, or it measures time
//! undisturbed                       as alone, and no other client may make a schema meanwhile: then the server itself analyses every
//!                                   statement of every session anew (PlanCacheSysCallback() in plancache.c)
//! ```
//!
//! Then what clients do. A client is a capital letter in front of the line, `A` where there is none. It is connected, as
//! user and database `postgres`, when its first line is not `startup` or `connect`:
//!
//! ```text
//! startup user=postgres database=postgres options="-c work_mem=1MB"     and reads until ReadyForQuery or the end
//! startup version=3.2 user=postgres _pq_.x=1
//! connect                                     no packet is sent; `> Startup ...` then does
//! > Query "select 1"                          a message; the client reads until ReadyForQuery has come for every
//! > Parse "s1" "select $1" 23 25              Query, Sync and FunctionCall, or it is asked for COPY data
//! > Bind "portal" "s1" ["text" null 0x00000001] in=0,0,1 out=1
//! > Describe statement "s1"    > Describe portal ""    > Close statement "s1"    > Close portal ""
//! > Execute "portal" 10    > Flush    > Sync    > FunctionCall 1598 ["a"] in=0 out=1
//! > CopyData "1\t2\n"    > CopyDone    > CopyFail "why"    > Terminate
//! > Message "p" "body"     > raw 0x5300000004     > SSLRequest     > GSSENCRequest
//! >> Query "select 1"                         two arrows: the client does not read, and counts on no answer
//! B> Query "select 2"                         another client
//! < until ReadyForQuery    < until D          reads until a message of that type, by name or type byte, or the end
//! < count 3    < byte    < eof                so many messages; a byte outside messages; until the server closes
//! < quiet 50                                  whatever comes in so many milliseconds, which should be nothing
//! split 3                                     the next write goes out in pieces of 3 bytes
//! together ... end                            the messages between the two go out in one write
//! pause 50                                    milliseconds
//! cancel B                                    cancel requests with B's key until something comes
//! cancel B once                               one, and nothing is waited for
//! B hangup                                    closes the connection without a word; the letter may connect again
//! ```
//!
//! A text is in double quotes, with `\n`, `\t`, `\r`, `\\`, `\"`, `\0` and `\xHH`; `"ab"*1000` repeats it. At the end of a
//! script every client that is still connected terminates and reads to the end, so that nothing that a server sent too
//! much is missed.

use super::frontend::Message;
use super::token::{Tokens, bytes_of_hex};
use super::transcript::type_byte;
use anyhow::{Context, Result, bail, ensure};
use std::time::Duration;

/// A script, read.
#[derive(Debug, Clone)]
pub struct Script {
    pub name: String,
    pub about: String,
    pub setup: Vec<String>,
    pub teardown: Vec<String>,
    pub errors: Vec<String>,
    pub sees: Vec<String>,
    pub masks_ports: bool,
    pub alone: bool,
    pub undisturbed: bool,
    pub lines: Vec<Line>,
}

/// One step of one client.
#[derive(Debug, Clone)]
pub struct Line {
    /// In the script's text, from 1.
    pub number: usize,
    pub client: char,
    pub step: Step,
}

#[derive(Debug, Clone)]
pub enum Step {
    /// Connects; sends and waits where there is a packet.
    Connect(Option<Message>),
    Send {
        message: Message,
        piece: Option<usize>,
    },
    Read(Until),
    Pause(Duration),
    /// Repeated until something comes, or once.
    Cancel {
        once: bool,
    },
    Hangup,
}

/// When a client has read enough. The end of the connection is always enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    Type(u8),
    Count(usize),
    Byte,
    Closed,
    Quiet(Duration),
}

impl Script {
    /// # Errors
    /// With the line that has a mistake.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut reader = Reader::new(name);
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            reader.line(number, line.trim()).with_context(|| format!("line {number}: {line}"))?;
        }
        ensure!(reader.together.is_none(), "a \"together\" has no end");
        ensure!(!reader.script.lines.is_empty(), "nothing happens");
        Ok(reader.script)
    }
}

/// The message that connects a client which does not say how.
pub fn default_startup() -> Message {
    let pair = |name: &str| (name.as_bytes().to_vec(), b"postgres".to_vec());
    Message::startup((3, 0), &[pair("user"), pair("database")])
}

struct Reader {
    script: Script,
    /// What `split` said of the next write.
    piece: Option<usize>,
    /// Inside `together`: the client, and what it has to send so far.
    together: Option<(char, Option<Message>)>,
}

impl Reader {
    fn new(name: &str) -> Self {
        let script = Script {
            name: name.to_owned(),
            about: String::new(),
            setup: Vec::new(),
            teardown: Vec::new(),
            errors: Vec::new(),
            sees: Vec::new(),
            masks_ports: false,
            alone: false,
            undisturbed: false,
            lines: Vec::new(),
        };
        Self { script, piece: None, together: None }
    }

    fn line(&mut self, number: usize, line: &str) -> Result<()> {
        if let Some(comment) = line.strip_prefix('#') {
            if self.script.about.is_empty() {
                comment.trim().clone_into(&mut self.script.about);
            }
            return Ok(());
        }
        let (keyword, rest) = line.split_once(' ').unwrap_or((line, ""));
        match keyword {
            "" => {}
            "setup" => self.script.setup.push(rest.to_owned()),
            "teardown" => self.script.teardown.push(rest.to_owned()),
            "errors" => self.script.errors.extend(rest.split_whitespace().map(str::to_owned)),
            "sees" => {
                let text = Tokens::new(rest)?.text()?;
                self.script.sees.push(String::from_utf8_lossy(&text).into_owned());
            }
            "mask" => {
                ensure!(rest == "ports", "only ports can be masked");
                self.script.masks_ports = true;
            }
            "alone" => self.script.alone = true,
            "undisturbed" => self.script.undisturbed = true,
            "split" => self.piece = Some(rest.parse()?),
            "together" => self.together = Some(('A', None)),
            "end" => {
                let (client, message) = self.together.take().context("an end of nothing")?;
                let message = message.context("nothing to send together")?;
                let piece = self.piece.take();
                self.script.lines.push(Line { number, client, step: Step::Send { message, piece } });
            }
            _ => return self.step(number, line),
        }
        Ok(())
    }

    fn step(&mut self, number: usize, line: &str) -> Result<()> {
        let mut client = 'A';
        let mut rest = line;
        if let Some(letter) = line.chars().next().filter(char::is_ascii_uppercase) {
            client = letter;
            rest = line[1..].trim_start();
        }
        let step = if let Some(reading) = rest.strip_prefix('<') {
            Step::Read(until(&mut Tokens::new(reading)?)?)
        } else if let Some(sending) = rest.strip_prefix('>') {
            let waits = !sending.starts_with('>');
            let mut tokens = Tokens::new(sending.trim_start_matches('>'))?;
            let mut message = message(&mut tokens)?;
            tokens.finish()?;
            if !waits {
                message = Message::raw(message.bytes);
            }
            if let Some((whose, so_far)) = &mut self.together {
                *whose = client;
                let all = so_far.take();
                *so_far = Some(all.map_or(message.clone(), |all| all.then(message)));
                return Ok(());
            }
            Step::Send { message, piece: self.piece.take() }
        } else {
            let mut tokens = Tokens::new(rest)?;
            match tokens.word()?.as_str() {
                "connect" => Step::Connect(None),
                "startup" => Step::Connect(Some(startup(&mut tokens)?)),
                "pause" => Step::Pause(Duration::from_millis(tokens.number()?)),
                "hangup" => Step::Hangup,
                "cancel" => {
                    let whose = tokens.word()?;
                    client = whose.chars().next().context("whose query?")?;
                    Step::Cancel { once: !tokens.at_end() && tokens.word()? == "once" }
                }
                other => bail!("what is {other:?}?"),
            }
        };
        ensure!(self.together.is_none(), "only messages go together");
        self.script.lines.push(Line { number, client, step });
        Ok(())
    }
}

fn until(tokens: &mut Tokens) -> Result<Until> {
    let until = match tokens.word()?.as_str() {
        "until" => {
            let name = tokens.word()?;
            Until::Type(type_byte(&name).with_context(|| format!("no message is called {name}"))?)
        }
        "count" => Until::Count(tokens.number()?),
        "byte" => Until::Byte,
        "eof" => Until::Closed,
        "quiet" => Until::Quiet(Duration::from_millis(tokens.number()?)),
        other => bail!("read until {other:?}?"),
    };
    tokens.finish()?;
    Ok(until)
}

fn message(tokens: &mut Tokens) -> Result<Message> {
    let kind = tokens.word()?;
    Ok(match kind.as_str() {
        "Query" => Message::query(&tokens.text()?),
        "Parse" => {
            let (name, sql) = (tokens.text()?, tokens.text()?);
            let mut types = Vec::new();
            while !tokens.at_end() {
                types.push(tokens.number()?);
            }
            Message::parse(&name, &sql, &types)
        }
        "Bind" => {
            let (portal, statement, values) = (tokens.text()?, tokens.text()?, tokens.values()?);
            let (formats, results) = (tokens.formats("in=")?, tokens.formats("out=")?);
            Message::bind(&portal, &statement, &values, &formats, &results)
        }
        "Describe" => Message::describe(tokens.kind()?, &tokens.text()?),
        "Close" => Message::close(tokens.kind()?, &tokens.text()?),
        "Execute" => {
            let portal = tokens.text()?;
            Message::execute(&portal, if tokens.at_end() { 0 } else { tokens.number()? })
        }
        "Flush" => Message::flush(),
        "Sync" => Message::sync(),
        "FunctionCall" => {
            let (oid, arguments) = (tokens.number()?, tokens.values()?);
            let (formats, result) = (tokens.formats("in=")?, tokens.formats("out=")?);
            Message::function_call(oid, &arguments, &formats, result.first().copied().unwrap_or(0))
        }
        "CopyData" => Message::copy_data(&tokens.text()?),
        "CopyDone" => Message::copy_done(),
        "CopyFail" => Message::copy_fail(&tokens.text()?),
        "Terminate" => Message::terminate(),
        "Startup" => startup(tokens)?,
        "SSLRequest" => Message::request(80_877_103),
        "GSSENCRequest" => Message::request(80_877_104),
        "Message" => {
            let tag = tokens.text()?;
            Message::typed(*tag.first().context("which type?")?, &tokens.text()?)
        }
        "raw" => Message::raw(bytes_of_hex(&tokens.word()?)?),
        other => bail!("no message is called {other}"),
    })
}

fn startup(tokens: &mut Tokens) -> Result<Message> {
    let (mut version, mut parameters) = ((3, 0), Vec::new());
    while !tokens.at_end() {
        let word = tokens.word()?;
        let (name, value) = word.split_once('=').with_context(|| format!("{word} has no value"))?;
        let value = if value.is_empty() { tokens.text()? } else { value.as_bytes().to_vec() };
        if name == "version" {
            let number = String::from_utf8(value)?;
            let (major, minor) = number.split_once('.').context("a version is 3.0")?;
            version = (major.parse()?, minor.parse()?);
        } else {
            parameters.push((name.as_bytes().to_vec(), value));
        }
    }
    Ok(Message::startup(version, &parameters))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(line: &str) -> Vec<u8> {
        match &Script::parse("test", line).unwrap().lines[0].step {
            Step::Send { message, .. } => message.bytes.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_line_becomes_the_bytes_of_its_message() {
        assert_eq!(sent("> Query \"a\\x00\\n\\\"\""), b"Q\0\0\0\x09a\0\n\"\0");
        assert_eq!(sent("> Query \"ab\"*2"), b"Q\0\0\0\x09abab\0");
        assert_eq!(sent("> Parse \"s\" \"x\" 23"), b"P\0\0\0\x0es\0x\0\0\x01\0\0\0\x17");
        assert_eq!(
            sent("> Bind \"\" \"s\" [\"1\" null 0x0a] in=0,0,1 out=1"),
            b"B\0\0\0\x23\0s\0\0\x03\0\0\0\0\0\x01\0\x03\0\0\0\x011\xff\xff\xff\xff\0\0\0\x01\x0a\0\x01\0\x01"
        );
        assert_eq!(sent("together\n> Flush\n> Sync\nend"), b"H\0\0\0\x04S\0\0\0\x04");
        assert_eq!(sent("B> Describe portal \"\""), b"D\0\0\0\x06P\0");
        assert_eq!(sent("> Startup version=3.2 user=\"a b\""), b"\0\0\0\x12\0\x03\0\x02user\0a b\0\0");
    }

    #[test]
    fn a_mistake_is_told_with_its_line() {
        for mistake in
            ["> Qery \"\"", "> Query x", "> Sync 1", "< until Nothing", "dance", "> Query \"x", "end"]
        {
            let error = format!("{:#}", Script::parse("test", &format!("# about\n{mistake}")).unwrap_err());
            assert!(error.starts_with("line 2: "), "{error}");
        }
        assert!(Script::parse("test", "together\n> Sync").is_err());
        assert!(Script::parse("test", "# nothing").is_err());
    }
}
