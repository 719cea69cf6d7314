//! A client's prepared statements: reading them from the session's table, and bringing the next client's into it. Pooled backends.
//!
//! A backend keeps one plan source for each text, types of parameters and whatever else the analysis depends on; the names of the
//! client that it serves point at them. A plan source serves one name at a time, since closing the name drops it.
//!
//! Most names are put into the table only when they are looked up: a client with twenty statements uses one or two in a transaction.
//! Those that depend on more than a lookup can give (their literals are read by settings) are there before the client speaks.
//!
//! - `kept`: the plan sources
//! - `plans`: making one
//! - `columns`: what clients were told of results

mod columns;
mod kept;
mod plans;

use self::columns::columns_of;
pub(super) use self::columns::expect_columns;
use self::kept::{Gone, Kept};
pub(super) use self::plans::unnamed;
use self::plans::{complete, has_value_of_its_moment, make_later, make_now, types_of};
use super::super::shim;
use super::settings::Environment;
use crate::pooler::state::{self, Place, Statement, StatementList};
use pgrx::prelude::*;
use std::collections::HashMap;
use std::ffi::{CStr, c_char};

type Plan = *mut pg_sys::CachedPlanSource;

pub(super) struct Statements {
    table: *mut pg_sys::HTAB,
    /// By address of the plan source.
    kept: HashMap<usize, Kept>,
    by_key: HashMap<u64, Vec<usize>>,
    clock: u64,
    /// Names can wait until they are looked up.
    lazy: bool,
    /// The client's statements as bytes, sorted by name, and where each lies in them, with whether its name is in the table or was.
    listed: Vec<u8>,
    places: Vec<(Place, bool)>,
    /// Plan sources that the server has freed: told by its callback, taken out here.
    gone: Box<Gone>,
}

impl Statements {
    /// Finds the session's table. In a transaction; raises the server's error when there is no memory.
    pub fn find() -> Option<Self> {
        // SAFETY: in a transaction, on the session's own tables: a statement without text is stored and dropped, so that the
        // table is made, and the last saved plan source is our sentinel, which stays.
        unsafe {
            let make = || {
                let plan = pg_sys::CreateCachedPlan(
                    std::ptr::null_mut(),
                    c"".as_ptr(),
                    pg_sys::CommandTag::CMDTAG_UNKNOWN,
                );
                complete(plan, std::ptr::null_mut(), &[]);
                plan
            };
            let name = c"postern sentinel";
            pg_sys::StorePreparedStatement(name.as_ptr(), make(), false);
            pg_sys::DropPreparedStatement(name.as_ptr(), false);
            let sentinel = make();
            pg_sys::SaveCachedPlan(sentinel);
            let table = shim::postern_named_table(c"Prepared Queries".as_ptr());
            if table.is_null() {
                return None;
            }
            shim::postern_watch_statements(table, sentinel);
            Some(Self {
                table,
                kept: HashMap::new(),
                by_key: HashMap::new(),
                clock: 0,
                lazy: shim::postern_watch_names(table),
                listed: Vec::new(),
                places: Vec::new(),
                gone: Box::default(),
            })
        }
    }

