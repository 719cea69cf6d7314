//! What a session remembers, when clients of other states use the same backends in between: the same as directly. Settings, roles,
//! what cannot move, and who the server says is there.

use crate::pooling::{pid, text, through, with_pool};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::script::connection::{Connection, Received};
use pgrx_tests::script::frontend::Message;
use pgrx_tests::script::{Script, Target, staged};
use pgrx_tests::wait;
use std::time::{Duration, Instant};

/// What others do where a script has a line `~`: one with a state of its own, which it tells each time, and one that has none and must
/// find none.
const OTHERS: [&str; 2] = [
    "Z> Query \"select current_setting('work_mem'), current_setting('state.x'), current_setting('search_path'), \
     current_setting('timezone'), current_user, '2024-02-03'::date, 'z'::bytea, s from (select current_setting('app.z', true)) x(s)\"\n\
     Z> Bind \"\" \"s1\" []\nZ> Execute \"\"\nZ> Sync",
    "Y> Query \"select name, setting, source from pg_settings where source in ('session', 'client') order by 1\"\n\
     Y> Query \"select (select count(*) from pg_prepared_statements), (select count(*) from pg_cursors), \
     (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()), current_user, session_user, \
     current_setting('work_mem'), coalesce(current_setting('state.o', true), '')\"",
];

/// How the first of them comes to its state.
const Z_BEGINS: &str = "\
Z startup user=postgres database=postgres options=\"-c work_mem=3333kB\" timezone=Asia/Tokyo
Z> Query \"set state.x = 'of Z'; set search_path = pg_catalog; set datestyle = 'SQL, DMY'; set bytea_output = 'escape'\"
Z> Query \"prepare p as select 'p of Z'\"
Z> Parse \"s1\" \"select 's1 of Z'\"
Z> Sync
Y startup user=postgres database=postgres
";

/// A script with the others in between: each `~` is a turn of theirs.
pub fn woven(name: &str, text: &str) -> Result<Script> {
    let (head, body): (Vec<_>, Vec<_>) = text.trim().lines().partition(|line| {
        ["#", "setup ", "teardown ", "errors ", "sees ", "mask "]
            .iter()
            .any(|word| line.trim().starts_with(word))
    });
    let mut lines = head.join("\n");
    lines.push('\n');
    lines.push_str(Z_BEGINS);
    let mut turn = 0;
    for line in body {
        if line.trim() == "~" {
            lines.push_str(OTHERS[turn % OTHERS.len()]);
            turn += 1;
        } else {
            lines.push_str(line.trim());
        }
        lines.push('\n');
    }
    Script::parse(name, &lines)
}

/// Plays scripts at the server and at the front: what differs is an error, and a script that does not do what it was written for.
pub fn same_as_directly(cluster: &Cluster, scripts: &[(&str, &str)]) -> Result<()> {
    let mut superuser = cluster.connect()?;
    superuser.batch_execute("set client_min_messages = warning; set statement_timeout = '20s'")?;
    let (direct, front) = (Target::tcp(cluster.port), Target::tcp(cluster.pooler_port));
    let mut found = Vec::new();
    let only = std::env::var("POSTERN_TEST_SCRIPT").unwrap_or_default();
    let scripts: Vec<_> = scripts.iter().filter(|(name, _)| name.contains(&only)).collect();
    ensure!(!scripts.is_empty(), "there are no such scripts here: {only}");
    for (name, text) in scripts {
        let script = woven(name, text)?;
        let seen = staged(&script, &mut superuser, &direct)?;
        let unseen = script.sees.iter().find(|text| !seen.sees(text));
        if seen.is_stuck() || seen.errors() != script.errors || unseen.is_some() {
            let stuck = if seen.is_stuck() { seen.text() } else { String::new() };
            found.push(format!("{name} is wrong: {:?}, {unseen:?}{stuck}", seen.errors()));
            continue;
        }
        let through = staged(&script, &mut superuser, &front)?;
        if let Some(difference) = seen.difference(&through) {
            found.push(format!("{name}:\n{difference}"));
        }
    }
    ensure!(found.is_empty(), "directly (-) and through the front (+):\n{}", found.join("\n\n"));
    Ok(())
}

