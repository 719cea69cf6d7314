//! A client's slot, step by step and in every interleaving of the front and two backends.

use super::explorer::{AtomicU32, World, back_to, explore, here, once, pause};
use super::*;
use std::cell::RefCell;

#[test]
fn a_client_goes_round_and_its_slot_comes_back_as_another_generation() {
    let word = SlotWord::default();
    let first = word.claim().unwrap();
    assert!(word.claim().is_none());
    assert!(word.enter(first) && word.take(first, 7));
    assert_eq!((word.seen().state(), word.seen().server()), (State::Attached, 7));
    assert!(!word.take(first, 8));
    assert_eq!(word.release(first, 8), Release::Lost);
    assert_eq!(word.release(first, 7), Release::Done);
    assert!(word.close_idle(first) && word.free(first));
    let second = word.claim().unwrap();
    assert_ne!(first, second);
    assert!(!word.enter(first), "an event of the client before does nothing");
}

/// What has happened.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
struct Events {
    /// The generation of the client that backend 1 and 2 have.
    has: [Option<u32>; 3],
    /// How often the clients of generation 1 and 2 have been closed.
    closed: [u32; 3],
    /// Clients that somebody has asked to be ended.
    doomed: [bool; 3],
    /// The front writes notifications to the client.
    written_to: bool,
    /// What the client has sent has been answered.
    answered: bool,
}

/// A slot, as far as several change it, and a backend's latch.
#[derive(Default)]
struct Scene {
    word: SlotWord,
    waiting: WaitingSince,
    doomed: AtomicU32,
    latch: AtomicU32,
    /// The pool hears of the client, once, when it has sent something; and whether it has.
    armed: AtomicU32,
    sent: AtomicU32,
    events: RefCell<Events>,
    /// Another client gets the slot when the first one has gone.
    crowded: bool,
}

impl World for Scene {
    type Image = (u64, i64, [u32; 4], Events);

    fn image(&self) -> Self::Image {
        let words = (self.word.0.load(SeqCst), self.waiting.0.load(SeqCst));
        let others = [&self.doomed, &self.latch, &self.armed, &self.sent].map(|word| word.load(SeqCst));
        (words.0, words.1, others, self.events.borrow().clone())
    }

    fn show(&self, (word, waiting, [doomed, latch, armed, sent], events): &Self::Image) {
        self.word.0.store(*word, SeqCst);
        self.waiting.0.store(*waiting, SeqCst);
        self.doomed.store(*doomed, SeqCst);
        self.latch.store(*latch, SeqCst);
        self.armed.store(*armed, SeqCst);
        self.sent.store(*sent, SeqCst);
        self.events.replace(events.clone());
    }

    fn check(&self, done: bool) {
        let (seen, events) = (self.word.seen(), self.events.borrow());
        for (server, generation) in events.has.iter().enumerate() {
            if let Some(generation) = generation {
                let held = matches!(seen.state(), State::Attached | State::Cancelling);
                let its = (seen.server(), seen.generation()) == (server as u32, *generation);
                assert!(held && its, "backend {server} has lost its client: {seen:?}, {events:?}");
            }
        }
        assert!(events.closed.iter().all(|closed| *closed <= 1), "{events:?}");
        if done && seen.state() == State::Attached {
            assert_eq!(self.waiting.get(), 0, "a client that is served waits: {events:?}");
        }
        for generation in 1..3 {
            if done && events.doomed[generation] {
                assert_eq!(events.closed[generation], 1, "a client that was to be ended: {events:?}");
            }
        }
    }
}

impl Scene {
    /// With a client in the pool, of generation 1.
    fn new(crowded: bool) -> Self {
        let scene = Self { crowded, ..Self::default() };
        assert!(scene.word.claim() == Some(1) && scene.word.enter(1));
        scene
    }

    fn happens(&self, what: impl FnOnce(&mut Events)) {
        once(|| what(&mut self.events.borrow_mut()));
    }

    /// A backend whom the pool has told the slot: the generation of the client that it has now.
    fn take(&self, server: u32) -> Option<u32> {
        let generation = self.word.come(server)?;
        self.happens(|events| {
            assert!(events.has.iter().all(Option::is_none), "two backends have one client");
            assert!(!events.written_to, "it is amid being written to");
            events.has[server as usize] = Some(generation);
        });
        self.waiting.end();
        Some(generation)
    }

    /// A backend tries until it is rid of its client; while it has one, the client is there.
    fn leave(&self, server: u32, leave: impl Fn() -> Release) {
        let here = here();
        match leave() {
            Release::Done => self.happens(|events| events.has[server as usize] = None),
            Release::Later => back_to(here),
            Release::Lost => panic!("backend {server} is told that it has lost its client"),
        }
    }

    fn let_go(&self, generation: u32, server: u32) {
        self.leave(server, || self.word.release(generation, server));
    }

