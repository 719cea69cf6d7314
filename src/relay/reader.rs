//! What a client is still to be sent. Whoever has the client: a thread of the front, or the backend that serves it.

use super::ring::{Overwritten, Ring};
use super::shared::{Channel, Listen, Shared};
use std::sync::atomic::Ordering::*;

/// What came of collecting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collected {
    /// Everything that there was.
    All,
    /// There is more than was asked for.
    Part,
    /// Some of it is no longer in the ring.
    TooLate,
}

/// Messages for a client, and for the next one if it lacks the same.
#[derive(Default)]
pub struct Batch {
    pub bytes: Vec<u8>,
    /// From which entry on, when it is one channel's; else 0. The last one, and how many they are.
    start: u64,
    end: u64,
    count: u64,
}

impl Batch {
    fn clear(&mut self) {
        self.bytes.clear();
        (self.start, self.end, self.count) = (0, 0, 0);
    }
}

/// What a client has been put into a batch of one channel: how much, and the last entry of it.
#[derive(Clone, Copy)]
pub struct Given {
    listen: &'static Listen,
    channel: &'static Channel,
    last: u64,
    count: u64,
}

/// One channel's next entry for the client.
struct Next {
    position: u64,
    given: Given,
}

#[derive(Clone, Copy)]
pub struct Reader {
    shared: Shared,
    ring: Ring,
}

impl Reader {
    pub fn new(shared: Shared) -> Self {
        Self { shared, ring: Ring::new(shared) }
    }

    /// Whether the client listens to anything.
    pub fn listens(&self, client: u32) -> bool {
        self.shared.listeners.get(client as usize).is_some_and(|listener| listener.first.get().is_some())
    }

    /// Whether the client lacks anything. Only a hint when somebody else has the client.
    pub fn is_behind(&self, client: u32) -> bool {
        self.shared.listens_of(client).any(|(_, listen)| self.lacks(listen))
    }

    fn lacks(&self, listen: &Listen) -> bool {
        listen.tentative.load(Relaxed) == 0
            && self.shared.channel_of(listen).is_some_and(|channel| {
                let last = channel.last.load(Acquire);
                last != 0 && last >= listen.cursor.load(Relaxed)
            })
    }

    /// The ring's bytes since the oldest notification that the client lacks; 0 when it lacks nothing.
    ///
    /// # Errors
    /// When it lacks something that is gone.
    pub fn backlog(&self, client: u32) -> Result<u64, Overwritten> {
        let mut oldest = self.ring.head();
        let head = oldest;
        for (_, listen) in self.shared.listens_of(client).filter(|(_, listen)| self.lacks(listen)) {
            if let Some(channel) = self.shared.channel_of(listen) {
                let first = self.first(listen, channel)?;
                if first < self.ring.tail() {
                    return Err(Overwritten);
                }
                oldest = oldest.min(first);
            }
        }
        Ok(head - oldest)
    }

    /// The first entry of the channel that the listen lacks. Called when it lacks one.
    fn first(&self, listen: &Listen, channel: &Channel) -> Result<u64, Overwritten> {
        let at = listen.at.load(Relaxed);
        if at != 0
            && let Ok(next) = self.ring.after(at)
            && next != 0
        {
            return Ok(next);
        }
        // From the newest back to the oldest that it lacks.
        let cursor = listen.cursor.load(Relaxed);
        let mut position = channel.last.load(Acquire);
        loop {
            let before = self.ring.before(position)?;
            if before < cursor || before == 0 {
                return Ok(position);
            }
            position = before;
        }
    }

    /// Puts into `batch` what the client lacks and takes it as given: see [`Reader::peek`].
    pub fn collect(&self, client: u32, most: usize, batch: &mut Batch) -> Collected {
        let (collected, given) = self.peek(client, most, batch);
        self.commit(&given);
        collected
    }