const SETTINGS: [(&str, &str); 23] = [
    (
        "set",
        r#"
        sees "7MB"
        > Query "set work_mem = '1MB'"
        ~
        > Query "show work_mem"
        ~
        > Query "set local work_mem = '2MB'"
        ~
        > Query "begin; set local work_mem = '3MB'; show work_mem; commit"
        ~
        > Query "show work_mem; begin; set work_mem = '4MB'; rollback"
        ~
        > Query "show work_mem; begin; set work_mem = '5MB'; savepoint a; set work_mem = '6MB'; rollback to a; commit"
        ~
        > Query "show work_mem; begin; savepoint a; set work_mem = '7MB'; release a; commit"
        ~
        > Query "show work_mem"
        > Query "begin; set work_mem = '8MB'; set local work_mem = '9MB'; commit"
        ~
        > Query "show work_mem; reset work_mem"
        ~
        > Query "show work_mem"
        "#,
    ),
    (
        "set in an implicit transaction",
        r#"
        errors 22012 22023 42704
        > Query "set work_mem = '1MB'; set timezone = 'Europe/Rome'; select 1/0"
        ~
        > Query "show work_mem; show timezone"
        > Query "set work_mem = '-7'"
        ~
        > Query "set no_such_thing = 1"
        ~
        > Query "select 1; set work_mem = '5MB'; select 2"
        ~
        > Query "show work_mem"
        "#,
    ),
    (
        "set in a function",
        r#"
        setup create or replace function state_set(text) returns text language plpgsql as $$ begin perform set_config('work_mem', $1, false); return current_setting('work_mem'); end $$
        setup create or replace function state_own() returns text language sql set work_mem = '9MB' as $$ select current_setting('work_mem') $$
        setup create or replace function state_execute(text) returns void language plpgsql as $$ begin execute 'set work_mem = ' || quote_literal($1); end $$
        setup create or replace procedure state_local() language plpgsql as $$ begin set local work_mem = '10MB'; commit; set work_mem = '11MB'; end $$
        teardown drop function state_set(text); drop function state_own(); drop function state_execute(text); drop procedure state_local()
        > Query "select state_set('1MB')"
        ~
        > Query "show work_mem; select state_own()"
        ~
        > Query "show work_mem; select state_execute('2MB')"
        ~
        > Query "show work_mem; do $$ begin set work_mem = '4MB'; end $$"
        ~
        > Query "show work_mem; do $$ begin perform set_config('work_mem', '5MB', true); raise notice '%', current_setting('work_mem'); end $$"
        ~
        > Query "call state_local()"
        ~
        > Query "show work_mem; do $$ begin begin set work_mem = '12MB'; perform 1/0; exception when others then null; end; end $$"
        ~
        > Query "show work_mem; select set_config('work_mem', '13MB', false), set_config('state.x', 'of A', false)"
        ~
        > Query "show work_mem; show state.x; select set_config('state.x', 'gone', true)"
        ~
        > Query "show state.x; update pg_settings set setting = '2048' where name = 'work_mem'"
        ~
        > Query "show work_mem"
        "#,
    ),
    (
        "set by the extended protocol",
        r#"
        > Parse "" "set work_mem = '1MB'"
        > Bind "" "" []
        > Execute ""
        > Sync
        ~
        > Parse "c" "select set_config($1, $2, false)" 25 25
        > Bind "" "c" ["work_mem" "2MB"]
        > Execute ""
        > Bind "" "c" ["timezone" "Europe/Rome"]
        > Execute ""
        > Sync
        ~
        > Bind "" "c" ["state.y" "3"]
        > Execute ""
        > Sync
        ~
        > Query "show work_mem; show timezone; show state.y"
        > Bind "" "c" ["timezone" "UTC"]
        > Execute ""
        > Sync
        ~
        > Query "show timezone"
        "#,
    ),
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
        "placeholders",
        r#"
        errors 42704 42602 22023 42704
        > Query "show state.never"
        ~
        > Query "set state.mine = 'it''s'; set \"state.Odd_1\" = '\"x\", y\\z'"
        ~
        > Query "show state.mine; show \"state.Odd_1\"; select current_setting('state.mine')"
        > Query "set \"state.not good\" = 1"
        ~
        > Query "begin; set state.rolled = 'x'; rollback; select current_setting('state.rolled', true) is null"
        ~
        > Query "select coalesce(current_setting('state.rolled', true), '')"
        > Query "reset state.mine"
        ~
        > Query "show state.mine"
        > Query "set state.list = a, b, c"
        ~
        > Query "show state.list"
        "#,
    ),
    (
        "lists and texts",
        r#"
        > Query "set search_path = \"a,b\", \"Q\"\"q\", public"
        ~
        > Query "show search_path; set search_path = ''"
        ~
        > Query "show search_path; set search_path to default"
        ~
        > Query "show search_path; set application_name = 'ünï \"x\" ''y'''"
        ~
        > Query "show application_name; set time zone interval '-03:30' hour to minute"
        ~
        > Query "show timezone; select '2024-02-03 00:00+00'::timestamptz; set time zone 'EST5EDT'"
        ~
        > Query "select '2024-02-03 00:00+00'::timestamptz; set time zone local"
        ~
        > Query "show timezone; set seq_page_cost = 0.1000000000000001; set geqo_seed = 0.3"
        ~
        > Query "show seq_page_cost; show geqo_seed; set statement_timeout = 90001; set work_mem = 4097"
        ~
        > Query "show statement_timeout; show work_mem; set log_min_messages = debug1; set session_replication_role = replica"
        ~
        > Query "show log_min_messages; show session_replication_role; set temp_tablespaces = ''; set default_tablespace = 'pg_default'"
        ~
        > Query "show temp_tablespaces; show default_tablespace; set default_text_search_config = 'pg_catalog.simple'; set lc_monetary = 'C'; set lc_messages = 'C'"
        ~
        > Query "show default_text_search_config; select 'The cats'::text, to_tsvector('The cats'); show lc_monetary"
        "#,
    ),
    (
        "reported settings",
        r#"
        > Query "set datestyle = 'German'; set timezone = 'Europe/Rome'; set intervalstyle = 'iso_8601'; set standard_conforming_strings = off"
        ~
        > Query "select 1"
        ~
        > Query "set datestyle = 'German'"
        ~
        > Query "set application_name = 'one'; set application_name = 'two'"
        ~
        > Query "begin; set timezone = 'UTC'"
        > Query "rollback"
        ~
        > Query "begin; set local timezone = 'UTC'"
        > Query "select now() is not null"
        > Query "commit"
        ~
        > Query "select 1"
        > Query "set default_transaction_read_only = on"
        ~
        > Query "reset all"
        ~
        > Query "select 1"
        "#,
    ),
    (
        "client encodings",
        r#"
        errors 22P05 22021
        > Query "set client_encoding = 'LATIN1'; set state.e = 'x'"
        ~
        > Query "select '\xe9', length('\xe9'), convert_to('\xe9', 'UTF8')"
        > Query "set state.e = '\xe9'"
        ~
        > Query "show state.e"
        > Query "prepare pe as select '\xe9'"
        ~
        > Query "execute pe"
        > Query "select U&'\\20AC'"
        ~
        > Query "set client_encoding = 'UTF8'"
        ~
        > Query "execute pe; show state.e"
        > Query "select '\xe9'"
        ~
        > Query "set names 'WIN1252'"
        ~
        > Query "select U&'\\20AC'; show client_encoding"
        > Query "reset client_encoding"
        ~
        > Query "select U&'\\20AC'"
        "#,
    ),
    (
        "transaction defaults",
        r#"
        errors 25006 25001
        > Query "set session characteristics as transaction isolation level serializable, read only"
        ~
        > Query "show transaction_isolation; show transaction_read_only; create table state_ro ()"
        ~
        > Query "begin read write; show transaction_read_only; show transaction_isolation; rollback"
        ~
        > Query "set transaction isolation level repeatable read"
        ~
        > Query "show transaction_isolation; set default_transaction_deferrable = on; reset default_transaction_read_only"
        ~
        > Query "show default_transaction_isolation; show transaction_deferrable; show transaction_read_only"
        > Query "begin; select 1; set transaction isolation level read committed"
        > Query "rollback"
        ~
        > Query "show transaction_isolation"
        "#,
    ),
    (
        "time-outs of one's own",
        r#"
        errors 57014 57014
        > Query "set statement_timeout = '40ms'"
        ~
        > Query "select pg_sleep(10)"
        Z> Query "select pg_sleep(0.1)"
        Y> Query "select pg_sleep(0.1)"
        ~
        > Query "select pg_sleep(10)"
        ~
        > Query "reset statement_timeout; select pg_sleep(0.1)"
        ~
        > Query "set lock_timeout = '10ms'; set idle_in_transaction_session_timeout = '10s'"
        ~
        > Query "show lock_timeout; show idle_in_transaction_session_timeout"
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

#[test]
fn settings_are_exact_with_others_on_the_only_backends() -> Result<()> {
    let cluster = with_pool("state-two", 2, &[("session_preload_libraries", "plpgsql")])?;
    same_as_directly(&cluster, &SETTINGS)
}

#[test]
fn settings_are_exact_with_others_on_the_only_backend() -> Result<()> {
    let cluster = with_pool("state-one", 1, &[("session_preload_libraries", "plpgsql")])?;
    // Whoever is pinned leaves no backend to the others here.
    let pinned = [
        "own cursors and statements",
        "temporary tables",
        "advisory locks",
        "a failed transaction and what stays of it",
    ];
    let scripts: Vec<_> = SETTINGS.into_iter().filter(|(name, _)| !pinned.contains(name)).collect();
    same_as_directly(&cluster, &scripts)
}

#[test]
fn what_stands_over_a_default_outlives_a_reload() -> Result<()> {
    let cluster = with_pool("state-reload", 1, &[])?;
    let mut clients: Vec<_> = (0..2)
        .map(|_| through(&cluster).options("-c work_mem=1MB").connect(postgres::NoTls))
        .collect::<Result<_, _>>()?;
    for (number, client) in clients.iter_mut().enumerate() {
        client.batch_execute(&format!("set work_mem = '5MB'; set state.number = '{number}'"))?;
    }
    cluster.connect()?.batch_execute("alter system set transform_null_equals = on")?;
    cluster.connect()?.batch_execute("select pg_reload_conf()")?;
    let limit = Instant::now() + Duration::from_secs(5);
    while text(&mut clients[0], "show transform_null_equals")? != "on" {
        ensure!(Instant::now() < limit, "the reload does not come");
    }
    for client in clients.iter_mut().rev() {
        ensure!(text(client, "show work_mem")? == "5MB");
        client.batch_execute("reset work_mem")?;
        ensure!(text(client, "show work_mem")? == "1MB");
    }
    Ok(())
}

/// A raw client, logged in.
pub struct Raw(Connection);

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

impl Raw {
    pub fn open(port: u16) -> Result<Self> {
        Self::at(&Target::tcp(port))
    }

    /// Also over TLS or a Unix socket.
    pub fn at(target: &Target) -> Result<Self> {
        let mut connection = Connection::open(target)?;
        let parameters = [("user", "postgres"), ("database", "postgres")];
        let parameters =
            parameters.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        connection.send(&Message::startup((3, 0), &parameters).bytes, None);
        let mut raw = Self(connection);
        raw.answer()?;
        Ok(raw)
    }

    /// All messages up to ReadyForQuery.
    fn answer(&mut self) -> Result<Vec<(u8, Vec<u8>)>> {
        let mut messages = Vec::new();
        loop {
            match self.0.receive(PATIENCE)? {
                Received::Message { tag, body } => {
                    messages.push((tag, body));
                    if tag == b'Z' {
                        return Ok(messages);
                    }
                }
                other => anyhow::bail!("{other:?} after {}", words(&messages)),
            }
        }
    }

    /// An error of the server's is one here.
    pub fn query(&mut self, sql: &str) -> Result<Vec<(u8, Vec<u8>)>> {
        self.ask(sql);
        let answer = self.answer()?;
        ensure!(answer.iter().all(|(tag, _)| *tag != b'E'), "{sql}: {}", words(&answer));
        Ok(answer)
    }

    /// Sends a query and reads nothing.
    pub fn ask(&mut self, sql: &str) {
        self.0.send(&Message::query(sql.as_bytes()).bytes, None);
    }

    /// Sends bytes that need not be whole messages.
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.send(bytes, None);
    }

    /// Sends bytes, and returns the messages up to the next ReadyForQuery.
    pub fn send_and_hear(&mut self, bytes: &[u8]) -> Result<Vec<(u8, Vec<u8>)>> {
        self.send(bytes);
        self.answer()
    }

    /// What the server said last before it closed: the text of every message. The `postgres` crate loses it when the end comes
    /// with it.
    pub fn last_words(&mut self) -> Result<String> {
        let mut messages = Vec::new();
        loop {
            match self.0.receive(PATIENCE)? {
                Received::Message { tag, body } => messages.push((tag, body)),
                Received::Closed { unfinished } if unfinished.is_empty() => return Ok(words(&messages)),
                other => anyhow::bail!("{other:?} after {}", words(&messages)),
            }
        }
    }

    /// Whatever comes without being asked for.
    pub fn unasked(&mut self, patience: Duration) -> Result<Vec<(u8, Vec<u8>)>> {
        let mut messages = Vec::new();
        while let Received::Message { tag, body } = self.0.receive(patience)? {
            messages.push((tag, body));
        }
        Ok(messages)
    }
}

