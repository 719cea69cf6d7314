//! A client's prepared statements: reading them from the session's table, and bringing the next client's into it. Pooled backends.
//!
//! A backend keeps one plan source for each text, types of parameters and whatever else the analysis depends on; the names of the
//! client that it serves point at them. A plan source serves one name at a time, since closing the name drops it.
//!
//! Most names are put into the table only when they are looked up: a client with twenty statements uses one or two in a transaction.
//! Those that depend on more than a lookup can give (their literals are read by settings) are there before the client speaks.

use super::super::shim;
use super::settings::Environment;
use crate::pooler::state::{self, ColumnType, Place, Statement, StatementList, hash};
use pgrx::prelude::*;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};

type Plan = *mut pg_sys::CachedPlanSource;

/// A plan source of the session.
struct Kept {
    plan: Plan,
    key: u64,
    /// Text, types and environment, to be sure where hashes agree.
    text: Vec<u8>,
    types: Vec<u32>,
    from_sql: bool,
    location: i32,
    environment: Environment,
    /// A setting that its literals are read by may have changed since it was parsed.
    unsure: bool,
    /// A name points at it.
    in_use: bool,
    used_at: u64,
}

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

#[derive(Default)]
struct Gone(Vec<usize>);

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
            // SAFETY: a count of shim.c.
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
        // SAFETY: a count of shim.c.
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

    /// Takes a plan source into the keeping.
    fn keep(&mut self, plan: Plan, statement: &Statement<'_>, environment: Environment, unsure: bool) {
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
    fn free_plan(&self, statement: &Statement<'_>, environment: Environment) -> Option<Plan> {
        let plans = self.by_key.get(&key_of(statement, environment))?;
        let free = |kept: &&Kept| !kept.in_use && kept.is_for(statement, environment);
        let kept = plans.iter().filter_map(|plan| self.kept.get(plan)).find(free)?;
        // SAFETY: in our keeping, so alive. A result of other columns than this client knows is not for it: the server must
        // then raise its own error, from a plan source that has them.
        unsafe { (columns_of((*kept.plan).resultDesc) == statement.columns).then_some(kept.plan) }
    }

    fn forget_gone(&mut self) {
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
    fn drop_oldest(&mut self, most: usize) {
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
    fn is_for(&self, statement: &Statement<'_>, environment: Environment) -> bool {
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

fn name_of(entry: *mut pg_sys::PreparedStatement) -> &'static [u8] {
    // SAFETY: an entry of the session's table, used only while it is there.
    unsafe { CStr::from_ptr((*entry).stmt_name.as_ptr()).to_bytes() }
}

/// # Safety
/// A complete plan source.
unsafe fn types_of(plan: Plan) -> Vec<u32> {
    // SAFETY: by the caller: as many types as it says.
    unsafe {
        let count = usize::try_from((*plan).num_params).unwrap_or(0);
        (0..count).map(|index| (*(*plan).param_types.add(index)).to_u32()).collect()
    }
}

/// The columns of a result as the server compares them (equalTupleDescs() of what PlanCacheComputeResultDesc() makes).
///
/// # Safety
/// Null or a row description.
unsafe fn columns_of<'a>(description: pg_sys::TupleDesc) -> Option<Vec<ColumnType<'a>>> {
    if description.is_null() {
        return None;
    }
    // SAFETY: by the caller; attributes are as many as it says, and their names are terminated.
    unsafe {
        let count = (*description).natts;
        Some(
            (0..count)
                .map(|index| {
                    let mut column = shim::RawColumn::default();
                    let name = shim::postern_column(description, index, &raw mut column);
                    ColumnType {
                        name: CStr::from_ptr(name).to_bytes(),
                        type_oid: column.type_oid,
                        type_modifier: column.modifier,
                        collation: column.collation,
                        length: column.length,
                        by_value: column.by_value,
                        alignment: column.alignment,
                        storage: column.storage,
                    }
                })
                .collect(),
        )
    }
}

/// A literal such as 'now' is evaluated when the text is parsed, so parsing it again would give another value.
fn has_value_of_its_moment(text: &[u8]) -> bool {
    const WORDS: [&[u8]; 4] = [b"now", b"today", b"tomorrow", b"yesterday"];
    text.iter().enumerate().filter(|(_, byte)| **byte == b'\'').any(|(at, _)| {
        let literal = text[at + 1..].trim_ascii_start();
        WORDS.iter().any(|word| literal.get(..word.len()).is_some_and(|l| l.eq_ignore_ascii_case(word)))
    })
}

/// # Safety
/// A plan source that is not complete yet; in a transaction when it has a text.
unsafe fn complete(plan: Plan, queries: *mut pg_sys::List, types: &[u32]) {
    let mut oids: Vec<pg_sys::Oid> = types.iter().map(|oid| pg_sys::Oid::from(*oid)).collect();
    // SAFETY: by the caller; the server copies the types.
    unsafe {
        pg_sys::CompleteCachedPlan(
            plan,
            queries,
            std::ptr::null_mut(),
            oids.as_mut_ptr(),
            oids.len() as c_int,
            None,
            std::ptr::null_mut(),
            pg_sys::CURSOR_OPT_PARALLEL_OK as c_int,
            true,
        );
    }
}

/// The statement of a text that begins at a place; of a PREPARE, what it prepares (PrepareQuery() in prepare.c). Null for an empty
/// text.
///
/// # Safety
/// On the backend's thread.
unsafe fn parsed(text: &CStr, from_sql: bool, location: i32) -> *mut pg_sys::RawStmt {
    // SAFETY: by the caller; a list of RawStmt in the message's memory.
    unsafe {
        let list = pg_sys::pg_parse_query(text.as_ptr());
        let count = if list.is_null() { 0 } else { (*list).length };
        let statements = (0..count)
            .map(|index| (*(*list).elements.add(index as usize)).ptr_value.cast::<pg_sys::RawStmt>());
        let found = statements.into_iter().find(|raw| (**raw).stmt_location == location || !from_sql);
        let Some(raw) = found else { return std::ptr::null_mut() };
        let node = (*raw).stmt;
        if from_sql && (*node).type_ == pg_sys::NodeTag::T_PrepareStmt {
            (*raw).stmt = (*node.cast::<pg_sys::PrepareStmt>()).query;
        }
        raw
    }
}

/// A saved plan source for a statement that is not eager: its text is parsed but not analysed. Bind analyses it, and when the result
/// then has other columns than the client was told, the server says so itself. In or outside a transaction, whatever its state.
fn make_later(statement: &Statement<'_>) -> Plan {
    let text = CString::new(statement.text).unwrap_or_default();
    // SAFETY: what is allocated here belongs to the plan source or goes with a memory context of our own.
    unsafe {
        let before = pg_sys::CurrentMemoryContext;
        let scratch = pg_sys::AllocSetContextCreateExtended(
            before,
            c"postern statement".as_ptr(),
            0,
            pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        );
        pg_sys::MemoryContextSwitchTo(scratch);
        let raw = parsed(&text, statement.from_sql, statement.location);
        let plan = pg_sys::CreateCachedPlan(raw, text.as_ptr(), tag_of(raw));
        if raw.is_null() || !pg_sys::analyze_requires_snapshot(raw) {
            let queries =
                if raw.is_null() { std::ptr::null_mut() } else { analysed(raw, &text, &statement.types) };
            complete(plan, queries, &statement.types);
        } else {
            complete_later(plan, statement);
        }
        pg_sys::SaveCachedPlan(plan);
        pg_sys::MemoryContextSwitchTo(before);
        pg_sys::MemoryContextDelete(scratch);
        plan
    }
}

/// As CompleteCachedPlan(), of one whose analysis is not valid any more and has been thrown away (RevalidateCachedQuery()).
///
/// # Safety
/// A plan source that is not complete yet.
unsafe fn complete_later(plan: Plan, statement: &Statement<'_>) {
    // SAFETY: by the caller; the types are the plan source's own.
    unsafe {
        let count = statement.types.len();
        if count > 0 {
            let types = pg_sys::MemoryContextAlloc((*plan).context, count * size_of::<pg_sys::Oid>());
            let types = types.cast::<pg_sys::Oid>();
            for (index, oid) in statement.types.iter().enumerate() {
                types.add(index).write(pg_sys::Oid::from(*oid));
            }
            (*plan).param_types = types;
        }
        (*plan).num_params = count as c_int;
        (*plan).cursor_options = pg_sys::CURSOR_OPT_PARALLEL_OK as c_int;
        (*plan).fixed_result = true;
        (*plan).resultDesc = match &statement.columns {
            Some(columns) => described(plan, columns),
            None => std::ptr::null_mut(),
        };
        (*plan).is_complete = true;
        (*plan).is_valid = false;
    }
}

/// A saved plan source for a statement that is eager. One with literals is analysed at once: they are read by the settings of now, and
/// the client may change those before it binds.
fn make_now(statement: &Statement<'_>) -> Plan {
    let text = CString::new(statement.text).unwrap_or_default();
    // SAFETY: in a transaction; what is allocated here goes with the message's memory or belongs to the plan source.
    unsafe {
        let raw = parsed(&text, statement.from_sql, statement.location);
        let plan = pg_sys::CreateCachedPlan(raw, text.as_ptr(), tag_of(raw));
        let later = !raw.is_null() && pg_sys::analyze_requires_snapshot(raw);
        let mut queries = None;
        if !later && !raw.is_null() {
            queries = Some(analysed(raw, &text, &statement.types));
        } else if later && Environment::has_literals(statement.text) {
            // A table may be gone: then Bind says so.
            queries = in_subtransaction(|| analysed(raw, &text, &statement.types));
        }
        if later && queries.is_none() {
            complete_later(plan, statement);
        } else {
            complete(plan, queries.unwrap_or(std::ptr::null_mut()), &statement.types);
            if columns_of((*plan).resultDesc) != statement.columns {
                expect(plan, statement);
                // A utility statement is not analysed again: an EXECUTE has the columns that its statement had when it was prepared,
                // which may not be in the table now.
                (*plan).is_valid = !later;
            }
        }
        pg_sys::SaveCachedPlan(plan);
        plan
    }
}

/// What the client was told of the result, so that the server says so when it has other columns now.
///
/// # Safety
/// A complete plan source.
unsafe fn expect(plan: Plan, statement: &Statement<'_>) {
    // SAFETY: by the caller.
    unsafe {
        (*plan).resultDesc = match &statement.columns {
            Some(columns) => described(plan, columns),
            None => std::ptr::null_mut(),
        };
        (*plan).is_valid = false;
    }
}

/// # Safety
/// Null or a statement.
unsafe fn tag_of(raw: *mut pg_sys::RawStmt) -> pg_sys::CommandTag::Type {
    // SAFETY: by the caller.
    unsafe {
        if raw.is_null() { pg_sys::CommandTag::CMDTAG_UNKNOWN } else { pg_sys::CreateCommandTag((*raw).stmt) }
    }
}

/// # Safety
/// In a transaction, unless it is one of those that begin and end transactions; the statement is changed by it.
unsafe fn analysed(raw: *mut pg_sys::RawStmt, text: &CStr, types: &[u32]) -> *mut pg_sys::List {
    let types: Vec<pg_sys::Oid> = types.iter().map(|oid| pg_sys::Oid::from(*oid)).collect();
    // SAFETY: by the caller; as many types as are said.
    unsafe {
        pg_sys::pg_analyze_and_rewrite_fixedparams(
            raw,
            text.as_ptr(),
            types.as_ptr(),
            types.len() as c_int,
            std::ptr::null_mut(),
        )
    }
}

/// Runs it in a subtransaction; `None` when the server raised an error, of which nothing is left.
///
/// # Safety
/// In a transaction.
unsafe fn in_subtransaction<T>(what: impl FnOnce() -> T) -> Option<T> {
    // SAFETY: by the caller; memory and owner are put back as they were, as PL/pgSQL does it (exec_stmt_block() in pl_exec.c).
    unsafe {
        let memory = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(memory);
        let tried = std::panic::AssertUnwindSafe(|| {
            let value = what();
            pg_sys::ReleaseCurrentSubTransaction();
            Some(value)
        });
        let result = PgTryBuilder::new(tried)
            .catch_others(|_| {
                pg_sys::RollbackAndReleaseCurrentSubTransaction();
                None
            })
            .execute();
        pg_sys::MemoryContextSwitchTo(memory);
        pg_sys::CurrentResourceOwner = owner;
        result
    }
}

/// A description of a result, in the plan source's memory.
///
/// # Safety
/// A live plan source.
unsafe fn described(plan: Plan, columns: &[ColumnType<'_>]) -> pg_sys::TupleDesc {
    // SAFETY: by the caller.
    unsafe {
        let old = pg_sys::MemoryContextSwitchTo((*plan).context);
        let description = pg_sys::CreateTemplateTupleDesc(columns.len() as c_int);
        for (index, column) in columns.iter().enumerate() {
            let name = CString::new(column.name).unwrap_or_default();
            let raw = shim::RawColumn {
                type_oid: column.type_oid,
                modifier: column.type_modifier,
                collation: column.collation,
                length: column.length,
                by_value: column.by_value,
                alignment: column.alignment,
                storage: column.storage,
            };
            shim::postern_set_column(description, index as c_int, name.as_ptr(), &raw const raw);
        }
        pg_sys::MemoryContextSwitchTo(old);
        description
    }
}

/// The unnamed statement as a list of one.
///
/// # Safety
/// A complete plan source.
pub(super) unsafe fn unnamed(plan: Plan, literals: u64) -> Vec<u8> {
    // SAFETY: by the caller.
    unsafe {
        state::encode_statements(&[Statement {
            name: b"",
            text: CStr::from_ptr((*plan).query_string).to_bytes(),
            types: types_of(plan),
            from_sql: false,
            location: 0,
            literals,
            prepared_at: 0,
            eager: false,
            columns: columns_of((*plan).resultDesc),
        }])
    }
}

/// A statement that was parsed again has the columns that the client knows: when they have changed, the server says so at Bind.
///
/// # Safety
/// A complete plan source of the same text.
pub(super) unsafe fn expect_columns(plan: Plan, statement: &Statement<'_>) {
    // SAFETY: by the caller.
    unsafe {
        if statement.columns.is_some() && columns_of((*plan).resultDesc) != statement.columns {
            expect(plan, statement);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_of_its_moment_is_found() {
        for text in ["select 'now'::timestamp", "SELECT ' TODAY'", "insert into t values (1, 'tomorrow')"] {
            assert!(has_value_of_its_moment(text.as_bytes()), "{text}");
        }
        for text in ["select now()", "select 'it is now'", "select '", ""] {
            assert!(!has_value_of_its_moment(text.as_bytes()), "{text}");
        }
    }
}