    /// The session's statements as a [`StatementList`]; and whether one of them cannot be made again elsewhere.
    pub fn read(&mut self, environment: Environment, changed_meanwhile: bool) -> (Vec<u8>, bool) {
        self.forget_gone();
        let mut entries = self.entries();
        entries.sort_by(|a, b| name_of(*a).cmp(name_of(*b)));
        let mut fixed = false;
        let mut list = StatementList::default();
        let mut nameless: Vec<&[u8]> = self.nameless().collect();
        nameless.reverse();
        let mut kept_now = Vec::new();
        for entry in entries {
            while let Some(bytes) = nameless.pop_if(|bytes| state::name_of(bytes) < name_of(entry)) {
                list.push_bytes(bytes);
            }
            // SAFETY: an entry of the session's table with its plan source; all texts are terminated.
            unsafe {
                let plan = (*entry).plansource;
                let text = CStr::from_ptr((*plan).query_string).to_bytes();
                let types = types_of(plan);
                let raw = (*plan).raw_parse_tree;
                let kept = self.kept.get(&(plan as usize));
                let new = kept.is_none();
                let own = environment.of(text);
                let literals = kept.map_or(own.literals, |kept| kept.environment.literals);
                // Parsed again by other settings, its literals would be others.
                let unsure = kept.map_or(changed_meanwhile && own.literals != 0, |kept| kept.unsure);
                // What is only wrapped, and an empty text, needs no catalog, but an earlier server has it look for one
                // (IsTransactionStmtPlan).
                let utility = raw.is_null()
                    || (!pg_sys::analyze_requires_snapshot(raw)
                        && (*(*raw).stmt).type_ != pg_sys::NodeTag::T_TransactionStmt);
                let statement = Statement {
                    name: name_of(entry),
                    text,
                    types,
                    from_sql: (*entry).from_sql,
                    location: if raw.is_null() { -1 } else { (*raw).stmt_location },
                    literals,
                    prepared_at: (*entry).prepare_time,
                    eager: utility || literals != 0 || own.literals != 0,
                    columns: columns_of((*plan).resultDesc),
                };
                list.push(&statement);
                fixed |= unsure || literals != own.literals || has_value_of_its_moment(text);
                if new {
                    kept_now.push((plan, statement, own, unsure));
                }
            }
        }
        nameless.iter().rev().for_each(|bytes| list.push_bytes(bytes));
        for (plan, statement, own, unsure) in kept_now {
            self.keep(plan, &statement, own, unsure);
        }
        (list.finish(), fixed)
    }

    /// The client's statements whose names are not in the table, as bytes.
    fn nameless(&self) -> impl Iterator<Item = &[u8]> {
        self.places.iter().filter(|(_, named)| !named).filter_map(|(place, _)| place.of(&self.listed))
    }

    /// Whether a lookup may ask for more.
    pub fn has_nameless(&self) -> bool {
        self.places.iter().any(|(_, named)| !named)
    }

    /// The name is about to be looked up. Touches no catalog, since that may be in a transaction that has failed, or outside one.
    ///
    /// Raises the server's error when there is no memory.
    pub fn name(&mut self, name: &[u8], environment: Environment) {
        let place = self.places.binary_search_by(|(place, _)| self.name_at(*place).cmp(name));
        let Some((at, (place, false))) = place.ok().and_then(|at| Some((at, *self.places.get(at)?))) else {
            return;
        };
        // A plan source that was freed a moment ago may lie where the new one will.
        self.forget_gone();
        let bytes = place.of(&self.listed).unwrap_or_default().to_vec();
        if let Some(statement) = state::statement_of(&bytes) {
            self.enter(&statement, environment, make_later);
            // SAFETY: a count of the shim.
            unsafe { shim::postern_recount_statements() };
        }
        self.places[at].1 = true;
    }

    /// All names are about to be looked up.
    pub fn name_all(&mut self, environment: Environment) {
        let names: Vec<Vec<u8>> = self.nameless().map(|bytes| state::name_of(bytes).to_vec()).collect();
        names.iter().for_each(|name| self.name(name, environment));
    }

    fn name_at(&self, place: Place) -> &[u8] {
        place.of(&self.listed).map_or(&[], state::name_of)
    }