/// Messages as text, a line each.
fn words(messages: &[(u8, Vec<u8>)]) -> String {
    let line = |(tag, body): &(u8, Vec<u8>)| {
        format!("{} {}\n", *tag as char, String::from_utf8_lossy(body).replace('\0', " "))
    };
    messages.iter().map(line).collect()
}

fn tags(messages: &[(u8, Vec<u8>)]) -> String {
    messages.iter().map(|(tag, _)| *tag as char).collect()
}

#[test]
fn two_clients_ten_thousand_times_in_turns_never_see_each_other() -> Result<()> {
    let cluster = with_pool("turns", 1, &[])?;
    let ask = "select concat_ws('|', current_setting('work_mem'), current_setting('timezone'), '2024-02-03'::date, \
               current_setting('state.who'), current_user)";
    let own = [
        "set work_mem = '1111kB'; set timezone = 'Asia/Tokyo'; set datestyle = 'German'; set state.who = 'one'",
        "set work_mem = '2222kB'; set timezone = 'Europe/Rome'; set datestyle = 'SQL, DMY'; set state.who = 'two'; \
         set role pg_monitor",
    ];
    let expected =
        ["1111kB|Asia/Tokyo|03.02.2024|one|postgres", "2222kB|Europe/Rome|03/02/2024|two|pg_monitor"];
    let mut clients = [Raw::open(cluster.pooler_port)?, Raw::open(cluster.pooler_port)?];
    for (client, own) in clients.iter_mut().zip(own) {
        client.query(own)?;
    }
    let begun = Instant::now();
    let mut turns = 0;
    while turns < 10_000 {
        ensure!(begun.elapsed() < Duration::from_secs(50), "only {turns} turns in time");
        for (client, expected) in clients.iter_mut().zip(expected) {
            let answer = client.query(ask)?;
            ensure!(tags(&answer) == "TDCZ", "turn {turns}: {answer:?}");
            let value = String::from_utf8_lossy(&answer[1].1[6..]).into_owned();
            ensure!(value == expected, "turn {turns}: {value} and not {expected}");
        }
        turns += 1;
    }
    let swaps = cluster.sql("create extension postern; select swaps from postern.pools where clients = 2")?;
    ensure!(swaps.parse::<u64>()? >= 19_999, "they had the backend in turns {swaps} times only");
    Ok(())
}