    /// A backend hands its client to the front.
    fn hang_up(&self, generation: u32, server: u32) {
        self.leave(server, || self.word.hang_up(generation, server));
        self.close(generation);
    }

    /// The front has the client and closes it; the next one may be there at once.
    fn close(&self, generation: u32) {
        self.happens(|events| {
            assert!(events.has.iter().all(|has| *has != Some(generation)), "closed under a backend");
            assert!(!events.written_to, "closed amid being written to");
            events.closed[generation as usize] += 1;
        });
        assert!(self.word.free(generation), "it is nobody else's to free");
        if self.crowded && generation == 1 {
            assert_eq!(self.word.claim(), Some(2), "the slot is free");
            self.doomed.store(0, Relaxed);
            self.waiting.clear();
            assert!(self.word.enter(2));
        }
    }

    fn close_idle(&self, generation: u32) -> bool {
        let closed = self.word.close_idle(generation);
        if closed {
            self.close(generation);
        }
        closed
    }

    /// One transaction of whichever client the slot has.
    fn serve(&self, server: u32) {
        if let Some(generation) = self.take(server) {
            self.let_go(generation, server);
        }
    }

    /// The front signals the backend that has the client, if one has.
    fn signal(&self, generation: u32, signal: impl Fn()) {
        if let Some(server) = self.word.start_cancel(generation) {
            // Meanwhile the backend's process id is looked up.
            pause();
            self.happens(|events| {
                let has = events.has[server as usize];
                assert_eq!(has, Some(generation), "a cancel for a backend that serves somebody else");
            });
            signal();
            self.word.cancelled(generation, server);
        }
    }

    fn cancel(&self, generation: u32) {
        // The key is looked at in between.
        if self.word.seen().generation() == generation {
            self.signal(generation, || {});
        }
    }

    /// A backend that dies with its client, and the front that hears of it (pools::server_ended()).
    fn die(&self, server: u32) {
        if self.take(server).is_none() {
            return;
        }
        let here = here();
        let seen = self.word.seen();
        assert_eq!(seen.server(), server, "nobody has taken it from the dead");
        if !self.word.bury(seen.generation(), server) {
            back_to(here);
        }
        self.happens(|events| events.has[server as usize] = None);
        self.close(seen.generation());
    }

    /// The front's look, once a second, at a client that is ready (pools::look_at_time()).
    fn look(&self) {
        let seen = self.word.seen();
        if seen.state() == State::Idle {
            self.waiting.mark(&self.word, seen, 7);
        }
    }

    /// A backend that stays with its client until that one is to be ended (Agent::stay()).
    fn stay(&self, server: u32) {
        let Some(generation) = self.take(server) else { return };
        if self.doomed.load(SeqCst) != generation {
            let here = here();
            let is_told = self.latch.swap(0, SeqCst) == 1 && self.doomed.load(SeqCst) == generation;
            if !is_told {
                back_to(here);
            }
        }
        self.hang_up(generation, server);
    }

    /// An administrator has a client ended, wherever it is (Front::kill_client()).
    fn kill(&self, generation: u32) {
        let seen = self.word.seen();
        if seen.generation() != generation
            || matches!(seen.state(), State::Free | State::Login | State::Closing)
        {
            return;
        }
        self.happens(|events| events.doomed[generation as usize] = true);
        let here = here();
        let seen = self.word.seen();
        if seen.generation() != generation {
            return;
        }
        self.doomed.store(generation, SeqCst);
        match seen.state() {
            State::Free | State::Login | State::Closing => return,
            State::Idle if self.close_idle(generation) => return,
            State::Attached => self.signal(generation, || self.latch.store(1, SeqCst)),
            State::Idle | State::Cancelling | State::Notifying | State::Called | State::Listening => {}
        }
        back_to(here);
    }
}

impl Scene {
    /// Of a client that has sent something, of which the pool has still to hear.
    fn with_event() -> Self {
        let scene = Self::new(false);
        scene.armed.store(1, SeqCst);
        scene.sent.store(1, SeqCst);
        scene
    }

    /// A backend that waits for any client until this one has been answered or is gone (Agent::wait_for_any() and Agent::take()).
    fn come(&self, server: u32) {
        let here = here();
        if self.word.seen().state() == State::Free || self.sent.load(SeqCst) == 0 {
            return;
        }
        // One step, as epoll has it: whoever hears of it is the only one.
        if self.armed.swap(0, SeqCst) == 0 {
            back_to(here);
        }
        let Some(generation) = self.take(server) else { back_to(here) };
        self.sent.store(0, SeqCst);
        self.happens(|events| events.answered = true);
        self.let_go(generation, server);
        self.armed.store(1, SeqCst);
    }

