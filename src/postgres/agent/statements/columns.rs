//! The columns of a statement's result: what a client was told of them, and whether they are still those. Pooled backends.

use super::Plan;
use crate::pooler::state::{ColumnType, Statement};
use crate::postgres::shim;
use pgrx::prelude::*;
use std::ffi::{CStr, CString, c_int};

/// The columns of a result as the server compares them (equalTupleDescs() of what PlanCacheComputeResultDesc() makes).
///
/// # Safety
/// Null or a row description.
pub(super) unsafe fn columns_of<'a>(description: pg_sys::TupleDesc) -> Option<Vec<ColumnType<'a>>> {
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

/// What the client was told of the result, so that the server says so when it has other columns now.
///
/// # Safety
/// A complete plan source.
pub(super) unsafe fn expect(plan: Plan, statement: &Statement<'_>) {
    // SAFETY: by the caller.
    unsafe {
        (*plan).resultDesc = match &statement.columns {
            Some(columns) => described(plan, columns),
            None => std::ptr::null_mut(),
        };
        (*plan).is_valid = false;
    }
}

/// A description of a result, in the plan source's memory.
///
/// # Safety
/// A live plan source.
pub(super) unsafe fn described(plan: Plan, columns: &[ColumnType<'_>]) -> pg_sys::TupleDesc {
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

/// A statement that was parsed again has the columns that the client knows: when they have changed, the server says so at Bind.
///
/// # Safety
/// A complete plan source of the same text.
pub(in crate::postgres::agent) unsafe fn expect_columns(plan: Plan, statement: &Statement<'_>) {
    // SAFETY: by the caller.
    unsafe {
        if statement.columns.is_some() && columns_of((*plan).resultDesc) != statement.columns {
            expect(plan, statement);
        }
    }
}