    /// Makes the table hold no others than these statements, and of these the eager ones; the others come when they are looked up.
    /// `begin` starts a transaction if there is none; it is called before a text is parsed.
    ///
    /// Raises the server's error when a text cannot be parsed or there is no memory.
    pub fn swap(&mut self, to: &[u8], environment: Environment, most: usize, begin: &mut dyn FnMut()) {
        self.forget_gone();
        self.places.clear();
        self.listed.clear();
        self.listed.extend(to);
        self.places.extend(state::places(to).unwrap_or_default().into_iter().map(|place| (place, false)));
        for entry in self.entries() {
            // SAFETY: an entry of the session's table; its plan source stays, since it is in our keeping or dropped here.
            unsafe {
                let plan = (*entry).plansource;
                let at = self.places.binary_search_by(|(place, _)| self.name_at(*place).cmp(name_of(entry)));
                if let Some(at) = at.ok()
                    && let Some(statement) = self.places[at].0.of(&self.listed).and_then(state::statement_of)
                    && self
                        .kept
                        .get(&(plan as usize))
                        .is_some_and(|k| k.is_for(&statement, environment.at(&statement)))
                    && (*entry).from_sql == statement.from_sql
                    && columns_of((*plan).resultDesc) == statement.columns
                {
                    (*entry).prepare_time = statement.prepared_at;
                    self.places[at].1 = true;
                    continue;
                }
                match self.kept.get_mut(&(plan as usize)) {
                    Some(kept) => {
                        kept.in_use = false;
                        let mut found = false;
                        pg_sys::hash_search(
                            self.table,
                            (*entry).stmt_name.as_ptr().cast(),
                            pg_sys::HASHACTION::HASH_REMOVE,
                            &raw mut found,
                        );
                    }
                    None => pg_sys::DropPreparedStatement((*entry).stmt_name.as_ptr(), false),
                }
            }
        }
        if !self.lazy || state::eager_count(to) > 0 {
            for at in 0..self.places.len() {
                let (place, named) = self.places[at];
                if let Some(statement) = place.of(to).and_then(state::statement_of)
                    && !named
                    && (statement.eager || !self.lazy)
                {
                    self.enter(&statement, environment, |statement| {
                        begin();
                        make_now(statement)
                    });
                    self.places[at].1 = true;
                }
            }
        }
        self.drop_oldest(most);
        // SAFETY: a count of the shim.
        unsafe { shim::postern_recount_statements() };
    }

    /// Puts a name into the table, with a plan source that is kept or made.
    fn enter(
        &mut self,
        statement: &Statement<'_>,
        environment: Environment,
        make: impl FnOnce(&Statement<'_>) -> Plan,
    ) {
        // Read by settings that are no more (postgresql.conf has changed since), it cannot be made again: then as they are now.
        let (own, now) = (environment.at(statement), environment.of(statement.text));
        let free = self.free_plan(statement, own).or_else(|| self.free_plan(statement, now));
        let plan = free.unwrap_or_else(|| {
            let plan = make(statement);
            self.keep(plan, statement, now, false);
            plan
        });
        self.clock += 1;
        if let Some(kept) = self.kept.get_mut(&(plan as usize)) {
            kept.in_use = true;
            kept.used_at = self.clock;
        }
        // SAFETY: the session's table; the key is a name padded to its whole length.
        unsafe {
            let mut name = [0 as c_char; pg_sys::NAMEDATALEN as usize];
            for (to, from) in name.iter_mut().zip(statement.name).take(pg_sys::NAMEDATALEN as usize - 1) {
                *to = *from as c_char;
            }
            let mut found = false;
            let entry = pg_sys::hash_search(
                self.table,
                name.as_ptr().cast(),
                pg_sys::HASHACTION::HASH_ENTER,
                &raw mut found,
            )
            .cast::<pg_sys::PreparedStatement>();
            (*entry).plansource = plan;
            (*entry).from_sql = statement.from_sql;
            (*entry).prepare_time = statement.prepared_at;
        }
    }

    fn entries(&self) -> Vec<*mut pg_sys::PreparedStatement> {
        let mut entries = Vec::new();
        // SAFETY: the session's table, which is not changed during the scan.
        unsafe {
            let mut scan = pg_sys::HASH_SEQ_STATUS::default();
            pg_sys::hash_seq_init(&raw mut scan, self.table);
            loop {
                let entry = pg_sys::hash_seq_search(&raw mut scan).cast::<pg_sys::PreparedStatement>();
                if entry.is_null() {
                    return entries;
                }
                entries.push(entry);
            }
        }
    }
}

fn name_of(entry: *mut pg_sys::PreparedStatement) -> &'static [u8] {
    // SAFETY: an entry of the session's table, used only while it is there.
    unsafe { CStr::from_ptr((*entry).stmt_name.as_ptr()).to_bytes() }
}