#[test]
fn forty_clients_with_four_settings_each_on_four_backends() -> Result<()> {
    let cluster = with_pool("shuffled", 4, &[])?;
    let deadline = Instant::now() + Duration::from_secs(8);
    let threads: Vec<_> = (0..40)
        .map(|number| {
            let config = through(&cluster);
            std::thread::spawn(move || -> Result<u64> {
                let mut client = config.connect(postgres::NoTls)?;
                let zone = ["UTC", "Asia/Tokyo", "Europe/Rome"][number % 3];
                client.batch_execute(&format!(
                    "set work_mem = '{}kB'; set timezone = '{zone}'; set application_name = 'c{number}'; set state.n = '{number}'",
                    1100 + number
                ))?;
                let expected = format!("{}kB|{zone}|c{number}|{number}", 1100 + number);
                let mut done = 0;
                while Instant::now() < deadline && done < 500 {
                    let seen = text(
                        &mut client,
                        "select replace(concat_ws('|', current_setting('work_mem'), current_setting('timezone'), \
                         current_setting('application_name'), current_setting('state.n')), ' ', '')",
                    )?;
                    ensure!(seen == expected, "{seen} and not {expected}");
                    done += 1;
                }
                Ok(done)
            })
        })
        .collect();
    let mut done = 0;
    for thread in threads {
        done += thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
    }
    ensure!(done > 1_000, "only {done} transactions");
    ensure!(backends(&cluster, "postgres")? <= 4, "more backends than the pool's size");
    Ok(())
}

