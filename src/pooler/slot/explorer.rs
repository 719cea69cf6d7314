//! Atomics with which tests explore every interleaving: each access is one step of the actor that makes it, and between two steps
//! any other actor may come. Outside an exploration they are the processor's.
//!
//! An actor is ordinary code, and what it does depends only on what its accesses have returned. So its place is written down
//! as these results, and its next step is made by running it again from its start: accesses of before return what they have
//! returned, the next one is made, and where it would make another one it is unwound. States that have been seen are not
//! explored again. Memory is sequentially consistent here: what a weaker order would let happen is not shown.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;

/// An actor that is being run.
#[derive(Default)]
struct Run {
    /// What its accesses have returned.
    past: Vec<Result<u64, u64>>,
    /// How many of these have been given again.
    given: usize,
    /// The access that is this step has been made.
    stepped: bool,
    /// It has made a step before.
    begun: bool,
}

thread_local! {
    static RUN: RefCell<Option<Run>> = const { RefCell::new(None) };
}

/// Why an actor is unwound.
enum Unwound {
    /// Its next access is its next step.
    Paused,
    /// It is there again.
    Back(usize),
}

/// An access of whoever runs.
fn access(make: impl FnOnce() -> Result<u64, u64>) -> Result<u64, u64> {
    let outcome = RUN.with_borrow_mut(|run| {
        let Some(run) = run else { return Some(make()) };
        if let Some(result) = run.past.get(run.given) {
            run.given += 1;
            return Some(*result);
        }
        if run.stepped {
            return None;
        }
        let result = make();
        run.past.push(result);
        run.given += 1;
        run.stepped = true;
        Some(result)
    });
    outcome.unwrap_or_else(|| resume_unwind(Box::new(Unwound::Paused)))
}

/// A step that others do not see, between two that they do.
pub fn pause() {
    let _ = access(|| Ok(0));
}

/// Where an actor is, for [`back_to`].
pub fn here() -> usize {
    RUN.with_borrow(|run| run.as_ref().map_or(0, |run| run.given))
}

/// The end of a round of a loop, of which nothing is remembered: the actor begins the next one.
pub fn back_to(here: usize) -> ! {
    resume_unwind(Box::new(Unwound::Back(here)))
}

/// What belongs to the step that is being made, as against those that are only run again.
pub fn once(what: impl FnOnce()) {
    let live = RUN.with_borrow(|run| run.as_ref().is_none_or(|run| run.stepped || !run.begun));
    if live {
        what();
    }
}

macro_rules! watched {
    ($name:ident, $value:ty) => {
        #[repr(transparent)]
        #[derive(Debug, Default)]
        pub struct $name(std::sync::atomic::$name);

        impl $name {
            pub fn load(&self, order: Ordering) -> $value {
                access(|| Ok(self.0.load(order) as u64)).unwrap_or_default() as $value
            }

            pub fn store(&self, value: $value, order: Ordering) {
                let _ = access(|| {
                    self.0.store(value, order);
                    Ok(0)
                });
            }

            #[allow(dead_code, reason = "not every width is swapped")]
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                access(|| Ok(self.0.swap(value, order) as u64)).unwrap_or_default() as $value
            }

            #[allow(dead_code, reason = "not every width is swapped")]
            pub fn compare_exchange(
                &self,
                from: $value,
                to: $value,
                done: Ordering,
                failed: Ordering,
            ) -> Result<$value, $value> {
                let exchange = || {
                    let found = self.0.compare_exchange(from, to, done, failed);
                    found.map(|value| value as u64).map_err(|value| value as u64)
                };
                access(exchange).map(|value| value as $value).map_err(|value| value as $value)
            }
        }
    };
}

watched!(AtomicU64, u64);
watched!(AtomicU32, u32);
watched!(AtomicI64, i64);

/// What actors share: its words, and what a test keeps of what has happened.
pub trait World {
    type Image: Clone + Eq + Hash;

