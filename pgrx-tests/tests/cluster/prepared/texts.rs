//! What statements mean: by the settings and tables under which they were parsed, and where.

/// Names and scripts for [`crate::woven`].
pub const SCRIPTS: [(&str, &str); 9] = [
    (
        "a text that the parser has a word about",
        r#"
        > Parse "n" "select 1 as a_column_whose_name_is_longer_than_sixty_three_bytes_and_so_is_cut_with_a_notice"
        > Sync
        > Query "prepare pn as select 2 as a_column_whose_name_is_longer_than_sixty_three_bytes_and_so_is_cut_with_a_notice"
        ~
        > Bind "" "n" []
        > Execute ""
        > Sync
        ~
        > Query "execute pn"
        ~
        > Describe statement "n"
        > Sync
        "#,
    ),
    (
        "one text, two search paths",
        r#"
        setup create schema state_1; create schema state_2; create table state_1.t (a int); create table state_2.t (b text, c int); insert into state_1.t values (1); insert into state_2.t values ('two', 2)
        teardown drop schema state_1 cascade; drop schema state_2 cascade
        errors 0A000 42P01
        > Query "set search_path = state_1"
        B> Query "set search_path = state_2"
        > Parse "q" "select * from t"
        > Sync
        B> Parse "q" "select * from t"
        B> Sync
        ~
        > Bind "" "q" []
        > Describe portal ""
        > Execute ""
        > Sync
        B> Bind "" "q" []
        B> Describe portal ""
        B> Execute ""
        B> Sync
        ~
        > Bind "" "q" []
        > Execute ""
        > Sync
        B> Describe statement "q"
        B> Sync
        > Query "set search_path = state_2"
        ~
        > Bind "" "q" []
        > Execute ""
        > Sync
        B> Bind "" "q" []
        B> Execute ""
        B> Sync
        > Query "set search_path = public"
        ~
        > Bind "" "q" []
        > Execute ""
        > Sync
        > Query "set search_path = state_1"
        ~
        > Bind "" "q" []
        > Execute ""
        > Sync
        "#,
    ),
    (
        "a result type that has changed",
        r#"
        setup create table state_ddl (a int); insert into state_ddl values (1)
        teardown drop table state_ddl
        errors 0A000 0A000 0A000 0A000 42P01
        > Parse "q" "select * from state_ddl"
        > Sync
        > Query "prepare pq as select * from state_ddl"
        ~
        > Bind "" "q" []
        > Execute ""
        > Sync
        Y> Query "alter table state_ddl add b text default 'b'"
        B> Parse "q" "select * from state_ddl"
        B> Bind "" "q" []
        B> Execute ""
        B> Sync
        ~
        > Bind "" "q" []
        > Execute ""
        > Sync
        ~
        > Query "execute pq"
        B> Bind "" "q" []
        B> Describe portal ""
        B> Execute ""
        B> Sync
        > Describe statement "q"
        > Sync
        ~
        Y> Query "alter table state_ddl drop b"
        > Bind "" "q" []
        > Execute ""
        > Sync
        > Query "execute pq"
        B> Bind "" "q" []
        B> Sync
        ~
        Y> Query "alter table state_ddl rename to state_ddl2"
        > Bind "" "q" []
        > Execute ""
        > Sync
        Y> Query "alter table state_ddl2 rename to state_ddl; create index on state_ddl (a)"
        ~
        > Bind "" "q" []
        > Execute ""
        > Sync
        "#,
    ),
    (
        "literals as they were read",
        r#"
        > Query "set datestyle = 'ISO, DMY'; set timezone = 'Asia/Tokyo'"
        B> Query "set datestyle = 'ISO, MDY'; set timezone = 'UTC'"
        > Parse "d" "select '01/02/2024'::date, '2024-01-01 00:00'::timestamptz at time zone 'UTC'"
        > Sync
        B> Parse "d" "select '01/02/2024'::date, '2024-01-01 00:00'::timestamptz at time zone 'UTC'"
        B> Sync
        ~
        > Bind "" "d" []
        > Execute ""
        > Sync
        B> Bind "" "d" []
        B> Execute ""
        B> Sync
        > Query "set datestyle = 'ISO, MDY'; set timezone = 'UTC'"
        ~
        > Bind "" "d" []
        > Execute ""
        > Sync
        B> Bind "" "d" []
        B> Execute ""
        B> Sync
        "#,
    ),
    (
        "values of their moment",
        r#"
        > Query "prepare n as select 'now'::timestamptz < clock_timestamp() - interval '20 ms', 'today'::date = current_date"
        > Parse "np" "select 'now'::timestamptz < clock_timestamp() - interval '20 ms'"
        > Sync
        ~
        Y> Query "select pg_sleep(0.05)"
        > Query "execute n"
        ~
        > Bind "" "np" []
        > Execute ""
        > Sync
        > Query "deallocate n"
        ~
        > Bind "" "np" []
        > Execute ""
        > Sync
        "#,
    ),
    (
        "prepared inside",
        r#"
        setup create or replace function state_prepare(text) returns void language plpgsql as $$ begin execute 'prepare inside as select ' || quote_literal($1); end $$
        teardown drop function state_prepare(text)
        errors 42P05
        > Query "do $$ begin execute 'prepare done as select ''in do'''; end $$"
        ~
        > Query "execute done; select state_prepare('in a function')"
        ~
        > Query "execute inside; select name, statement, from_sql from pg_prepared_statements order by 1"
        Z> Query "select public.state_prepare('of Z')"
        ~
        > Query "execute inside"
        > Query "select state_prepare('twice')"
        Z> Query "execute inside; deallocate inside"
        > Query "do $$ begin execute 'deallocate done'; end $$"
        ~
        > Query "select name, statement, from_sql from pg_prepared_statements order by 1"
        "#,
    ),
    (
        "prepared in a transaction that fails",
        r#"
        errors 22012 22012
        > Query "begin; prepare r1 as select 'stays'; select 1/0"
        > Query "rollback"
        ~
        > Query "execute r1; select name from pg_prepared_statements"
        > Parse "r2" "select 'stays too'"
        > Parse "" "select 1/0"
        > Bind "" "" []
        > Execute ""
        > Sync
        ~
        > Bind "" "r2" []
        > Execute ""
        > Sync
        "#,
    ),
    (
        "many in one pipeline",
        r#"
        together
        > Parse "a" "select 'a', $1::text" 25
        > Parse "b" "select 'b', $1::text" 25
        > Parse "c" "select 'c', $1::text" 25
        > Bind "" "a" ["1"]
        > Execute ""
        > Bind "" "b" ["2"]
        > Execute ""
        > Parse "d" "select 'd', $1::text" 25
        > Close statement "a"
        > Parse "a" "select 'A', $1::text" 25
        > Bind "" "c" ["3"]
        > Execute ""
        > Sync
        > Bind "" "a" ["4"]
        > Execute ""
        > Sync
        end
        ~
        together
        > Bind "" "a" ["5"]
        > Execute ""
        > Bind "" "b" ["6"]
        > Execute ""
        > Bind "" "c" ["7"]
        > Execute ""
        > Bind "" "d" ["8"]
        > Execute ""
        > Sync
        end
        ~
        > Query "select name, statement from pg_prepared_statements order by 1"
        "#,
    ),
    (
        "types and utility statements",
        r#"
        errors 42P18
        > Parse "u1" "show work_mem"
        > Parse "u2" "set work_mem = '1MB'"
        > Parse "u3" ""
        > Parse "u4" "values ($1::int, $2::text)" 0 0
        > Parse "u5" "begin"
        > Sync
        ~
        > Describe statement "u4"
        > Sync
        > Parse "u7" "select $1 = any($2)" 23 1007
        > Parse "u8" "select $1"
        > Sync
        ~
        > Parse "u9" "select $1 is null"
        > Sync
        "#,
    ),
];
