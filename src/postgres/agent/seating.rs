//! Who has the client: waiting for one of the pool's or for one's own, taking it, giving it back, ending it. Pooled backends.

use super::look::Look;
use super::settings::Refused;
use super::{Agent, Seat, shim};
use crate::pooler::control::{FRONT_GONE, Word};
use crate::pooler::shared::{Doom, ServerState, now};
use crate::pooler::slot::Release;
use crate::wire::message::Report;
use pgrx::prelude::*;
use std::ffi::c_int;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::*;

/// How long a backend serves client after client before it lets others of the machine run: microseconds.
const TURN: i64 = 200;

impl Agent {
    pub(super) fn may_stay(&self) -> bool {
        // Somebody sees the next ready client: another backend that waits for any, or the front, while the pool may still grow.
        (self.pool.waiters.count() >= 1
            || (self.pool.servers.load(Relaxed) < self.pool.size.load(Relaxed)
                && !self.pool.crowded.load(Relaxed)))
            && !self.pool.paused.load(Relaxed)
            && !self.server.retire.load(Relaxed)
    }

    /// Ends the attached client when somebody has asked for that; whether.
    pub(super) fn is_doomed(&mut self, seat: Seat) -> bool {
        let doomed = self.slot(seat).doomed.load(SeqCst) == seat.generation;
        if doomed {
            self.dismiss(&Doom::of(self.slot(seat)).report());
        }
        doomed
    }

    /// Waits for the attached client itself. True: it is ready; false: it is attached no longer.
    pub(super) fn stay(&mut self, seat: Seat, pinned: bool) -> bool {
        self.enter(if pinned { ServerState::Pinned } else { ServerState::Staying });
        self.slot(seat).since.store(self.server.since.load(Relaxed), Relaxed);
        if !pinned {
            self.pool.stay(self.member);
            // Whoever became the last idle one before we were listed did not see us.
            if !self.may_stay() {
                return self.stay_no_longer();
            }
        }
        if !self.keep_notified(seat, pinned) {
            return false;
        }
        loop {
            // SAFETY: the session's own waits and interrupts.
            let events = unsafe {
                if shim::postern_dying() && !pinned {
                    // An idle client is not to notice that this backend ends.
                    return self.stay_no_longer();
                }
                shim::postern_wait_for_client(pinned)
            };
            if self.is_orphan() {
                return true;
            }
            if events & pg_sys::WL_POSTMASTER_DEATH != 0 {
                self.leave();
            }
            if events & pg_sys::WL_LATCH_SET != 0 {
                // SAFETY: our own latch.
                unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
                if self.slot(seat).doomed.load(SeqCst) == seat.generation {
                    self.pool.unstay(self.member);
                    self.is_doomed(seat);
                    return false;
                }
                let called = !pinned && !self.pool.stays(self.member);
                let to_leave =
                    !pinned && (self.pool.paused.load(Relaxed) || self.server.retire.load(Relaxed));
                if called || to_leave {
                    return self.stay_no_longer();
                }
                if !self.keep_notified(seat, pinned) {
                    return false;
                }
                // While notifications come without end the latch is always set: the client is looked at all the same.
            }
            let look = self.look(seat);
            if let Look::Nothing = look {
                continue;
            }
            if !pinned && !self.pool.unstay(self.member) && self.pool.waiters.count() <= 0 {
                // Called back for somebody just when its own client spoke: the call goes on to another.
                self.nobody_waits();
            }
            // SAFETY: a flag of the session. It came with the message: somebody else is to serve it.
            if !pinned && unsafe { shim::postern_dying() } {
                self.let_go();
                return false;
            }
            match look {
                Look::Ready => return self.serve(seat),
                // Its backend is its own: the message may come as it comes.
                Look::Part if pinned => return self.serve(seat),
                Look::Part => {
                    self.let_go_later();
                    return false;
                }
                Look::Wrong(report) => {
                    self.dismiss(&report);
                    return false;
                }
                Look::Gone | Look::Nothing => {
                    self.hang_up();
                    return false;
                }
            }
        }
    }

