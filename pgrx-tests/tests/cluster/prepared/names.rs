//! What statements are called: a client's names are its own, however and from wherever they are looked up.

/// Names and scripts for [`crate::woven`].
pub const SCRIPTS: [(&str, &str); 9] = [
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
