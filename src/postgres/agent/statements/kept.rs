//! The plan sources that a backend keeps, whose names come and go, and how many. Pooled backends.

use super::columns::columns_of;
use super::{Plan, Statements};
use crate::pooler::state::{Statement, hash};
use crate::postgres::agent::settings::Environment;
use pgrx::prelude::*;
use std::ffi::c_void;

/// A plan source of the session.
pub(super) struct Kept {
    pub(super) plan: Plan,
    pub(super) key: u64,
    /// Text, types and environment, to be sure where hashes agree.
    pub(super) text: Vec<u8>,
    pub(super) types: Vec<u32>,
    pub(super) from_sql: bool,
    pub(super) location: i32,
    pub(super) environment: Environment,
    /// A setting that its literals are read by may have changed since it was parsed.
    pub(super) unsure: bool,
    /// A name points at it.
    pub(super) in_use: bool,
    pub(super) used_at: u64,
}

#[derive(Default)]
pub(super) struct Gone(Vec<usize>);

/// Called by the server when it frees a plan source's memory, in the middle of its own work: only takes a note.
unsafe extern "C-unwind" fn plan_gone(argument: *mut c_void) {
    // SAFETY: the note registered with it, which lives as long as the plan source.
    unsafe {
        let note = argument.cast::<Note>();
        (*(*note).gone).0.push((*note).plan);
    }
}

/// In the plan source's own memory.
#[repr(C)]
struct Note {
    callback: pg_sys::MemoryContextCallback,
    gone: *mut Gone,
    plan: usize,
}

impl Statements {
    /// Takes a plan source into the keeping.
    pub(super) fn keep(
        &mut self,
        plan: Plan,
        statement: &Statement<'_>,
        environment: Environment,
        unsure: bool,
    ) {
        let key = key_of(statement, environment);
        // SAFETY: a saved plan source; the note lives in its memory and is called once, when that is freed.
        unsafe {
            let note = pg_sys::MemoryContextAlloc((*plan).context, size_of::<Note>()).cast::<Note>();
            note.write(Note {
                callback: pg_sys::MemoryContextCallback {
                    func: Some(plan_gone),
                    arg: note.cast(),
                    next: std::ptr::null_mut(),
                },
                gone: &raw mut *self.gone,
                plan: plan as usize,
            });
            pg_sys::MemoryContextRegisterResetCallback((*plan).context, &raw mut (*note).callback);
        }
        self.clock += 1;
        let kept = Kept {
            plan,
            key,
            text: statement.text.to_vec(),
            types: statement.types.clone(),
            from_sql: statement.from_sql,
            location: statement.location,
            environment,
            unsure,
            in_use: true,
            used_at: self.clock,
        };
        self.kept.insert(plan as usize, kept);
        self.by_key.entry(key).or_default().push(plan as usize);
    }

    /// A kept plan source for the statement that no name points at.
    pub(super) fn free_plan(&self, statement: &Statement<'_>, environment: Environment) -> Option<Plan> {
        let plans = self.by_key.get(&key_of(statement, environment))?;
        let free = |kept: &&Kept| !kept.in_use && kept.is_for(statement, environment);
        let kept = plans.iter().filter_map(|plan| self.kept.get(plan)).find(free)?;
        // SAFETY: in our keeping, so alive. A result of other columns than this client knows is not for it: the server must
        // then raise its own error, from a plan source that has them.
        unsafe { (columns_of((*kept.plan).resultDesc) == statement.columns).then_some(kept.plan) }
    }

    pub(super) fn forget_gone(&mut self) {
        for plan in std::mem::take(&mut self.gone.0) {
            if let Some(kept) = self.kept.remove(&plan)
                && let Some(plans) = self.by_key.get_mut(&kept.key)
            {
                plans.retain(|p| *p != plan);
                if plans.is_empty() {
                    self.by_key.remove(&kept.key);
                }
            }
        }
    }

    /// Keeps the number of plan sources that nobody points at within bounds.
    pub(super) fn drop_oldest(&mut self, most: usize) {
        if self.kept.len() <= most {
            return;
        }
        let mut free: Vec<(u64, Plan)> =
            self.kept.values().filter(|k| !k.in_use).map(|k| (k.used_at, k.plan)).collect();
        if free.len() <= most {
            return;
        }
        // Some more than have to go, so that this is not done at every swap.
        let going = free.len() - (most - most / 8);
        free.select_nth_unstable_by_key(going - 1, |(used_at, _)| *used_at);
        for (_, plan) in &free[..going] {
            // SAFETY: a saved plan source that no name points at.
            unsafe { pg_sys::DropCachedPlan(*plan) };
        }
        self.forget_gone();
    }
}

impl Kept {
    pub(super) fn is_for(&self, statement: &Statement<'_>, environment: Environment) -> bool {
        !self.unsure
            && self.environment == environment
            && self.types == statement.types
            && self.from_sql == statement.from_sql
            && self.location == statement.location
            && self.text == statement.text
    }
}

fn key_of(statement: &Statement<'_>, environment: Environment) -> u64 {
    let mut bytes = Vec::with_capacity(statement.text.len() + 4 * statement.types.len() + 16);
    bytes.extend(environment.literals.to_le_bytes());
    bytes.extend(environment.names.to_le_bytes());
    bytes.extend(statement.location.to_le_bytes());
    bytes.push(u8::from(statement.from_sql));
    for oid in &statement.types {
        bytes.extend(oid.to_le_bytes());
    }
    bytes.extend(statement.text);
    hash(&bytes)
}