/// Backends of pools as the server shows them: those whose clients are not on its own port.
fn backends(cluster: &Cluster, role: &str) -> Result<i64> {
    Ok(cluster
        .connect()?
        .query_one(
            "select count(*) from pg_stat_activity where usename = $1 and backend_type = 'client backend' and pid <> pg_backend_pid()",
            &[&role],
        )?
        .get(0))
}

#[test]
fn a_reload_reaches_every_client_once_and_goes_under_what_each_has_set() -> Result<()> {
    let cluster = with_pool("reload", 1, &[("work_mem", "4100kB"), ("timezone", "UTC")])?;
    let open = || Raw::open(cluster.pooler_port);
    let (mut own, mut none, mut third) = (open()?, open()?, open()?);
    own.query("set work_mem = '1MB'; set timezone = 'Asia/Tokyo'")?;
    none.query("select 1")?;
    third.query("set state.x = 'third'")?;
    cluster.set("work_mem", "4200kB")?.set("timezone", "Europe/Rome")?;
    cluster.reload()?;
    // The one backend has read it.
    wait::until("the reload has come", || {
        let answer = third.query("show work_mem");
        answer.is_ok_and(|answer| answer[1].1.ends_with(b"4200kB"))
    })?;
    let shown = |answer: &[(u8, Vec<u8>)]| -> Vec<String> {
        let rows = answer.iter().filter(|(tag, _)| *tag == b'D');
        rows.map(|(_, body)| String::from_utf8_lossy(&body[6..]).into_owned()).collect()
    };
    let told = |answer: &[(u8, Vec<u8>)]| -> Vec<String> {
        let told = answer.iter().filter(|(tag, _)| *tag == b'S');
        told.map(|(_, body)| String::from_utf8_lossy(body).replace('\0', "=")).collect()
    };
    for round in 0..3 {
        let answer = none.query("show work_mem; show timezone")?;
        ensure!(shown(&answer) == ["4200kB", "Europe/Rome"], "round {round}: {:?}", shown(&answer));
        let expected: &[&str] = if round == 0 { &["TimeZone=Europe/Rome="] } else { &[] };
        ensure!(told(&answer) == expected, "round {round}: {:?}", told(&answer));
        let answer = own.query("show work_mem; show timezone")?;
        ensure!(shown(&answer) == ["1MB", "Asia/Tokyo"], "round {round}: {:?}", shown(&answer));
        ensure!(told(&answer).is_empty(), "round {round}: {:?}", told(&answer));
    }
    let answer = own.query("reset work_mem; reset timezone; show work_mem; show timezone")?;
    ensure!(
        shown(&answer) == ["4200kB", "Europe/Rome"] && told(&answer) == ["TimeZone=Europe/Rome="],
        "{answer:?}"
    );
    for client in [&mut own, &mut none, &mut third] {
        let unasked = client.unasked(Duration::from_millis(100))?;
        ensure!(unasked.is_empty(), "{unasked:?}");
    }
    // A base that came with the login stays over it, and what is under it changes.
    let mut options = through(&cluster).options("-c work_mem=2MB").connect(postgres::NoTls)?;
    ensure!(text(&mut options, "show work_mem")? == "2MB");
    cluster.set("work_mem", "4300kB")?;
    cluster.reload()?;
    wait::until("the second reload has come", || {
        none.query("show work_mem").is_ok_and(|answer| shown(&answer) == ["4300kB"])
    })?;
    ensure!(text(&mut options, "show work_mem")? == "2MB");
    options.batch_execute("set work_mem = '5MB'")?;
    none.query("select 1")?;
    options.batch_execute("reset work_mem")?;
    ensure!(text(&mut options, "show work_mem")? == "2MB");
    ensure!(shown(&third.query("show work_mem")?) == ["4300kB"]);
    Ok(())
}