    /// Gives the client back that it has stayed with. False, as who has it no longer says.
    fn stay_no_longer(&mut self) -> bool {
        self.pool.unstay(self.member);
        self.let_go();
        false
    }

    /// Gives the client that it stays with what there is for it; false when the client is attached no longer.
    fn keep_notified(&mut self, seat: Seat, pinned: bool) -> bool {
        let attached = self.notify(seat, pinned);
        if !attached {
            self.pool.unstay(self.member);
        }
        attached
    }

    /// PostgresMain() is to read the client's message.
    fn serve(&mut self, seat: Seat) -> bool {
        self.enter(ServerState::Serving);
        let slot = self.slot(seat);
        slot.since.store(self.server.since.load(Relaxed), Relaxed);
        slot.parts.store(0, Relaxed);
        slot.part_since.store(0, Relaxed);
        let restored = self.restore_unnamed(seat);
        if !restored {
            self.dismiss(&Report::fatal("53000", "the session's unnamed statement could not be restored"));
        }
        restored
    }

    /// The connection's state, and since when it has it.
    fn enter(&self, state: ServerState) {
        if self.server.state() != state {
            self.server.since.store(now(), Relaxed);
            self.server.set_state(state);
        }
    }

    /// Gives the client back to the pool.
    pub(super) fn let_go(&mut self) {
        // SAFETY: an int setting.
        let idle = u32::try_from(unsafe { pg_sys::IdleSessionTimeout }).unwrap_or(0);
        let before = self.seat.map_or(0, |seat| self.slot(seat).idle_millis.swap(idle, Relaxed));
        if let Some(seat) = self.release(false)
            && let Some(links) = &self.links
        {
            links.arm(seat);
            self.leave_behind(seat);
            if idle > 0 || before > 0 {
                // The server's own timer would end this backend; the front keeps the time of the client.
                links.say(Word::Idle { slot: seat.slot, generation: seat.generation });
            }
            self.end_if_too_late(seat);
        }
    }

    /// The front ends and may have looked at idle clients for the last time before this one became idle: then it hears of the end
    /// here.
    fn end_if_too_late(&mut self, seat: Seat) {
        if self.shared.header.ending.load(SeqCst) == self.epoch
            && self.slot(seat).word.take(seat.generation, self.number)
        {
            self.server.slot.store(seat.slot + 1, Release);
            self.seat = Some(seat);
            self.sit(seat);
            self.dismiss(&Doom::Administrator.report());
        }
    }

    /// Gives the client back, to be looked at again in a moment.
    fn let_go_later(&mut self) {
        if let Some(seat) = self.release(false)
            && let Some(links) = &self.links
        {
            links.say(Word::Later { slot: seat.slot, generation: seat.generation });
            self.leave_behind(seat);
            self.end_if_too_late(seat);
        }
    }

    /// Hands the client to the front to be ended, and leaves nothing of it behind.
    pub(super) fn hang_up(&mut self) {
        let Some(seat) = self.seat else { return };
        let pins = self.slot(seat).pins.load(Relaxed);
        let ours = self.release(true).is_some();
        if ours && let Some(links) = &self.links {
            // Here and now, so that the front need not have main do it. Until it hears of the end, nobody else gets the slot.
            self.slot(seat).texts().iter().for_each(|word| links.texts.free(word));
        }
        self.wait_on_no(seat.slot);
        if let Some(links) = &mut self.links {
            links.forget(seat);
            links.say(Word::Gone { slot: seat.slot, generation: seat.generation });
        }
        self.clean(pins);
    }

