//! What stands under a session's settings: startup options, roles, and what roles and databases have of their own.

/// Names and scripts for [`crate::woven`].
pub const SCRIPTS: [(&str, &str); 8] = [
    (
        "one value over two defaults",
        r#"
        A startup user=postgres database=postgres options="-c work_mem=1MB"
        B startup user=postgres database=postgres options="-c work_mem=2MB"
        > Query "set work_mem = '5MB'"
        B> Query "set work_mem = '5MB'"
        C startup user=postgres database=postgres
        C> Query "set work_mem = '5MB'"
        ~
        > Query "show work_mem"
        B> Query "show work_mem"
        > Query "show work_mem"
        C> Query "show work_mem"
        B> Query "show work_mem"
        C> Query "show work_mem; reset work_mem; show work_mem"
        > Query "reset work_mem; show work_mem"
        B> Query "reset work_mem; show work_mem"
        ~
        > Query "show work_mem"
        B> Query "show work_mem"
        "#,
    ),
    (
        "one role over two defaults",
        r#"
        setup create role state_a; create role state_b; grant state_b to state_a
        teardown drop role state_a; drop role state_b
        A startup user=postgres database=postgres options="-c role=state_a -c work_mem=1MB"
        B startup user=postgres database=postgres options="-c role=state_b"
        C startup user=postgres database=postgres
        > Query "set role state_b"
        B> Query "set role state_b; set work_mem = '5MB'"
        C> Query "set session authorization state_a; set role state_b; set work_mem = '5MB'"
        ~
        > Query "select current_user, session_user; show is_superuser; show work_mem"
        B> Query "select current_user, session_user; show is_superuser; show work_mem"
        > Query "select current_user, session_user; show role"
        C> Query "select current_user, session_user; show is_superuser; show work_mem"
        B> Query "select current_user, session_user; show role"
        C> Query "select current_user, session_user; reset role; select current_user"
        > Query "reset role; select current_user, session_user"
        C> Query "reset session authorization; select current_user, session_user; show is_superuser"
        B> Query "reset role; select current_user, session_user; show work_mem"
        ~
        > Query "select current_user, session_user; set role none; select current_user; show is_superuser"
        C> Query "select current_user, session_user; show is_superuser"
        B> Query "select current_user, session_user; show work_mem"
        "#,
    ),
    (
        "defaults of the startup packet",
        r#"
        A startup user=postgres database=postgres options="-c work_mem=1MB -c state.o=opt --enable-seqscan=off" datestyle=German application_name=ofA extra_float_digits=2
        > Query "show work_mem; show state.o; show enable_seqscan; show datestyle; show application_name; show extra_float_digits"
        ~
        > Query "set work_mem = '2MB'; set state.o = 'set'; set datestyle = 'ISO'; set application_name = 'other'"
        ~
        > Query "show work_mem; show state.o; show datestyle; show application_name"
        ~
        > Query "select name, setting, source, reset_val from pg_settings where source in ('session', 'client') order by 1"
        > Query "reset work_mem; reset datestyle"
        ~
        > Query "show work_mem; show datestyle; show state.o"
        > Query "reset all"
        ~
        > Query "show work_mem; show state.o; show enable_seqscan; show datestyle; show application_name"
        > Query "select name, setting, source, reset_val from pg_settings where source in ('session', 'client') order by 1"
        > Query "set work_mem = '2MB'; set enable_seqscan = on"
        ~
        > Query "discard all"
        ~
        > Query "show work_mem; show enable_seqscan; show extra_float_digits"
        > Query "set work_mem to default; begin; set local work_mem to default; show work_mem; commit"
        ~
        > Query "show work_mem"
        "#,
    ),
    (
        "everything that pg_settings shows",
        r#"
        A startup user=postgres database=postgres options="-c work_mem=1MB" application_name=ofA
        > Query "set enable_sort = off; set state.q = '1'"
        ~
        ~
        > Query "select name, setting, source, reset_val, sourceline from pg_settings where source <> 'default' order by name"
        > Query "select md5(string_agg(concat_ws('|', name, setting, source, boot_val, reset_val, context), ',' order by name)) from pg_settings where name not like 'state.%'"
        ~
        > Query "select name, setting, source, boot_val, reset_val from pg_settings where source <> 'default' order by name"
        "#,
    ),
    (
        "role",
        r#"
        setup create role state_a; create role state_b; create role state_login login; grant state_b to state_a; create table state_t (a int); insert into state_t values (1); grant select on state_t to state_b
        teardown drop table state_t; drop role state_a; drop role state_b; drop role state_login
        errors 42501 42501 22023
        > Query "set role state_a"
        ~
        > Query "select current_user, session_user; show role; show is_superuser"
        > Query "select * from state_t"
        ~
        > Query "set work_mem = '1MB'; set role state_login"
        ~
        > Query "select current_user; select * from state_t"
        ~
        > Query "show work_mem; reset role"
        ~
        > Query "select current_user, session_user; select * from state_t"
        > Query "begin; set local role state_a; select current_user; commit"
        ~
        > Query "select current_user; begin; set role state_a; rollback"
        ~
        > Query "select current_user; set session authorization state_a"
        ~
        > Query "select current_user, session_user; show is_superuser; show session_authorization"
        > Query "set role state_b"
        ~
        > Query "select current_user, session_user; set log_min_duration_statement = 100"
        ~
        > Query "set role none"
        ~
        > Query "select current_user, session_user; reset session authorization"
        ~
        > Query "select current_user, session_user; show is_superuser"
        > Query "set log_min_duration_statement = 100000; set role state_a"
        ~
        > Query "show log_min_duration_statement; select current_user; set role no_such_role"
        ~
        > Query "discard all"
        ~
        > Query "select current_user, session_user; show log_min_duration_statement"
        "#,
    ),
    (
        "discards",
        r#"
        errors 26000 25001
        > Query "set work_mem = '1MB'; set role postgres"
        > Query "prepare p as select 'p of A'"
        ~
        > Query "discard plans"
        ~
        > Query "execute p; show work_mem; discard sequences"
        ~
        > Query "execute p; show work_mem; discard temp"
        ~
        > Query "execute p; show work_mem; select name from pg_prepared_statements"
        ~
        > Query "discard all"
        ~
        > Query "show work_mem; execute p"
        ~
        > Query "begin"
        > Query "discard all"
        > Query "rollback"
        ~
        > Query "select count(*) from pg_prepared_statements"
        > Query "set work_mem = '1MB'"
        ~
        > Query "deallocate all"
        ~
        > Query "show work_mem"
        "#,
    ),
    (
        "role and database settings",
        r#"
        setup create role state_r login; alter role state_r set work_mem = '1MB'; alter role state_r set state.r = 'first'
        setup create database state_d
        setup alter database state_d set timezone = 'Europe/Rome'
        setup alter role state_r in database state_d set enable_sort = off; alter role state_r in database state_d set work_mem = '2MB'
        teardown drop database state_d with (force)
        teardown drop role state_r
        A startup user=state_r database=state_d
        A> Query "show work_mem; show state.r; show timezone; show enable_sort"
        Y> Query "alter role state_r in database state_d set work_mem = '3MB'; alter role state_r set state.r = 'second'; alter role state_r reset work_mem; alter database state_d set datestyle = 'German'"
        B startup user=state_r database=state_d
        B> Query "show work_mem; show state.r; show timezone; show datestyle"
        A> Query "show work_mem; show state.r; show timezone; show datestyle"
        A> Query "set work_mem = '9MB'; set datestyle = 'SQL'; set timezone = 'UTC'"
        B> Query "show work_mem; show state.r; show timezone; show datestyle; set state.r = 'of B'"
        A> Query "show work_mem; show state.r; reset all"
        B> Query "reset all; show state.r"
        A> Query "show work_mem; show state.r; show timezone; show datestyle"
        A> Query "select name, setting, source, reset_val from pg_settings where source in ('session', 'client', 'user', 'database', 'database user', 'global') order by 1"
        B> Query "select name, setting, source, reset_val from pg_settings where source in ('session', 'client', 'user', 'database', 'database user', 'global') order by 1"
        Y> Query "alter role state_r in database state_d reset all; alter role state_r reset all; alter database state_d reset all"
        C startup user=state_r database=state_d
        C> Query "show work_mem; show timezone; show datestyle; select coalesce(current_setting('state.r', true), '')"
        A> Query "show work_mem; show state.r; show timezone; show datestyle"
        A> Query "discard all"
        B> Query "show work_mem; show state.r; show timezone; show datestyle"
        A> Query "show work_mem; show state.r; show timezone; show datestyle"
        C> Query "select name, setting, source, reset_val from pg_settings where source in ('session', 'client', 'user', 'database', 'database user', 'global') order by 1"
        "#,
    ),
    (
        "an option over a role's setting",
        r#"
        setup create role state_r login; alter role state_r set work_mem = '1MB'; alter role state_r set enable_sort = off
        teardown drop role state_r
        A startup user=state_r database=postgres options="-c work_mem=2MB"
        B startup user=state_r database=postgres
        A> Query "show work_mem; show enable_sort; set work_mem = '5MB'; set enable_sort = on"
        B> Query "show work_mem; show enable_sort; set work_mem = '6MB'"
        A> Query "show work_mem; reset work_mem; show enable_sort; reset enable_sort"
        B> Query "show work_mem; reset work_mem; show enable_sort"
        A> Query "show work_mem; show enable_sort"
        B> Query "show work_mem; show enable_sort"
        "#,
    ),
];
