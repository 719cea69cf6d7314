//! Who listens to what: the tables' one writer, with what it needs to find things again. The front's first thread.

use super::ring::Ring;
use super::shared::{Channel, ChannelState, Listen, Shared, Source, SourceState};
use crate::bridge::now;
use std::collections::HashMap;
use std::sync::atomic::Ordering::*;

/// Why a LISTEN is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("too many channels are listened to")]
    Channels,
    #[error("too many LISTENs are in force")]
    Listens,
    #[error("too many databases are listened to")]
    Databases,
}

/// A channel that a client is to listen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listened {
    pub listen: u32,
    pub channel: u32,
    pub source: u32,
}

pub struct Book {
    shared: Shared,
    channels: HashMap<(u32, Vec<u8>), u32>,
    free_channels: Vec<u32>,
    free_listens: Vec<u32>,
    /// Unused channels that their relays have still to leave.
    leaving: Vec<u32>,
}

impl Book {
    /// Empties the tables: nobody of an earlier front's clients is left.
    pub fn new(shared: Shared) -> Self {
        for listener in shared.listeners.iter().filter(|listener| listener.first.get().is_some()) {
            listener.first.set(None);
            listener.listens.store(0, Relaxed);
        }
        for channel in shared.channels.iter().filter(|channel| channel.state() != ChannelState::Free) {
            channel.first.set(None);
            channel.listeners.store(0, Relaxed);
            channel.state.store(ChannelState::Free as u32, Release);
        }
        shared.header.channels.store(0, Relaxed);
        shared.header.listens.store(0, Relaxed);
        Self {
            shared,
            channels: HashMap::new(),
            free_channels: (0..shared.channels.len() as u32).rev().collect(),
            free_listens: (0..shared.listens.len() as u32).rev().collect(),
            leaving: Vec::new(),
        }
    }

