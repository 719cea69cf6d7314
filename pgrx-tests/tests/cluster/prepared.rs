//! Prepared statements of many clients on few backends: each has its own, whatever the others call theirs.

use crate::pooling::{pid, text, through, with_pool};
use crate::state::same_as_directly;
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use std::time::{Duration, Instant};

const STATEMENTS: [(&str, &str); 18] = [
    (
        "one name, two texts",
        r#"
        errors 26000 26000
        > Parse "s1" "select 's1 of A', $1::int" 23
        > Sync
        ~
        > Bind "" "s1" ["1"]
        > Execute ""
        > Sync
        ~
        > Describe statement "s1"
        > Sync
        ~
        > Query "prepare p as select 'p of A'; execute p"
        ~
        > Query "execute p; select name, statement, from_sql, parameter_types from pg_prepared_statements order by 1"
        ~
        > Close statement "s1"
        > Sync
        ~
        > Bind "" "s1" ["1"]
        > Sync
        > Parse "s1" "select 'again'"
        > Bind "" "s1" []
        > Execute ""
        > Close statement "s1"
        > Parse "s1" "select 'and again'"
        > Sync
        ~
        > Bind "" "s1" []
        > Execute ""
        > Sync
        > Query "deallocate p"
        ~
        > Query "execute p"
        "#,
    ),
    (
        "names that nobody has looked up since the move",
        r#"
        errors 22012 25P02 25P02 42P05 42P05 26000 26000 25001
        > Parse "a" "select 'a', $1::int" 23
        > Parse "b" "select 2 as b"
        > Parse "c" "select 3 as c"
        > Parse "leave" "rollback"
        > Parse "empty" ""
        > Sync
        > Query "prepare d as select 4 as d; prepare e (int) as select $1"
        ~
        > Query "begin; select 1/0"
        > Bind "" "b" []
        > Sync
        > Describe statement "b"
        > Sync
        > Close statement "c"
        > Sync
        > Parse "b" "rollback"
        > Sync
        > Bind "" "leave" []
        > Execute ""
        > Sync
        ~
        > Query "select name, statement, parameter_types, from_sql from pg_prepared_statements order by 1"
        ~
        > Query "do $$ declare r int; begin execute 'execute d' into r; raise notice '%', r; end $$"
        ~
        > Query "explain (costs off) execute e (5)"
        ~
        > Parse "a" "select 2"
        > Sync
        ~
        > Bind "" "empty" []
        > Execute ""
        > Sync
        ~
        > Query "begin"
        > Bind "" "b" []
        > Describe portal ""
        > Execute ""
        > Sync
        > Query "deallocate e; commit"
        ~
        > Query "execute e (1)"
        ~
        > Query "deallocate all"
        > Query "select count(*) from pg_prepared_statements"
        ~
        > Bind "" "a" ["1"]
        > Sync
        > Parse "f" "select 6"
        > Sync
        ~
        > Query "begin; discard all"
        > Query "rollback"
        ~
        > Query "select name from pg_prepared_statements"
        ~
        > Query "discard all"
        ~
        > Query "select count(*) from pg_prepared_statements"
        "#,
    ),
    (
        "names longer than a name may be",
        r#"
        errors 42P05 26000
        > Parse "a_name_of_a_statement_that_is_longer_than_sixty_three_bytes_so_it_is_cut" "select 1 as cut"
        > Sync
        > Query "prepare another_name_of_a_statement_that_is_longer_than_sixty_three_bytes as select 2"
        ~
        > Bind "" "a_name_of_a_statement_that_is_longer_than_sixty_three_bytes_so_it_is_cut" []
        > Execute ""
        > Sync
        ~
        > Describe statement "a_name_of_a_statement_that_is_longer_than_sixty_three_bytes_so_it_is_none_other"
        > Sync
        ~
        > Query "execute another_name_of_a_statement_that_is_longer_than_sixty_three_bytes"
        ~
        > Parse "a_name_of_a_statement_that_is_longer_than_sixty_three_bytes_so_it_is_cut" "select 2"
        > Sync
        ~
        > Close statement "a_name_of_a_statement_that_is_longer_than_sixty_three_bytes_so_it_is_cut"
        > Sync
        ~
        > Bind "" "a_name_of_a_statement_that_is_longer_than_sixty_three_bytes_so_it_is_cut" []
        > Sync
        > Query "select name, statement from pg_prepared_statements order by 1"
        "#,
    ),
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
        "names looked up from within",
        r#"
        setup create function state_within(text) returns text language plpgsql as $$ declare r text; begin begin execute 'execute ' || $1 into r; if $1 = 'd' then raise exception 'rolled back'; end if; exception when raise_exception then execute 'execute ' || $1 into r; r := r || ' again'; end; return r; end $$; create function state_names() returns setof text language sql as $$ select name from pg_prepared_statements order by 1 $$
        teardown drop function state_within(text); drop function state_names()
        errors 26000 0A000 42P05
        sees "prepare: prepare d"
        > Query "prepare d as select 4 as d; prepare e as select 5 as e; prepare g as select 4 as d"
        > Parse "h" "execute d"
        > Parse "i" "select 6 as i"
        > Parse "" "execute e"
        > Sync
        ~
        > Bind "" "" []
        > Describe portal ""
        > Execute ""
        > Sync
        ~
        > Query "select state_within('d'), state_within('e'), state_within('g')"
        ~
        > Query "select state_within('none')"
        ~
        > Query "begin; declare c cursor for select name from pg_prepared_statements order by 1; deallocate g; fetch all from c"
        > Query "savepoint a; execute d; rollback to a; execute d; execute e; rollback"
        ~
        > Query "select state_names()"
        ~
        > FunctionCall 2510 [] in=0 out=0
        ~
        > Bind "p" "i" []
        > Close statement "i"
        > Execute "p"
        > Sync
        ~
        > Query "begin; create table state_within_table as execute d; rollback"
        ~
        > Describe statement "h"
        > Bind "" "h" []
        > Execute ""
        > Sync
        ~
        > Query "set log_statement = 'all'; set client_min_messages = 'log'"
        ~
        > Query "execute d"
        ~
        > Query "do $$ begin execute 'prepare e as select 7'; exception when others then execute 'deallocate d'; raise; end $$"
        ~
        > Query "set log_statement = 'ddl'"
        ~
        > Query "execute e"
        ~
        > Query "select state_names()"
        "#,
    ),
    (
        "an empty statement under a path that nobody has looked along",
        r#"
        > Parse "empty" ""
        > Sync
        > Query "set search_path = pg_temp, '$user', information_schema"
        ~
        > Bind "" "empty" []
        > Execute ""
        > Sync
        ~
        > Describe statement "empty"
        > Sync
        "#,
    ),
    (
        "a name that is taken",
        r#"
        errors 42P05 42P05 26000
        > Parse "s1" "select 1"
        > Sync
        ~
        > Parse "s1" "select 2"
        > Sync
        ~
        > Query "prepare s1 as select 3"
        ~
        > Bind "" "s1" []
        > Execute ""
        > Sync
        > Query "deallocate s1"
        ~
        > Query "deallocate s1"
        ~
        > Query "prepare s1 (int) as select $1 + 1"
        ~
        > Bind "" "s1" ["41"]
        > Execute ""
        > Sync
        > Query "execute s1 (1)"
        "#,
    ),
    (
        "the unnamed statement",
        r#"
        errors 26000 26000
        > Parse "" "select 'unnamed of A', $1::int" 23
        > Sync
        Z> Parse "" "select 'unnamed of Z'"
        Z> Sync
        ~
        > Bind "" "" ["1"]
        > Execute ""
        > Sync
        Y> Query "select 1"
        > Bind "" "" ["2"]
        > Execute ""
        > Sync
        Z> Bind "" "" []
        Z> Execute ""
        Z> Sync
        ~
        > Describe statement ""
        > Sync
        Y> Parse "" "select 'unnamed of Y'"
        Y> Bind "" "" []
        Y> Execute ""
        Y> Sync
        > Bind "" "" ["3"]
        > Execute ""
        > Sync
        > Close statement ""
        > Sync
        Y> Bind "" "" []
        Y> Execute ""
        Y> Sync
        > Bind "" "" ["4"]
        > Sync
        Y> Bind "" "" []
        Y> Execute ""
        Y> Sync
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
    (
        "deallocate and discard",
        r#"
        errors 26000 26000
        > Query "prepare p as select 'p of A'; prepare q as select 'q of A'"
        ~
        > Query "deallocate all"
        ~
        > Query "execute p"
        > Query "prepare p as select 'p again'"
        ~
        > Query "execute p"
        > Query "discard all"
        ~
        > Query "execute p"
        > Query "prepare p as select 'p at last'"
        ~
        > Query "execute p"
        "#,
    ),
    (
        "a role's own view",
        r#"
        setup create role state_a; create role state_b; create table state_rls (who text); insert into state_rls values ('state_a'), ('state_b'); alter table state_rls enable row level security; create policy p on state_rls using (who = current_user); grant select on state_rls to state_a, state_b
        teardown drop table state_rls; drop role state_a; drop role state_b
        > Query "set role state_a"
        B> Query "set role state_b"
        > Parse "r" "select * from state_rls"
        > Sync
        B> Parse "r" "select * from state_rls"
        B> Sync
        ~
        > Bind "" "r" []
        > Execute ""
        > Sync
        B> Bind "" "r" []
        B> Execute ""
        B> Sync
        > Query "reset role"
        ~
        > Query "select current_user, session_user"
        > Bind "" "r" []
        > Execute ""
        > Sync
        B> Bind "" "r" []
        B> Execute ""
        B> Sync
        "#,
    ),
];