    /// Puts into `batch` what the client lacks, in the order in which it was committed, at least one message and then as many as begin
    /// below `most` bytes; and what is to be committed when it has been given. What the batch has been made of for another client is
    /// not put together again.
    pub fn peek(&self, client: u32, most: usize, batch: &mut Batch) -> (Collected, Vec<Given>) {
        // What comes meanwhile is for the next time, so that the order holds between channels.
        let head = self.ring.head();
        let mut waiting = Vec::new();
        for (_, listen) in self.shared.listens_of(client) {
            if !self.lacks(listen) {
                continue;
            }
            let Some(channel) = self.shared.channel_of(listen) else { continue };
            match self.first(listen, channel) {
                Ok(position) if position < head => {
                    waiting.push(Next { position, given: Given { listen, channel, last: 0, count: 0 } });
                }
                Ok(_) => {}
                Err(Overwritten) => {
                    batch.clear();
                    return (Collected::TooLate, Vec::new());
                }
            }
        }
        match &waiting[..] {
            [] => {
                batch.clear();
                return (Collected::All, Vec::new());
            }
            [only] if batch.start == only.position => {
                let given = Given { last: batch.end, count: batch.count, ..only.given };
                let collected = match self.ring.after(batch.end) {
                    Ok(0) => Collected::All,
                    // If its place is gone, the next look finds what there is.
                    _ => Collected::Part,
                };
                return (collected, vec![given]);
            }
            _ => {}
        }
        batch.clear();
        let alone = waiting.len() == 1;
        let first = waiting.first().map_or(0, |next| next.position);
        let mut done = Vec::with_capacity(waiting.len());
        let mut left = Collected::All;
        while let Some(index) = earliest(&waiting) {
            if batch.bytes.len() >= most {
                left = Collected::Part;
                break;
            }
            let next = &mut waiting[index];
            let step =
                self.ring.read(next.position, &mut batch.bytes).and_then(|()| self.ring.after(next.position));
            let Ok(after) = step else {
                left = Collected::TooLate;
                break;
            };
            next.given.last = next.position;
            next.given.count += 1;
            batch.count += 1;
            batch.end = next.position;
            if after == 0 || after >= head {
                done.push(waiting.swap_remove(index).given);
            } else {
                next.position = after;
            }
        }
        done.extend(waiting.into_iter().map(|next| next.given).filter(|given| given.count > 0));
        if alone && left != Collected::TooLate {
            batch.start = first;
        }
        (left, done)
    }

    /// What was put into a batch has been given to the client.
    pub fn commit(&self, given: &[Given]) {
        for Given { listen, channel, last, count } in given {
            listen.at.store(*last, Relaxed);
            listen.cursor.store(last + 1, Relaxed);
            channel.delivered.fetch_add(*count, Relaxed);
            self.shared.header.counters.dispatched.fetch_add(*count, Relaxed);
        }
    }

    /// Takes what there is now as given: what the client is not to hear any more.
    pub fn skip(&self, listen: &Listen) {
        listen.cursor.store(self.ring.head(), Relaxed);
        listen.at.store(0, Relaxed);
    }
}