    fn channel(&self, number: u32) -> &'static Channel {
        &self.shared.channels[number as usize]
    }

    fn listen(&self, number: u32) -> &'static Listen {
        &self.shared.listens[number as usize]
    }

    /// The source of a database, which may be free yet.
    ///
    /// # Errors
    /// When there are too many.
    pub fn source(&self, database: u32) -> Result<u32, Error> {
        let sources = &self.shared.header.sources;
        let of = |source: &Source| {
            source.is_heard() && source.retire.load(Relaxed) == 0 && source.database.load(Relaxed) == database
        };
        let found = sources.iter().position(of);
        found
            .or_else(|| sources.iter().position(|source| source.state() == SourceState::Free))
            .map(|number| number as u32)
            .ok_or(Error::Databases)
    }

    /// Writes down that a client is to listen to a channel, which its relay may have to be told of. Nothing is given to the client
    /// before its transaction has committed, when it is in one.
    ///
    /// # Errors
    /// When a table is full.
    pub fn add(&mut self, client: u32, source: u32, name: &[u8], tentative: bool) -> Result<Listened, Error> {
        let listen = *self.free_listens.last().ok_or(Error::Listens)?;
        let key = (source, name.to_vec());
        let channel = match self.channels.get(&key) {
            Some(channel) => *channel,
            None => {
                self.sweep();
                let number = self.free_channels.pop().ok_or(Error::Channels)?;
                let channel = self.channel(number);
                channel.source.store(source, Relaxed);
                channel.name.set(name);
                channel.last.store(0, Relaxed);
                channel.delivered.store(0, Relaxed);
                channel.since.store(now(), Relaxed);
                channel.state.store(ChannelState::Wanted as u32, Release);
                self.channels.insert(key, number);
                self.shared.header.channels.fetch_add(1, Relaxed);
                self.tell(source);
                number
            }
        };
        self.free_listens.pop();
        self.shared.header.listens.fetch_add(1, Relaxed);
        let words = self.listen(listen);
        words.channel.store(channel, Relaxed);
        words.client.store(client, Relaxed);
        words.tentative.store(u32::from(tentative), Relaxed);
        self.begin(listen);
        let listener = &self.shared.listeners[client as usize];
        words.next_of_client.set(listener.first.get());
        listener.first.set(Some(listen));
        listener.listens.fetch_add(1, Relaxed);
        let of = self.channel(channel);
        let next = of.first.get();
        words.previous_of_channel.set(None);
        words.next_of_channel.set(next);
        if let Some(next) = next {
            self.listen(next).previous_of_channel.set(Some(listen));
        }
        of.first.set(Some(listen));
        if of.listeners.fetch_add(1, Relaxed) == 0
            && (of.change(ChannelState::Unwanted, ChannelState::Wanted)
                || of.change(ChannelState::Left, ChannelState::Wanted))
        {
            // Its relay was about to leave it, or has done so.
            self.tell(source);
        }
        Ok(Listened { listen, channel, source })
    }

    /// From here on the listen is given what comes: its channel is heard.
    pub fn begin(&self, listen: u32) {
        let words = self.listen(listen);
        words.cursor.store(Ring::new(self.shared).head(), Relaxed);
        words.at.store(0, Relaxed);
    }

    /// The relay of a source has something to do.
    fn tell(&self, source: u32) {
        self.shared.header.sources[source as usize].wanted.fetch_add(1, AcqRel);
    }

    /// A client's listen of a channel, by name.
    pub fn find(&self, client: u32, name: &[u8]) -> Option<u32> {
        let of = |listen: &Listen| self.shared.channel_of(listen).is_some_and(|c| c.name.bytes() == name);
        self.shared.listens_of(client).find(|(_, listen)| of(listen)).map(|(number, _)| number)
    }

    /// Ends those of a client's listens that `which` chooses; the sources whose relays have something to do now.
    pub fn remove(&mut self, client: u32, which: impl Fn(u32, &Listen) -> bool) -> Vec<u32> {
        let chosen: Vec<u32> = self
            .shared
            .listens_of(client)
            .filter(|(number, listen)| which(*number, listen))
            .map(|(number, _)| number)
            .collect();
        let mut told = Vec::new();
        for number in chosen {
            if let Some(source) = self.remove_one(client, number)
                && !told.contains(&source)
            {
                told.push(source);
            }
        }
        told
    }

    fn remove_one(&mut self, client: u32, number: u32) -> Option<u32> {
        let listen = self.listen(number);
        let listener = &self.shared.listeners[client as usize];
        let next = listen.next_of_client.get();
        let is_before = |other: &Listen| other.next_of_client.get() == Some(number);
        if listener.first.get() == Some(number) {
            listener.first.set(next);
        } else if let Some((_, before)) = self.shared.listens_of(client).find(|(_, other)| is_before(other)) {
            before.next_of_client.set(next);
        }
        listener.listens.fetch_sub(1, Relaxed);
        let channel_number = listen.channel.load(Relaxed);
        let channel = self.channel(channel_number);
        let (before, after) = (listen.previous_of_channel.get(), listen.next_of_channel.get());
        match before {
            Some(before) => self.listen(before).next_of_channel.set(after),
            None => channel.first.set(after),
        }
        if let Some(after) = after {
            self.listen(after).previous_of_channel.set(before);
        }
        self.free_listens.push(number);
        self.shared.header.listens.fetch_sub(1, Relaxed);
        if channel.listeners.fetch_sub(1, Relaxed) > 1 {
            return None;
        }
        // Whether the relay has it by now or not, it is to leave it. In this order: meanwhile the one becomes the other.
        let left = channel.change(ChannelState::Wanted, ChannelState::Unwanted)
            || channel.change(ChannelState::Heard, ChannelState::Unwanted);
        if !left {
            return None;
        }
        let source = channel.source.load(Relaxed);
        self.leaving.push(channel_number);
        self.tell(source);
        Some(source)
    }

    /// Whether there are channels that nobody listens to any more and that are not free yet.
    pub fn is_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Frees the channels that their relays have left.
    pub fn sweep(&mut self) {
        let mut leaving = std::mem::take(&mut self.leaving);
        leaving.sort_unstable();
        leaving.dedup();
        leaving.retain(|number| {
            let channel = self.channel(*number);
            match channel.state() {
                ChannelState::Left => self.free_channel(*number),
                // Listened to again.
                ChannelState::Wanted | ChannelState::Heard | ChannelState::Free => {}
                ChannelState::Unwanted => return true,
            }
            false
        });
        self.leaving = leaving;
    }

    fn free_channel(&mut self, number: u32) {
        let channel = self.channel(number);
        self.channels.remove(&(channel.source.load(Relaxed), channel.name.bytes()));
        channel.state.store(ChannelState::Free as u32, Release);
        self.free_channels.push(number);
        self.shared.header.channels.fetch_sub(1, Relaxed);
    }

    /// The clients that listen to a channel.
    pub fn clients_of(&self, channel: u32) -> impl Iterator<Item = u32> {
        let listens = self.shared.listens;
        let at = move |number: u32| listens.get(number as usize);
        let first = self.channel(channel).first.get().and_then(at);
        std::iter::successors(first, move |listen| listen.next_of_channel.get().and_then(at))
            .take(listens.len())
            .map(|listen| listen.client.load(Relaxed))
    }

    /// The channels of a source.
    pub fn channels_of(&self, source: u32) -> impl Iterator<Item = u32> {
        self.channels.iter().filter(move |((of, _), _)| *of == source).map(|(_, number)| *number)
    }

    /// Whether anybody listens to anything of a source.
    pub fn has_listeners(&self, source: u32) -> bool {
        self.channels_of(source).any(|number| self.channel(number).listeners.load(Relaxed) > 0)
    }

    /// The relay of a source has ended and nobody listens to its channels any more.
    pub fn forget(&mut self, source: u32) {
        let channels: Vec<u32> = self.channels_of(source).collect();
        for number in channels {
            self.leaving.retain(|leaving| *leaving != number);
            self.free_channel(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::ring::tests::tables;

    #[test]
    fn listens_are_found_by_client_and_by_channel_and_end_alone() {
        let shared = tables(64, 2, 4);
        let mut book = Book::new(shared);
        let a = book.add(1, 0, b"a", false).unwrap();
        let b = book.add(1, 0, b"b", false).unwrap();
        let other = book.add(2, 0, b"a", false).unwrap();
        assert_eq!((a.channel, other.listen == a.listen), (other.channel, false));
        assert_eq!(book.find(1, b"b"), Some(b.listen));
        assert_eq!(book.clients_of(a.channel).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(book.add(3, 0, b"c", false), Err(Error::Channels));
        let last = book.add(3, 0, b"a", false).unwrap();
        assert_eq!(book.add(3, 0, b"b", false), Err(Error::Listens));
        assert_eq!(book.remove(2, |_, _| true), [0u32; 0], "others listen to it");
        assert_eq!(book.clients_of(a.channel).collect::<Vec<_>>(), [3, 1]);
        assert_eq!(book.remove(1, |number, _| number == b.listen), [0]);
        assert_eq!((book.find(1, b"b"), book.find(1, b"a")), (None, Some(a.listen)));
        assert_eq!(book.remove(3, |number, _| number == last.listen), [0u32; 0]);
        assert_eq!(book.remove(1, |_, _| true), [0]);
        assert!(!book.has_listeners(0));
        assert_eq!(shared.header.listens.load(Relaxed), 0);
    }

    #[test]
    fn a_channel_is_free_when_its_relay_has_left_it_and_not_before() {
        let shared = tables(64, 1, 4);
        let mut book = Book::new(shared);
        let a = book.add(1, 0, b"a", false).unwrap();
        let channel = &shared.channels[a.channel as usize];
        assert!(channel.change(ChannelState::Wanted, ChannelState::Heard));
        book.remove(1, |_, _| true);
        assert_eq!(book.add(1, 0, b"b", false), Err(Error::Channels), "the relay still listens to a");
        let again = book.add(1, 0, b"a", false).unwrap();
        assert_eq!((again.channel, channel.state()), (a.channel, ChannelState::Wanted));
        book.remove(1, |_, _| true);
        assert!(channel.change(ChannelState::Unwanted, ChannelState::Left));
        assert!(book.add(1, 0, b"b", false).is_ok());
    }

    #[test]
    fn a_relay_that_has_ended_leaves_no_channel_behind() {
        let shared = tables(64, 2, 4);
        let mut book = Book::new(shared);
        book.add(1, 0, b"a", false).unwrap();
        book.add(1, 0, b"b", false).unwrap();
        book.remove(1, |_, _| true);
        book.forget(0);
        assert!(book.add(1, 1, b"c", false).is_ok() && book.add(1, 1, b"d", false).is_ok());
    }
}