#[test]
fn statements_are_each_client_s_own_on_the_only_backends() -> Result<()> {
    let cluster = with_pool("prepared-two", 2, &[])?;
    same_as_directly(&cluster, &STATEMENTS)
}

#[test]
fn statements_are_each_client_s_own_when_few_or_no_plans_are_kept() -> Result<()> {
    for most in ["0", "2"] {
        let cluster = with_pool("prepared-few", 1, &[("postern.max_prepared_statements", most)])?;
        // Their clients are pinned, and leave no backend to the others.
        let pinned = ["values of their moment", "literals as they were read", "prepared inside"];
        let scripts: Vec<_> = STATEMENTS.into_iter().filter(|(name, _)| !pinned.contains(name)).collect();
        same_as_directly(&cluster, &scripts)
            .with_context(|| format!("postern.max_prepared_statements = {most}"))?;
    }
    Ok(())
}

#[test]
fn hundreds_of_statements_a_client_follow_it() -> Result<()> {
    let cluster = with_pool("prepared-many", 2, &[("postern.max_prepared_statements", "100")])?;
    let threads: Vec<_> = (0..4)
        .map(|number: i32| {
            let config = through(&cluster);
            std::thread::spawn(move || -> Result<()> {
                let mut client = config.connect(postgres::NoTls)?;
                let all: Vec<_> = (0..300)
                    .map(|n: i32| client.prepare(&format!("select {number} * 1000 + {n} + $1::int")))
                    .collect::<Result<_, _>>()?;
                for round in 0..3 {
                    for (n, statement) in all.iter().enumerate() {
                        let value: i32 = client.query_one(statement, &[&round])?.get(0);
                        ensure!(value == number * 1000 + n as i32 + round, "{value}");
                    }
                }
                ensure!(text(&mut client, "select count(*) from pg_prepared_statements")? == "300");
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
    }
    Ok(())
}

#[test]
fn literals_are_read_by_the_settings_of_after_a_reload() -> Result<()> {
    let cluster = with_pool("prepared-reload", 1, &[])?;
    let config = through(&cluster);
    let (mut before, mut after) = (config.connect(postgres::NoTls)?, config.connect(postgres::NoTls)?);
    let prepare = "prepare s as select coalesce((1 = null)::text, 'null')";
    before.batch_execute(prepare)?;
    after.batch_execute("select 1")?;
    cluster.connect()?.batch_execute("alter system set transform_null_equals = on")?;
    cluster.connect()?.batch_execute("select pg_reload_conf()")?;
    let limit = Instant::now() + Duration::from_secs(5);
    while text(&mut after, "show transform_null_equals")? != "on" {
        ensure!(Instant::now() < limit, "the reload does not come");
    }
    after.batch_execute(prepare)?;
    for _ in 0..3 {
        ensure!(text(&mut after, "execute s")? == "false");
        let seen = text(&mut before, "execute s")?;
        ensure!(seen == "null", "{seen} for what was read before");
    }
    Ok(())
}

/// How often the server has analysed a statement, by its log.
fn analysed(cluster: &Cluster) -> usize {
    cluster.log().matches("PARSE ANALYSIS STATISTICS").count()
}

#[test]
fn a_text_that_many_clients_have_is_parsed_once_on_a_backend_that_has_not_met_it() -> Result<()> {
    let cluster = with_pool("prepared-once", 2, &[("log_parser_stats", "on")])?;
    let open = || through(&cluster).connect(postgres::NoTls);
    let (mut first, mut second) = (open()?, open()?);
    first.batch_execute("begin")?;
    let mut clients = (0..10)
        .map(|_| {
            let mut client = open()?;
            let statement = client.prepare("select $1::int + 41")?;
            Ok((client, statement))
        })
        .collect::<Result<Vec<_>>>()?;
    ensure!(analysed(&cluster) >= 10, "the server tells of its parsing");
    // From here on the other backend has them all.
    second.batch_execute("begin")?;
    ensure!(pid(&mut first)? != pid(&mut second)?);
    first.batch_execute("commit")?;
    let before = analysed(&cluster);
    for _ in 0..3 {
        for (client, statement) in &mut clients {
            ensure!(client.query_one(&*statement, &[&1])?.get::<_, i32>(0) == 42);
        }
    }
    let count = analysed(&cluster) - before;
    ensure!(count == 1, "it was analysed {count} times");
    Ok(())
}

#[test]
fn a_backend_forgets_the_plans_that_were_not_used_for_longest() -> Result<()> {
    let settings = [("log_parser_stats", "on"), ("postern.max_prepared_statements", "2")];
    let cluster = with_pool("prepared-oldest", 1, &settings)?;
    let mut client = through(&cluster).connect(postgres::NoTls)?;
    let mut other = through(&cluster).connect(postgres::NoTls)?;
    let own: Vec<_> =
        (0..4).map(|n| client.prepare(&format!("select {n} + $1::int"))).collect::<Result<_, _>>()?;
    let mut uses = |order: &[usize]| -> Result<usize> {
        let before = analysed(&cluster);
        for n in order {
            ensure!(client.query_one(&own[*n], &[&1])?.get::<_, i32>(0) == *n as i32 + 1);
        }
        let count = analysed(&cluster) - before;
        // All that the client has are its own while it is there, and beyond two nobody's while another is.
        ensure!(text(&mut other, "select 'the other'")? == "the other");
        Ok(count)
    };
    uses(&[0, 1, 2, 3])?;
    ensure!(uses(&[2, 3])? == 0, "the last two are kept");
    ensure!(uses(&[3, 2])? == 0, "and again");
    ensure!(uses(&[0, 1])? == 2, "the others are not");
    ensure!(uses(&[0, 1])? == 0, "now they are the last two");
    ensure!(uses(&[0, 1, 2, 3])? == 2);
    ensure!(uses(&[1, 3, 0, 2])? == 2);
    ensure!(uses(&[0, 2])? == 0, "in the order in which they were used");
    Ok(())
}

/// Numbers that look random, the same on every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[test]
fn a_torture_of_forty_clients_has_no_wrong_answer() -> Result<()> {
    let cluster = with_pool("torture", 4, &[("max_connections", "60")])?;
    let deadline = Instant::now() + Duration::from_secs(8);
    let texts = [
        "'a'",
        "'b' || 'b'",
        "repeat('c', 3)",
        "upper('d')",
        "(select 'e' from pg_class limit 1)",
        "concat('f')",
    ];
    let answers = ["a", "bb", "ccc", "D", "e", "f"];
    let threads: Vec<_> = (0..40u64)
        .map(|number| {
            let config = through(&cluster);
            std::thread::spawn(move || -> Result<u64> {
                let mut dice = Dice(number * 7919 + 1);
                let mut client = config.connect(postgres::NoTls)?;
                // What each of the names stands for.
                let mut names: [Option<usize>; 4] = [None; 4];
                let mut done = 0;
                while Instant::now() < deadline {
                    let name = dice.roll(4) as usize;
                    match dice.roll(20) {
                        0 => {
                            client.batch_execute("deallocate all")?;
                            names = [None; 4];
                        }
                        1 => {
                            client.batch_execute("discard all")?;
                            names = [None; 4];
                        }
                        2 => {
                            client = config.connect(postgres::NoTls)?;
                            names = [None; 4];
                        }
                        3 | 4 => {
                            if names[name].take().is_some() {
                                client.batch_execute(&format!("deallocate n{name}"))?;
                            }
                        }
                        _ => match names[name] {
                            Some(text_number) => {
                                let seen = text(&mut client, &format!("execute n{name}"))?;
                                ensure!(seen == answers[text_number], "{seen} for {}", answers[text_number]);
                            }
                            None => {
                                let text_number = dice.roll(6) as usize;
                                client.batch_execute(&format!(
                                    "prepare n{name} as select {}",
                                    texts[text_number]
                                ))?;
                                names[name] = Some(text_number);
                            }
                        },
                    }
                    // By the protocol as well, in names of the driver's own that every client has.
                    if dice.roll(3) == 0 {
                        let text_number = dice.roll(6) as usize;
                        let row = client.query_one(&format!("select {}", texts[text_number]), &[])?;
                        ensure!(row.get::<_, String>(0) == answers[text_number]);
                    }
                    done += 1;
                }
                Ok(done)
            })
        })
        .collect();
    let mut done = 0;
    let mut wrong = Vec::new();
    for thread in threads {
        match thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))? {
            Ok(count) => done += count,
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    ensure!(done > 1_000, "only {done} steps");
    Ok(())
}