#[test]
fn what_cannot_move_keeps_its_client_where_it_is_until_it_is_gone() -> Result<()> {
    let cluster = with_pool("pins", 2, &[])?;
    let cases = [
        ("create temp table pinned (a int)", "discard all"),
        ("select pg_advisory_lock(1)", "select pg_advisory_unlock(1)"),
        ("select pg_advisory_lock_shared(1)", "select pg_advisory_unlock_all()"),
        ("declare c cursor with hold for select 1", "close c"),
        ("set postern.pool_mode = 'session'", "reset postern.pool_mode"),
        ("load 'auto_explain'", "-"),
        ("select setseed(0.5)", "-"),
        ("set seed = 0.5", "-"),
        ("prepare n as select 'now'::timestamptz", "deallocate n"),
    ];
    for (pins, unpins) in cases {
        let mut client = through(&cluster).connect(postgres::NoTls)?;
        client.batch_execute(pins)?;
        let first = pid(&mut client)?;
        // Two others take turns on whatever is free.
        let mut others: Vec<_> =
            (0..3).map(|_| through(&cluster).connect(postgres::NoTls)).collect::<Result<_, _>>()?;
        let moves = |client: &mut postgres::Client, others: &mut [postgres::Client]| -> Result<bool> {
            let before = pid(client)?;
            for _ in 0..20 {
                // Whoever sleeps keeps a backend; then the client's is asked for by the others.
                let mut pids = Vec::new();
                for other in others.iter_mut() {
                    other.batch_execute("begin")?;
                    pids.push(pid(other)?);
                    if !pids.contains(&before) && pids.len() < 2 {
                        continue;
                    }
                    break;
                }
                let other_has_it = pids.contains(&before);
                if other_has_it {
                    for other in others.iter_mut() {
                        other.batch_execute("rollback")?;
                    }
                    return Ok(true);
                }
                for other in others.iter_mut() {
                    other.batch_execute("rollback")?;
                }
            }
            Ok(false)
        };
        // One other only: a second one would wait for the pinned backend for ever.
        for _ in 0..5 {
            others[0].batch_execute("begin")?;
            let other = pid(&mut others[0])?;
            ensure!(other != first, "{pins}: another client is on its backend");
            ensure!(pid(&mut client)? == first, "{pins}: the client was moved");
            others[0].batch_execute("rollback")?;
        }
        if unpins == "-" {
            drop(client);
            continue;
        }
        client.batch_execute(unpins)?;
        ensure!(moves(&mut client, &mut others).with_context(|| pins)?, "{pins}, {unpins}: still pinned");
    }
    Ok(())
}

