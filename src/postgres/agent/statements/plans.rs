//! Plan sources: making one of a statement as the server would, at once or when it is first bound, and what one says of itself.
//! Pooled backends.

use super::Plan;
use super::columns::{columns_of, described, expect};
use crate::pooler::state::{self, Statement};
use crate::postgres::agent::settings::Environment;
use pgrx::prelude::*;
use std::ffi::{CStr, CString, c_int};

/// # Safety
/// A complete plan source.
pub(super) unsafe fn types_of(plan: Plan) -> Vec<u32> {
    // SAFETY: by the caller: as many types as it says.
    unsafe {
        let count = usize::try_from((*plan).num_params).unwrap_or(0);
        (0..count).map(|index| (*(*plan).param_types.add(index)).to_u32()).collect()
    }
}

/// A literal such as 'now' is evaluated when the text is parsed, so parsing it again would give another value.
pub(super) fn has_value_of_its_moment(text: &[u8]) -> bool {
    const WORDS: [&[u8]; 4] = [b"now", b"today", b"tomorrow", b"yesterday"];
    text.iter().enumerate().filter(|(_, byte)| **byte == b'\'').any(|(at, _)| {
        let literal = text[at + 1..].trim_ascii_start();
        WORDS.iter().any(|word| literal.get(..word.len()).is_some_and(|l| l.eq_ignore_ascii_case(word)))
    })
}

/// # Safety
/// A plan source that is not complete yet; in a transaction when it has a text.
pub(super) unsafe fn complete(plan: Plan, queries: *mut pg_sys::List, types: &[u32]) {
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
pub(super) unsafe fn parsed(text: &CStr, from_sql: bool, location: i32) -> *mut pg_sys::RawStmt {
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
pub(super) fn make_later(statement: &Statement<'_>) -> Plan {
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
pub(super) unsafe fn complete_later(plan: Plan, statement: &Statement<'_>) {
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
pub(super) fn make_now(statement: &Statement<'_>) -> Plan {
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

/// # Safety
/// Null or a statement.
pub(super) unsafe fn tag_of(raw: *mut pg_sys::RawStmt) -> pg_sys::CommandTag::Type {
    // SAFETY: by the caller.
    unsafe {
        if raw.is_null() { pg_sys::CommandTag::CMDTAG_UNKNOWN } else { pg_sys::CreateCommandTag((*raw).stmt) }
    }
}

/// # Safety
/// In a transaction, unless it is one of those that begin and end transactions; the statement is changed by it.
pub(super) unsafe fn analysed(raw: *mut pg_sys::RawStmt, text: &CStr, types: &[u32]) -> *mut pg_sys::List {
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
pub(super) unsafe fn in_subtransaction<T>(what: impl FnOnce() -> T) -> Option<T> {
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

/// The unnamed statement as a list of one.
///
/// # Safety
/// A complete plan source.
pub(in crate::postgres::agent) unsafe fn unnamed(plan: Plan, literals: u64) -> Vec<u8> {
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
