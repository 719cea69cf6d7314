//! A client that listens, and what it hears.

use super::*;

/// Why a client's connection is no more.
#[derive(Debug)]
pub(super) struct Ended(pub(super) String);

/// A client that listens.
pub(super) struct Ear<'a> {
    pub(super) stage: &'a Stage<'a>,
    pub(super) connection: Connection,
    pub(super) heard: Heard,
    /// What it listens to, by the place in `heard.listens`.
    pub(super) now: HashMap<u64, usize>,
}

impl<'a> Ear<'a> {
    pub(super) fn open(
        stage: &'a Stage<'a>,
        target: &Target,
        database: usize,
        who: String,
    ) -> Result<Self, Ended> {
        let connection = Connection::open(target).map_err(|error| Ended(format!("{error:#}")))?;
        let heard = Heard { who, database, listens: Vec::new(), got: Vec::new(), ended: false };
        let mut ear = Self { stage, connection, heard, now: HashMap::new() };
        let parameters = [("user", "postgres"), ("database", DATABASES[database])]
            .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        ear.connection.send(&Message::startup((3, 0), &parameters).bytes, None);
        ear.answer()?;
        Ok(ear)
    }

    /// The error of the last command, if it had one.
    pub(super) fn answer(&mut self) -> Result<Option<String>, Ended> {
        let mut error = None;
        loop {
            match self.hear(wait::LIMIT)? {
                Some((b'Z', _)) => return Ok(error),
                Some((b'E', text)) => error = Some(text),
                Some(_) => {}
                None => {
                    let port = self.connection.local_port();
                    let doing = self.stage.doing();
                    return Err(Ended(format!("silence at port {port:?} after {error:?}; {doing}")));
                }
            }
        }
    }

    pub(super) fn hear(&mut self, patience: Duration) -> Result<Option<(u8, String)>, Ended> {
        let received = self.connection.receive(patience).map_err(|error| Ended(format!("{error:#}")))?;
        match received {
            Received::Message { tag: b'A', body } => {
                let mut texts = body[4..].split(|byte| *byte == 0);
                let mut text = || String::from_utf8_lossy(texts.next().unwrap_or_default()).into_owned();
                let (channel, payload) = (text(), text());
                let number = |text: Option<&str>| text.and_then(|text| text.parse().ok());
                let mut parts = payload.split(':').map(Some);
                let mut part = || number(parts.next().flatten());
                let (Some(database), Some(notifier), Some(sequence)) = (part(), part(), part()) else {
                    return Err(Ended(format!("wrong payload {payload:?}")));
                };
                let channel = channel.trim_start_matches('c').parse().unwrap_or(u64::MAX);
                if database != self.heard.database as u64 || !self.now.contains_key(&channel) {
                    return Err(Ended(format!(
                        "wrong: c{channel} {payload:?} when it listens to {:?}",
                        self.now
                    )));
                }
                self.heard.got.push(((notifier as usize, sequence), channel, self.stage.now()));
                self.stage.heard.fetch_add(1, Relaxed);
                Ok(Some((b'A', String::new())))
            }
            Received::Message { tag, body } => {
                let text = String::from_utf8_lossy(&body).replace('\0', " ");
                if tag == b'E' && text.contains("VFATAL") {
                    return Err(Ended(text));
                }
                Ok(Some((tag, text)))
            }
            Received::Silence => Ok(None),
            other => Err(Ended(format!("{other:?}"))),
        }
    }

    pub(super) fn query(&mut self, sql: &str) -> Result<Option<String>, Ended> {
        self.connection.send(&Message::query(sql.as_bytes()).bytes, None);
        self.answer()
    }

    /// Commands, of which the last one's answer is that of a LISTEN.
    pub(super) fn listen(&mut self, channel: u64, sql: &str) -> Result<(), Ended> {
        let asked = self.stage.now();
        let new = !self.now.contains_key(&channel);
        if new {
            self.now.insert(channel, self.heard.listens.len());
            let never = u64::MAX;
            self.heard.listens.push(Listened { channel, asked, answered: never, until: never, over: never });
        }
        let error = self.query(sql)?;
        let now = self.stage.now();
        if let Some(error) = error {
            if !self.stage.rough {
                return Err(Ended(format!("wrong: {sql}: {error}")));
            }
            if new {
                self.now.remove(&channel);
                self.heard.listens.pop();
            }
        } else if new && let Some(listened) = self.heard.listens.last_mut() {
            listened.answered = now;
        }
        Ok(())
    }

    pub(super) fn unlisten(&mut self, channels: &[u64], sql: &str) -> Result<(), Ended> {
        let until = self.stage.now();
        for channel in channels {
            if let Some(place) = self.now.get(channel) {
                self.heard.listens[*place].until = until;
            }
        }
        self.query(sql)?;
        let over = self.stage.now();
        for channel in channels {
            if let Some(place) = self.now.remove(channel) {
                self.heard.listens[place].over = over;
            }
        }
        Ok(())
    }

    pub(super) fn rest(&mut self, millis: u64) -> Result<(), Ended> {
        let until = Instant::now() + Duration::from_millis(millis);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.hear(left)?;
        }
    }

    /// One thing that a client does.
    pub(super) fn act(&mut self, dice: &mut Dice) -> Result<(), Ended> {
        let channel = dice.below(CHANNELS);
        match dice.below(12) {
            0..3 => self.listen(channel, &format!("LISTEN c{channel}")),
            3 => self.listen(channel, &format!("BEGIN; SELECT 1; LISTEN c{channel}; COMMIT")),
            4 => self.unlisten(&[channel], &format!("UNLISTEN c{channel}")),
            5 if dice.below(4) == 0 => {
                let all: Vec<u64> = self.now.keys().copied().collect();
                self.unlisten(&all, "UNLISTEN *")
            }
            6 => {
                self.query("BEGIN")?;
                self.rest(dice.below(10))?;
                self.query("SELECT 1")?;
                self.query(if dice.below(2) == 0 { "COMMIT" } else { "ROLLBACK" }).map(drop)
            }
            7 => {
                // Nothing of it comes to pass.
                self.query("BEGIN")?;
                self.query(&format!("UNLISTEN *; LISTEN d{channel}"))?;
                self.query("ROLLBACK").map(drop)
            }
            8 => self.query("SELECT 1; SELECT 2").map(drop),
            _ => self.rest(dice.below(100)),
        }
    }

    /// Everything that was promised has come when what is notified now has.
    pub(super) fn end(&mut self, notifier: &mut postgres::Client, number: usize) -> Result<(), Ended> {
        if let Some(error) = self.query("SELECT 1")? {
            return Err(Ended(format!("wrong: {error}")));
        }
        let channel = CHANNELS + number as u64;
        self.now.insert(channel, usize::MAX);
        if let Some(error) = self.query(&format!("LISTEN c{channel}"))? {
            return Err(Ended(format!("wrong: {error}")));
        }
        let sql = format!("NOTIFY c{channel}, '{}:{}:0'", self.heard.database, usize::MAX);
        notifier.batch_execute(&sql).map_err(|error| Ended(format!("wrong: {error}")))?;
        while self.heard.got.last().is_none_or(|(_, last, _)| *last != channel) {
            if self.hear(wait::LIMIT)?.is_none() {
                return Err(Ended("wrong: the last notification has not come".to_owned()));
            }
        }
        self.heard.got.pop();
        Ok(())
    }
}