#[test]
fn a_pinned_client_that_vanishes_leaves_nothing() -> Result<()> {
    let cluster = with_pool("leaves", 1, &[])?;
    let mut watcher = cluster.connect()?;
    for end in [true, false] {
        for pins in [
            "create temp table left_temp (a int); prepare l as select 1",
            "select pg_advisory_lock(77), pg_advisory_lock_shared(78)",
            "declare left_c cursor with hold for select 1",
            "listen left_chan",
            "load 'auto_explain'; set auto_explain.log_min_duration = 0",
            "select setseed(0.25)",
            "set postern.pool_mode = session; set work_mem = '1MB'; prepare l as select 2",
            "begin; create temp table left_temp (a int); select pg_advisory_lock(77); listen left_chan",
            "set work_mem = '1MB'; begin; set work_mem = '2MB'",
        ] {
            let mut raw = Raw::open(cluster.pooler_port)?;
            raw.query(pins)?;
            if end {
                raw.0.send(&Message::terminate().bytes, None);
                while !matches!(raw.0.receive(PATIENCE)?, Received::Closed { .. }) {}
            }
            drop(raw);
            // Waits for its turn on the only backend.
            let mut next = through(&cluster).connect(postgres::NoTls).context(pins)?;
            let found = text(
                &mut next,
                "select concat_ws('|', (select count(*) from pg_prepared_statements), (select count(*) from pg_cursors), \
                 (select count(*) from pg_locks where locktype = 'advisory'), (select count(*) from pg_listening_channels()), \
                 to_regclass('pg_temp.left_temp'), current_setting('work_mem'), \
                 coalesce(nullif(current_setting('auto_explain.log_min_duration', true), ''), '-1'), \
                 (select count(*) from pg_settings where source = 'session'))",
            )?;
            let expected = "0|0|0|0|4MB|-1|0";
            ensure!(found == expected, "after {pins:?}: {found} and not {expected}");
        }
    }
    wait::until("no temporary table is left", || {
        let count = watcher.query_one("select count(*) from pg_class where relname = 'left_temp'", &[]);
        count.is_ok_and(|row| row.get::<_, i64>(0) == 0)
    })
}

