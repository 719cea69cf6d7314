//! A script's steps, on raw connections. Runs in test programs.

use super::connection::{Connection, Received, Target};
use super::frontend::Message;
use super::language::{Line, Script, Step, Until, default_startup};
use super::transcript::Transcript;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a client waits for what has to come. A transcript ends there.
const PATIENCE: Duration = Duration::from_secs(10);

/// [`replay`] between the script's setup and teardown, which `superuser` runs.
///
/// # Errors
/// As [`replay`], and when one of the two fails.
pub fn staged(script: &Script, superuser: &mut postgres::Client, target: &Target) -> Result<Transcript> {
    let mut run = |statements: &[String]| -> Result<()> {
        for sql in statements {
            superuser.batch_execute(sql).with_context(|| format!("{}: {sql}", script.name))?;
        }
        Ok(())
    };
    run(&script.setup)?;
    let transcript = replay(script, target);
    // Also after a failure: the next script may use the same names.
    let afterwards = run(&script.teardown);
    let transcript = transcript.with_context(|| script.name.clone())?;
    afterwards?;
    Ok(transcript)
}

/// Plays all clients of a script, one step after the other, and gives what they saw.
///
/// # Errors
/// When nobody listens there, or what comes is no protocol at all. A server that falls silent or closes is no error: the
/// transcript says so.
pub fn replay(script: &Script, target: &Target) -> Result<Transcript> {
    let mut play = Play { target, clients: BTreeMap::new(), transcript: Transcript::default(), stuck: false };
    for line in &script.lines {
        play.step(line).with_context(|| format!("line {}", line.number))?;
        if play.stuck {
            break;
        }
    }
    play.leave()?;
    let mut ports: Vec<u16> = target.port().into_iter().collect();
    ports.extend(play.clients.values().filter_map(Connection::local_port));
    let mut transcript = play.transcript;
    if script.masks_ports {
        transcript.mask_ports(&ports);
    }
    if crate::installation::major() >= 16 {
        transcript.sort_what_a_reset_reports();
    }
    Ok(transcript)
}

struct Play<'a> {
    target: &'a Target,
    clients: BTreeMap<char, Connection>,
    transcript: Transcript,
    /// Something did not come.
    stuck: bool,
}

impl Play<'_> {
    fn step(&mut self, line: &Line) -> Result<()> {
        let (client, number) = (line.client, line.number);
        match &line.step {
            Step::Pause(time) => std::thread::sleep(*time),
            Step::Cancel { once } => self.cancel(client, number, *once)?,
            Step::Hangup => drop(self.clients.remove(&client)),
            Step::Connect(startup) => {
                self.clients.insert(client, Connection::open(self.target)?);
                if let Some(startup) = startup {
                    self.start(client, number, startup)?;
                }
            }
            Step::Send { message, piece } => {
                self.connected(client, number)?;
                self.send(client, number, message, *piece)?;
            }
            Step::Read(until) => {
                self.connected(client, number)?;
                self.read(client, number, *until)?;
            }
        }
        Ok(())
    }

    fn connected(&mut self, client: char, number: usize) -> Result<()> {
        if !self.clients.contains_key(&client) {
            self.clients.insert(client, Connection::open(self.target)?);
            self.start(client, number, &default_startup())?;
        }
        Ok(())
    }

    fn connection(&mut self, client: char) -> Result<&mut Connection> {
        self.clients.get_mut(&client).with_context(|| format!("{client} is not connected"))
    }

    fn start(&mut self, client: char, number: usize, startup: &Message) -> Result<()> {
        self.connection(client)?.send(&startup.bytes, None);
        self.read(client, number, Until::Type(b'Z'))
    }

    fn send(&mut self, client: char, number: usize, message: &Message, piece: Option<usize>) -> Result<()> {
        let connection = self.connection(client)?;
        connection.send(&message.bytes, piece);
        connection.owed += message.owes;
        if message.closes {
            return self.read(client, number, Until::Closed);
        }
        while message.reads && self.connection(client)?.owed > 0 {
            match self.receive(client, number, PATIENCE)? {
                Some(b'G' | b'W') if !message.ends_copy => break,
                Some(_) => {}
                None => break,
            }
        }
        Ok(())
    }

    fn read(&mut self, client: char, number: usize, until: Until) -> Result<()> {
        let mut count = 0;
        match until {
            Until::Byte => {
                let received = self.connection(client)?.receive_byte(PATIENCE)?;
                self.keep(client, number, received);
            }
            Until::Quiet(time) => {
                let deadline = Instant::now() + time;
                loop {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let connection = self.connection(client)?;
                    if connection.closed || left.is_zero() {
                        break;
                    }
                    match connection.receive(left)? {
                        Received::Silence => break,
                        received => drop(self.keep(client, number, received)),
                    }
                }
            }
            Until::Type(_) | Until::Count(_) | Until::Closed => {
                while let Some(tag) = self.receive(client, number, PATIENCE)? {
                    count += 1;
                    if until == Until::Type(tag) || until == Until::Count(count) {
                        break;
                    }
                    if tag == b'R' && self.transcript.last_asks_for_a_password() {
                        bail!("the server asks for a password");
                    }
                }
            }
        }
        Ok(())
    }

    /// The type byte of the next message; `None` when there is none.
    fn receive(&mut self, client: char, number: usize, patience: Duration) -> Result<Option<u8>> {
        let connection = self.connection(client)?;
        if connection.closed {
            return Ok(None);
        }
        let received = connection.receive(patience)?;
        Ok(self.keep(client, number, received))
    }

    fn keep(&mut self, client: char, number: usize, received: Received) -> Option<u8> {
        let tag = match &received {
            Received::Message { tag, .. } => Some(*tag),
            Received::Silence => {
                self.stuck = true;
                None
            }
            Received::Byte(_) | Received::Closed { .. } => None,
        };
        self.transcript.add(client, number, received);
        tag
    }

    /// A request that comes before the query has begun does nothing, as with any client: it is repeated.
    fn cancel(&mut self, client: char, number: usize, once: bool) -> Result<()> {
        let key = self.connection(client)?.key.clone();
        let (process, key) = key.with_context(|| format!("{client} has no key"))?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let mut request = Connection::open(self.target)?;
            request.send(&Message::cancel(&process, &key).bytes, None);
            let answer = request.receive(PATIENCE)?;
            anyhow::ensure!(matches!(answer, Received::Closed { .. }), "a cancel request got {answer:?}");
            if once {
                return Ok(());
            }
            match self.connection(client)?.receive(Duration::from_secs(1))? {
                Received::Silence => {}
                received => {
                    self.keep(client, number, received);
                    return Ok(());
                }
            }
        }
        self.keep(client, number, Received::Silence);
        Ok(())
    }

    fn leave(&mut self) -> Result<()> {
        // A server that has something to say within a moment is heard also where a step was stuck.
        let patience = if self.stuck { Duration::from_millis(100) } else { PATIENCE };
        let clients: Vec<char> = self.clients.keys().copied().collect();
        for client in clients {
            let connection = self.connection(client)?;
            if connection.closed {
                continue;
            }
            connection.send(&Message::terminate().bytes, None);
            while self.receive(client, 0, patience)?.is_some() {}
        }
        Ok(())
    }
}
