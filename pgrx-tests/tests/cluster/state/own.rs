//! What a session has beside settings: cursors, temporary tables, locks, channels.

/// Names and scripts for [`crate::woven`].
pub const SCRIPTS: [(&str, &str); 5] = [
    (
        "own cursors and statements",
        r#"
        > Query "prepare p as select 'p of A'; declare h cursor with hold for select generate_series(1, 5)"
        ~
        > Query "fetch 2 from h; select name, statement, is_holdable, is_binary, is_scrollable from pg_cursors"
        ~
        > Query "select name, statement, parameter_types, from_sql from pg_prepared_statements"
        > Query "fetch 2 from h; close h"
        ~
        > Query "execute p; select count(*) from pg_cursors"
        "#,
    ),
    (
        "temporary tables",
        r#"
        errors 42P01 42P01 42P01
        > Query "create temp table state_temp (a int); insert into state_temp values (1); prepare t as select * from state_temp"
        ~
        Z> Query "select * from pg_temp.state_temp"
        > Query "select * from state_temp; execute t"
        ~
        > Query "create temp table state_gone () on commit drop"
        ~
        > Query "discard temp"
        ~
        > Query "select * from state_temp"
        ~
        > Query "create temp view state_v as select 'v'::text"
        ~
        > Query "select * from state_v; drop view state_v"
        ~
        > Query "select * from state_v"
        "#,
    ),
    (
        "advisory locks",
        r#"
        > Query "select pg_advisory_lock(4711), pg_try_advisory_lock_shared(4712), pg_advisory_lock(4711)"
        ~
        Z> Query "select pg_try_advisory_lock(4711), pg_try_advisory_xact_lock_shared(4712)"
        > Query "select pg_advisory_unlock(4711)"
        ~
        Z> Query "select pg_try_advisory_lock(4711)"
        > Query "select pg_advisory_unlock(4711), pg_advisory_unlock(4711)"
        ~
        Z> Query "select pg_try_advisory_lock(4711), pg_advisory_unlock(4711)"
        > Query "select pg_advisory_unlock_all()"
        ~
        > Query "select pg_advisory_xact_lock(4711)"
        ~
        Z> Query "select pg_try_advisory_xact_lock(4711)"
        "#,
    ),
    (
        "listening",
        r#"
        sees "hello"
        > Query "listen state_chan; listen state_two"
        > Query "begin; unlisten *; rollback"
        ~
        > Query "notify state_chan, 'hello'"
        ~
        > Query "unlisten state_two"
        ~
        > Query "notify state_two, 'nobody'; select 1"
        ~
        > Query "select 1; unlisten *"
        ~
        Z> Query "notify state_chan, 'nobody'"
        > Query "select 1"
        "#,
    ),
    (
        "a failed transaction and what stays of it",
        r#"
        errors 22012 25P02
        > Query "begin; set work_mem = '1MB'; prepare stays as select 1234; declare c cursor with hold for select 1; select 1/0"
        > Query "select 1"
        > Query "rollback"
        ~
        > Query "show work_mem; execute stays; select count(*) from pg_cursors"
        ~
        > Query "begin; set work_mem = '1MB'; savepoint s; set work_mem = '2MB'"
        > Query "commit"
        ~
        > Query "show work_mem"
        "#,
    ),
];