    fn image(&self) -> Self::Image;

    fn show(&self, image: &Self::Image);

    /// What must hold whenever no actor is amid a step; `done` when no one has anything left to do.
    fn check(&self, done: bool);
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    past: Vec<Result<u64, u64>>,
    begun: bool,
    done: bool,
}

/// Every interleaving of the actors' steps, from the world as it is. How many states there are; each can come to an end.
pub fn explore<W: World>(world: &W, actors: &[&dyn Fn(&W)]) -> usize {
    let start = (world.image(), vec![Place { past: Vec::new(), begun: false, done: false }; actors.len()]);
    let mut numbers = HashMap::from([(start.clone(), 0usize)]);
    let mut before: Vec<Vec<usize>> = vec![Vec::new()];
    let mut todo = vec![(start, 0)];
    let mut ends = Vec::new();
    while let Some(((image, places), number)) = todo.pop() {
        if places.iter().all(|place| place.done) {
            ends.push(number);
        }
        for (index, actor) in actors.iter().enumerate() {
            if places[index].done {
                continue;
            }
            world.show(&image);
            let mut places = places.clone();
            places[index] = step(world, *actor, &places[index]);
            world.check(places.iter().all(|place| place.done));
            let state = (world.image(), places);
            let next = *numbers.entry(state.clone()).or_insert_with(|| {
                before.push(Vec::new());
                todo.push((state, before.len() - 1));
                before.len() - 1
            });
            before[next].push(number);
        }
    }
    let mut comes_to_an_end = vec![false; before.len()];
    while let Some(number) = ends.pop() {
        if !std::mem::replace(&mut comes_to_an_end[number], true) {
            ends.extend(&before[number]);
        }
    }
    let lost = comes_to_an_end.iter().filter(|ends| !**ends).count();
    assert_eq!(lost, 0, "of {} states, in which some actor tries in vain for ever", before.len());
    before.len()
}

/// The actor's place after its next step. A failed assertion of its passes.
fn step<W>(world: &W, actor: &dyn Fn(&W), place: &Place) -> Place {
    RUN.set(Some(Run { past: place.past.clone(), begun: place.begun, ..Run::default() }));
    let outcome = catch_unwind(AssertUnwindSafe(|| actor(world)));
    let mut past = RUN.take().map(|run| run.past).unwrap_or_default();
    let done = match outcome {
        Ok(()) => true,
        Err(why) => match why.downcast::<Unwound>() {
            Ok(why) => {
                if let Unwound::Back(here) = *why {
                    past.truncate(here);
                }
                false
            }
            Err(failed) => resume_unwind(failed),
        },
    };
    Place { past, begun: true, done }
}

#[test]
fn two_who_count_without_a_swap_lose_a_count() {
    struct Count(AtomicU64, std::cell::Cell<u64>);
    impl World for Count {
        type Image = u64;

        fn image(&self) -> u64 {
            self.0.0.load(Ordering::SeqCst)
        }

        fn show(&self, image: &u64) {
            self.0.0.store(*image, Ordering::SeqCst);
        }

        fn check(&self, done: bool) {
            if done {
                self.1.set(self.1.get() | 1 << self.image());
            }
        }
    }
    let world = Count(AtomicU64::default(), std::cell::Cell::default());
    let careless = |world: &Count| {
        let count = world.0.load(Ordering::SeqCst);
        world.0.store(count + 1, Ordering::SeqCst);
    };
    explore(&world, &[&careless, &careless]);
    assert_eq!(world.1.get(), 0b110, "one or two are the counts that there can be");
    world.show(&0);
    world.1.set(0);
    let careful = |world: &Count| {
        let here = here();
        let count = world.0.load(Ordering::SeqCst);
        if world.0.compare_exchange(count, count + 1, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            back_to(here);
        }
    };
    explore(&world, &[&careful, &careful]);
    assert_eq!(world.1.get(), 0b100, "two is the only one");
}