    /// The client is attached no longer.
    fn release(&mut self, hang_up: bool) -> Option<Seat> {
        let seat = self.seat.take()?;
        let slot = self.slot(seat);
        // SAFETY: words of the session; nothing goes out and no timer of the client's runs from here on.
        unsafe {
            shim::postern_seen.mute = true;
            shim::postern_set_socket(self.parked);
            shim::postern_disarm();
        }
        self.server.slot.store(0, Release);
        if self.last == Some(seat) {
            self.last_count = slot.transactions.load(Relaxed);
        }
        if self.server.state() == ServerState::Serving {
            // It becomes idle only now; one whose backend has stayed with it has been so for as long as that.
            slot.since.store(now(), Relaxed);
        }
        loop {
            let done = if hang_up {
                slot.word.hang_up(seat.generation, self.number)
            } else {
                slot.word.release(seat.generation, self.number)
            };
            match done {
                Release::Done => return Some(seat),
                // The front is between looking and signalling: a matter of microseconds.
                Release::Later => std::thread::yield_now(),
                Release::Lost => return None,
            }
        }
    }

    /// Waits until a client of the pool is ready, and seats it. False: look again.
    pub(super) fn wait_for_any(&mut self) -> bool {
        self.enter(ServerState::Idle);
        // SAFETY: the session's own interrupts, at its top, with no client attached.
        unsafe {
            shim::postern_seen.mute = true;
            pg_sys::ResetLatch(pg_sys::MyLatch);
            shim::postern_interrupts();
            shim::postern_notify_interrupts(false);
            if shim::postern_reload_pending() {
                shim::postern_reload();
                self.look_around();
            }
        }
        if self.server.retire.load(Relaxed) {
            self.leave();
        }
        if self.pool.paused.load(Relaxed) {
            // SAFETY: our own latch, and the postmaster's death.
            unsafe {
                let events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH | pg_sys::WL_TIMEOUT;
                pg_sys::WaitLatch(pg_sys::MyLatch, events as c_int, 100, pg_sys::PG_WAIT_EXTENSION);
            }
            return false;
        }
        // The others of the pool that have taken a client and wait for a processor go first now and then: whoever has one would
        // serve client after client for as long as the system lets it, and theirs would wait for many times a query's time.
        if self.server.since.load(Relaxed) - self.awake_since > TURN {
            std::thread::yield_now();
            self.awake_since = now();
        }
        let Some(links) = &self.links else { return false };
        let (mut data, mut slept) = (0, false);
        if !self.pool.waiters.begin(self.epoch) {
            self.leave();
        }
        // SAFETY: the pool's epoll instance, and words of ours.
        let found =
            unsafe { shim::postern_wait_for_any(links.epoll.as_raw_fd(), &raw mut data, &raw mut slept) };
        if self.is_orphan() {
            self.leave();
        }
        if slept {
            self.awake_since = now();
        }
        let Some(left) = self.pool.waiters.end(self.epoch) else { self.leave() };
        if left <= 0 {
            self.nobody_waits();
        }
        if found == 0 {
            return false;
        }
        if found < 0 || data == FRONT_GONE {
            self.leave();
        }
        self.take(data as u32)
    }

    /// This was the last idle one: a staying one is called back, and the front hears of it if it wants to.
    fn nobody_waits(&self) {
        if let Some(server) = self.pool.call_back()
            && let Some(server) = self.shared.servers.get(server as usize)
        {
            // SAFETY: the number of a process that was listed; a latch that is set once too often harms nobody.
            unsafe { shim::postern_wake(server.proc.load(Acquire)) };
        }
        if self.pool.wants_news.load(Relaxed) == 1
            && self.pool.wants_news.swap(0, AcqRel) == 1
            && let Some(links) = &self.links
        {
            links.say(Word::Nobody);
        }
    }

