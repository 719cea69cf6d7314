//! Settings whose values a session changes: by whatever means, within and without transactions.

/// Names and scripts for [`crate::woven`].
pub const SCRIPTS: [(&str, &str); 10] = [
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
        > Query "set statement_timeout = '500ms'"
        ~
        > Query "select pg_sleep(10)"
        Z> Query "select pg_sleep(0.7)"
        Y> Query "select pg_sleep(0.7)"
        ~
        > Query "select pg_sleep(10)"
        ~
        > Query "reset statement_timeout; select pg_sleep(0.7)"
        ~
        > Query "set lock_timeout = '10ms'; set idle_in_transaction_session_timeout = '10s'"
        ~
        > Query "show lock_timeout; show idle_in_transaction_session_timeout"
        "#,
    ),
];