#[test]
fn a_sequence_s_current_value_is_an_error_after_a_move_and_never_another_s() -> Result<()> {
    let cluster = with_pool("currval", 1, &[])?;
    cluster.sql("create sequence s; create table ident (id int generated always as identity, who text)")?;
    let mut one = through(&cluster).connect(postgres::NoTls)?;
    let mut two = through(&cluster).connect(postgres::NoTls)?;
    let code = |error: postgres::Error| error.code().map(|code| code.code().to_owned()).unwrap_or_default();
    for turn in 0..5 {
        let value: i64 = one.query_one("select nextval('s')", &[])?.get(0);
        // Nobody in between: it is still there, or the client was moved and hears so.
        match one.query_one("select currval('s')", &[]) {
            Ok(row) => ensure!(row.get::<_, i64>(0) == value, "turn {turn}"),
            Err(error) => ensure!(code(error) == "55000"),
        }
        two.query_one("select nextval('s')", &[])?;
        for sql in ["select currval('s')", "select lastval()"] {
            match one.query_one(sql, &[]) {
                Ok(row) => ensure!(row.get::<_, i64>(0) == value, "turn {turn}: {sql} lies"),
                Err(error) => ensure!(code(error) == "55000", "turn {turn}"),
            }
            two.query_one("select 1", &[])?;
        }
        one.execute("insert into ident (who) values ('one')", &[])?;
        two.execute("insert into ident (who) values ('two')", &[])?;
        for client in [&mut one, &mut two] {
            let error = client.query_one("select lastval()", &[]).err().context("a value of another's")?;
            ensure!(code(error) == "55000");
            let error = client.query_one("select currval('ident_id_seq')", &[]);
            ensure!(code(error.err().context("a value of another's")?) == "55000");
        }
        // In one transaction it is as directly.
        let mut transaction = one.transaction()?;
        let value: i64 = transaction.query_one("select nextval('s')", &[])?.get(0);
        ensure!(transaction.query_one("select lastval()", &[])?.get::<_, i64>(0) == value);
        transaction.commit()?;
    }
    Ok(())
}

#[test]
fn the_server_shows_the_client_that_is_served() -> Result<()> {
    let cluster = with_pool(
        "activity",
        1,
        &[
            ("log_line_prefix", "<%h %a %r> "),
            ("log_min_messages", "warning"),
            ("log_min_error_statement", "error"),
        ],
    )?;
    let mut clients = Vec::new();
    for name in ["first", "second"] {
        clients.push((name, through(&cluster).application_name(name).connect(postgres::NoTls)?));
    }
    let mut config = Target::unix(cluster.socket_directory(), cluster.pooler_port).config();
    let unix = config.application_name("third").connect(postgres::NoTls)?;
    clients.push(("third", unix));
    let mut seen = Vec::new();
    for round in 0..3 {
        for (name, client) in &mut clients {
            let row = text(
                client,
                "select concat_ws('|', application_name, client_addr, client_port, coalesce(inet_client_addr()::text, '-'), \
                 coalesce(inet_client_port()::text, '-')) from pg_stat_activity where pid = pg_backend_pid()",
            )?;
            let parts: Vec<_> = row.split('|').collect();
            if *name == "third" {
                ensure!(row == "third|-1|-|-", "{row}");
            } else {
                ensure!(
                    parts[0] == *name
                        && parts[1] == "127.0.0.1"
                        && ["127.0.0.1", "127.0.0.1/32"].contains(&parts[3]),
                    "{name}: {row}"
                );
                ensure!(parts[2] == parts[4], "{row}");
            }
            seen.push((round, row));
        }
    }
    ensure!(seen[0].1 != seen[1].1 && seen[0].1 == seen[3].1 && seen[1].1 == seen[4].1, "{seen:?}");
    for (name, client) in &mut clients {
        client.batch_execute(&format!("select 'error of {name}' / 0")).err().context("an error")?;
        let place = if *name == "third" { "[local]" } else { "127.0.0.1" };
        cluster.wait_log(&format!("<{place} {name} "))?;
        client.batch_execute(&format!("set application_name = 'new {name}'"))?;
    }
    for (name, client) in &mut clients {
        ensure!(
            text(client, "select application_name from pg_stat_activity where pid = pg_backend_pid()")?
                == format!("new {name}")
        );
    }
    Ok(())
}