    /// Seats the client of a slot that the pool said is ready.
    fn take(&mut self, number: u32) -> bool {
        let Some(slot) = self.shared.slots.get(number as usize) else { return false };
        let Some(generation) = slot.word.come(self.number) else { return false };
        let seat = Seat { slot: number, generation };
        self.server.slot.store(number + 1, Release);
        self.enter(ServerState::Serving);
        let now = self.server.since.load(Relaxed);
        slot.since.store(now, Relaxed);
        let waited_since = slot.waiting_since.end();
        if waited_since != 0 {
            let waited = u64::try_from(now - waited_since).unwrap_or(0);
            self.pool.wait_micros.fetch_add(waited, Relaxed);
        }
        self.seat = Some(seat);
        if self.last == Some(seat) && self.last_count != slot.transactions.load(Relaxed) {
            // Another backend has served it since. Also when it is let go again at once, what the session has is not the client's.
            self.last = None;
        }
        if self.wait_set.is_some_and(|waited| waited != seat) {
            // If that client has gone, this one may have its slot and close its descriptor.
            self.wait_on_no(seat.slot);
        }
        let Some(links) = &mut self.links else { return false };
        if !links.meet(seat) {
            // The front has no descriptor to give, or is gone. It ends the client when it finds this backend ended.
            self.leave();
        }
        let fresh = slot.is_fresh();
        if !fresh {
            match self.look(seat) {
                Look::Ready => {}
                Look::Nothing if slot.discard.load(Relaxed) == 0 => {
                    slot.parts.store(0, Relaxed);
                    slot.part_since.store(0, Relaxed);
                    self.let_go();
                    return false;
                }
                Look::Part | Look::Nothing => {
                    self.let_go_later();
                    return false;
                }
                Look::Gone => {
                    self.sit(seat);
                    self.hang_up();
                    return false;
                }
                Look::Wrong(report) => {
                    self.sit(seat);
                    self.dismiss(&report);
                    return false;
                }
            }
        }
        self.sit(seat);
        // SAFETY: a word of the shim.
        self.unnamed_before = unsafe { shim::postern_unnamed_number() };
        self.pool.assignments.fetch_add(1, Relaxed);
        // SAFETY: a flag of the session. The end of this backend came with the client: it is for another one.
        if unsafe { shim::postern_dying() } {
            if self.release(false).is_some()
                && let Some(links) = &self.links
            {
                if fresh { links.announce(seat) } else { links.arm(seat) }
            }
            return false;
        }
        if fresh {
            self.welcome(seat);
            return false;
        }
        if self.last != Some(seat)
            && let Err(Refused(why)) = self.swap(seat)
        {
            self.last = None;
            // A session that cannot be brought from one client to another serves nobody any more.
            self.server.retire.store(true, Relaxed);
            self.now_settings = self.settings.read(&[]);
            let report =
                Report::fatal("57P01", "the session's state could not be brought to another backend")
                    .with_detail(why);
            self.dismiss(&report);
            return false;
        }
        self.last = Some(seat);
        self.begin_listening(seat);
        // SAFETY: as above; it came during the swap.
        if unsafe { shim::postern_dying() } {
            self.let_go();
            return false;
        }
        // SAFETY: a flag of the shim: from here on the client hears its session.
        unsafe { shim::postern_seen.mute = false };
        self.serve(seat)
    }

    /// Before a descriptor of the slot is closed.
    fn wait_on_no(&mut self, slot: u32) {
        if self.wait_set.is_some_and(|waited| waited.slot == slot) {
            self.wait_set = None;
            // SAFETY: the wait set that was made for it.
            unsafe { shim::postern_wait_on_none() };
        }
    }

    /// The session's socket is the client's.
    fn sit(&mut self, seat: Seat) {
        let Some(links) = &self.links else { return };
        let descriptor = links.number(seat.slot);
        // SAFETY: the descriptor is open: `meet` made it so.
        unsafe {
            shim::postern_set_socket(descriptor);
            if self.wait_set != Some(seat) {
                shim::postern_wait_on(descriptor);
                self.wait_set = Some(seat);
            }
        }
    }
}