fn earliest(waiting: &[Next]) -> Option<usize> {
    waiting.iter().enumerate().min_by_key(|(_, next)| next.position).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::ring::tests::tables;

    /// A client that listens to channels from here on.
    fn listen(shared: Shared, client: u32, number: u32, channel: u32) {
        let listen = &shared.listens[number as usize];
        listen.channel.store(channel, Relaxed);
        listen.client.store(client, Relaxed);
        listen.next_of_client.set(shared.listeners[client as usize].first.get());
        shared.listeners[client as usize].first.set(Some(number));
        Reader::new(shared).skip(listen);
    }

    fn collect(shared: Shared, client: u32, most: usize) -> (Collected, String) {
        let mut batch = Batch::default();
        let collected = Reader::new(shared).collect(client, most, &mut batch);
        (collected, String::from_utf8(batch.bytes).unwrap())
    }

    #[test]
    fn a_client_gets_what_came_since_it_listens_in_order_and_once() {
        let shared = tables(1 << 10, 3, 8);
        let ring = Ring::new(shared);
        let append = |channel: u32, text: &str| {
            ring.append(channel, &shared.channels[channel as usize], text.as_bytes());
        };
        append(0, "early ");
        listen(shared, 1, 0, 0);
        assert!(!Reader::new(shared).is_behind(1));
        append(0, "a ");
        listen(shared, 1, 1, 2);
        append(1, "not its channel ");
        append(2, "b ");
        append(0, "c ");
        assert!(Reader::new(shared).is_behind(1));
        assert_eq!(collect(shared, 1, 4096), (Collected::All, "a b c ".to_owned()));
        assert_eq!(collect(shared, 1, 4096), (Collected::All, String::new()));
        append(2, "d ");
        append(2, "e ");
        append(0, "f ");
        assert_eq!(collect(shared, 1, 1), (Collected::Part, "d ".to_owned()));
        assert_eq!(collect(shared, 1, 3), (Collected::All, "e f ".to_owned()));
        assert_eq!(shared.channels[2].delivered.load(Relaxed), 3);
        assert_eq!(shared.header.counters.dispatched.load(Relaxed), 6);
    }

    #[test]
    fn traffic_of_other_channels_does_not_make_a_client_late() {
        let shared = tables(32, 2, 2);
        let ring = Ring::new(shared);
        listen(shared, 1, 0, 0);
        for _ in 0..100 {
            ring.append(1, &shared.channels[1], b"another channel's");
        }
        assert_eq!(collect(shared, 1, 4096), (Collected::All, String::new()));
        ring.append(0, &shared.channels[0], b"its own");
        assert_eq!(collect(shared, 1, 4096), (Collected::All, "its own".to_owned()));
        for _ in 0..100 {
            ring.append(1, &shared.channels[1], b"another channel's");
        }
        assert_eq!(Reader::new(shared).backlog(1), Ok(0));
        ring.append(0, &shared.channels[0], b"again");
        assert_eq!(Reader::new(shared).backlog(1), Ok(32));
        assert_eq!(collect(shared, 1, 4096), (Collected::All, "again".to_owned()));
    }

    #[test]
    fn a_client_that_lacks_what_is_gone_is_too_late_and_not_given_the_rest() {
        let shared = tables(32, 1, 1);
        let ring = Ring::new(shared);
        listen(shared, 1, 0, 0);
        for _ in 0..100 {
            ring.append(0, &shared.channels[0], b"too much of it");
        }
        assert_eq!(collect(shared, 1, 4096).0, Collected::TooLate);
        assert_eq!(Reader::new(shared).backlog(1), Err(Overwritten));
    }

    #[test]
    fn listeners_of_one_channel_share_a_batch_but_not_their_places() {
        let shared = tables(1 << 10, 1, 4);
        let ring = Ring::new(shared);
        let append = |text: &str| ring.append(0, &shared.channels[0], text.as_bytes());
        (0..3).for_each(|client| listen(shared, client, client, 0));
        let mut batch = Batch::default();
        let reader = Reader::new(shared);
        let mut collect = |client: u32| {
            let collected = reader.collect(client, 4, &mut batch);
            (collected, String::from_utf8(batch.bytes.clone()).unwrap())
        };
        append("a1 ");
        append("a2 ");
        assert_eq!(collect(0), (Collected::All, "a1 a2 ".to_owned()));
        append("a3 ");
        assert_eq!(collect(1), (Collected::Part, "a1 a2 ".to_owned()), "what another was given");
        assert_eq!(collect(1), (Collected::All, "a3 ".to_owned()));
        assert_eq!(collect(0), (Collected::All, "a3 ".to_owned()));
        assert_eq!(collect(2), (Collected::Part, "a1 a2 ".to_owned()));
        assert_eq!(collect(2), (Collected::All, "a3 ".to_owned()));
        assert_eq!(collect(2), (Collected::All, String::new()));
        assert_eq!(shared.channels[0].delivered.load(Relaxed), 9);
    }

    #[test]
    fn a_listen_that_has_not_committed_is_given_nothing_yet() {
        let shared = tables(64, 1, 1);
        listen(shared, 1, 0, 0);
        shared.listens[0].tentative.store(1, Relaxed);
        Ring::new(shared).append(0, &shared.channels[0], b"meanwhile");
        assert_eq!(collect(shared, 1, 4096), (Collected::All, String::new()));
        shared.listens[0].tentative.store(0, Relaxed);
        assert_eq!(collect(shared, 1, 4096), (Collected::All, "meanwhile".to_owned()));
    }
}