    /// The front writes notifications to the client, and ends it instead when that is wanted (Pass::give() and Engine::persist()).
    fn write(&self) {
        let seen = self.word.seen();
        if seen.state() != State::Idle || !self.word.notify(seen.generation()) {
            return;
        }
        let generation = seen.generation();
        self.happens(|events| {
            assert!(events.has.iter().all(Option::is_none), "written to while a backend has it");
            events.written_to = true;
        });
        pause();
        self.happens(|events| events.written_to = false);
        if self.doomed.load(SeqCst) == generation {
            assert!(self.word.close_notifying(generation), "it is the writer's");
            self.close(generation);
        } else if self.word.notified(generation) {
            self.armed.store(1, SeqCst);
        }
    }
}

type Actor = dyn Fn(&Scene);

fn states(crowded: bool, actors: &[&Actor]) -> usize {
    explore(&Scene::new(crowded), actors)
}

#[test]
fn in_every_interleaving_one_owner_and_no_cancel_for_another() {
    let one = |scene: &Scene| {
        scene.serve(1);
        scene.serve(1);
    };
    let two = |scene: &Scene| scene.serve(2);
    let cancel = |scene: &Scene| scene.cancel(1);
    let closer = |scene: &Scene| {
        scene.close_idle(1);
    };
    assert!(states(false, &[&one, &two, &cancel, &closer]) > 1000);
}

#[test]
fn in_every_interleaving_what_was_meant_for_a_client_does_not_hit_the_next() {
    let gone = |scene: &Scene| {
        if let Some(generation) = scene.take(1) {
            scene.hang_up(generation, 1);
        }
    };
    let two = |scene: &Scene| scene.serve(2);
    let cancel = |scene: &Scene| scene.cancel(1);
    let closer = |scene: &Scene| {
        scene.close_idle(1);
    };
    assert!(states(true, &[&gone, &two, &cancel, &closer]) > 1000);
}

#[test]
fn in_every_interleaving_the_client_of_a_dead_backend_is_closed_once() {
    let dies = |scene: &Scene| scene.die(1);
    let two = |scene: &Scene| scene.serve(2);
    let cancel = |scene: &Scene| scene.cancel(1);
    let cancels_next = |scene: &Scene| scene.cancel(2);
    assert!(states(true, &[&dies, &two, &cancel, &cancels_next]) > 1000);
}

#[test]
fn in_every_interleaving_a_client_that_is_served_does_not_wait() {
    let front = |scene: &Scene| {
        scene.look();
        scene.look();
    };
    let one = |scene: &Scene| {
        scene.serve(1);
        scene.take(1);
    };
    let two = |scene: &Scene| scene.serve(2);
    assert!(states(false, &[&front, &one, &two]) > 100);
}

#[test]
fn in_every_interleaving_a_client_that_is_to_be_ended_ends_and_no_other() {
    let stays = |scene: &Scene| scene.stay(1);
    let two = |scene: &Scene| scene.serve(2);
    let kill = |scene: &Scene| scene.kill(1);
    let kill_next = |scene: &Scene| {
        let here = here();
        let seen = scene.word.seen();
        if seen.generation() == 1 || seen.state() == State::Login {
            back_to(here);
        }
        scene.kill(2);
    };
    let cancel = |scene: &Scene| scene.cancel(1);
    assert!(states(false, &[&two, &kill, &kill, &cancel]) > 1000);
    // It goes by itself, too, just when somebody wants to end it.
    let closer = |scene: &Scene| {
        scene.close_idle(1);
    };
    assert!(states(true, &[&stays, &closer, &kill, &kill_next]) > 1000);
}

/// A client that has sent something, to which the front writes meanwhile: whether it was answered, or ended by a killer, in every end.
fn in_every_end(killed: bool, actors: &[&Actor]) -> usize {
    struct Answered(Scene, bool);
    impl World for Answered {
        type Image = <Scene as World>::Image;

        fn image(&self) -> Self::Image {
            self.0.image()
        }

        fn show(&self, image: &Self::Image) {
            self.0.show(image);
        }

        fn check(&self, done: bool) {
            self.0.check(done);
            let events = self.0.events.borrow();
            let ended = self.1 && events.closed[1] == 1;
            assert!(!done || events.answered || ended, "nobody has heard of what it sent: {events:?}");
        }
    }
    let actors: Vec<_> = actors.iter().map(|actor| move |world: &Answered| actor(&world.0)).collect();
    let actors: Vec<&dyn Fn(&Answered)> = actors.iter().map(|actor| actor as &dyn Fn(&Answered)).collect();
    explore(&Answered(Scene::with_event(), killed), &actors)
}

#[test]
fn in_every_interleaving_a_client_that_is_written_to_is_answered_and_nobody_else_has_it_meanwhile() {
    let front = |scene: &Scene| {
        scene.write();
        scene.write();
    };
    let one = |scene: &Scene| scene.come(1);
    let two = |scene: &Scene| scene.come(2);
    let once = |scene: &Scene| scene.write();
    let kill = |scene: &Scene| scene.kill(1);
    assert!(in_every_end(false, &[&front, &one, &two]) > 100);
    assert!(in_every_end(true, &[&once, &one, &kill]) > 100);
}
