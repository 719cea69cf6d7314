//! What a startup packet asks of a session.

use super::raw::Raw;
use anyhow::Result;
use pgrx_tests::cluster::Cluster;
use pgrx_tests::script::frontend::Message;

/// Parameters beside role and database.
const CASES: &[&[(&str, &str)]] = &[
    &[],
    &[("application_name", "a name")],
    &[("application_name", "n\u{e4}me\u{1}")],
    &[("application_name", "a very long name that goes on and on until it is more than sixty-three bytes")],
    &[("client_encoding", "LATIN1")],
    &[("client_encoding", "utf-8")],
    &[("client_encoding", "no such encoding")],
    &[("client_encoding", "SQL_ASCII"), ("datestyle", "German"), ("TimeZone", "Asia/Tokyo")],
    &[("search_path", "pg_catalog, \"A b\"")],
    &[("search_path", "a b c")],
    &[("options", "-c work_mem=7MB -c statement_timeout=54321")],
    &[("options", "-c datestyle=SQL\\ ,\\ DMY --search-path=x")],
    &[("options", "-c work_mem=lots")],
    &[("options", "-c no_such_setting=1")],
    &[("options", "-c no.such=1")],
    &[("options", "-c shared_buffers=1")],
    &[("options", "-c log_statement=all")],
    &[("options", "-c role=plain")],
    &[("options", "-c role=nobody_at_all")],
    &[("options", "-c session_authorization=plain")],
    &[("options", "--no-such-thing")],
    &[("options", "-Q")],
    &[("options", "words without a dash")],
    &[("options", "-d 1 -e -f s -s -t pl -P -O")],
    &[("options", "-c application_name=fromoptions"), ("application_name", "from the parameter")],
    &[("options", "-c default_transaction_read_only=on"), ("default_transaction_isolation", "serializable")],
    &[("no_such_parameter", "1")],
    &[("my.own", "value")],
    &[("work_mem", "-1")],
    &[("is_superuser", "on")],
    &[("server_version", "9")],
    &[("lc_messages", "C"), ("extra_float_digits", "3"), ("bytea_output", "escape")],
    &[("DateStyle", "nonsense")],
    &[("TimeZone", "Nowhere/Never")],
    &[("postern.agent", "0:00000000000000000000000000000000")],
    &[("statement_timeout", "54321"), ("lock_timeout", "5s"), ("idle_in_transaction_session_timeout", "0")],
];

/// What has been set by the client, and some of what everything else hangs on.
const SHOW: &str = "select name, setting, source from pg_settings where source = 'client' order by name; \
                    select current_user, session_user, current_setting('is_superuser'), \
                    coalesce(current_setting('my.own', true), ''); show search_path; show application_name; show datestyle";

fn session(cluster: &Cluster, port: u16, role: &str, case: &[(&str, &str)]) -> Result<Vec<String>> {
    let mut client = Raw::tcp(cluster, port)?;
    let mut parameters = vec![("user", role), ("database", "postgres")];
    parameters.extend(case);
    client.startup(&parameters);
    let mut heard = client.hear_all()?;
    if heard.last().is_some_and(|last| last.starts_with('Z')) {
        client.send(&Message::query(SHOW.as_bytes()).bytes);
        heard.extend(client.hear_all()?);
        client.send(&Message::query(b"reset all; select set_config('x.y', '1', false)").bytes);
        client.hear_all()?;
        client.send(&Message::query(SHOW.as_bytes()).bytes);
        heard.extend(client.hear_all()?);
    }
    Ok(heard)
}

#[test]
fn startup_options_do_and_say_what_they_do_and_say_directly() -> Result<()> {
    let cluster = Cluster::new("options")?;
    cluster.set("postern.pool_size", "1")?;
    let cluster = cluster.start()?;
    cluster
        .sql("create role plain login; create role limited login; alter role limited set work_mem = '9MB'")?;
    cluster.sql("alter role limited set search_path = 'mine'; alter role limited in database postgres set datestyle = 'ISO, YMD'")?;
    let mut different = std::collections::BTreeSet::new();
    let mut wrong = Vec::new();
    for role in ["postgres", "limited"] {
        for case in CASES {
            let direct = session(&cluster, cluster.port, role, case)?;
            let through = session(&cluster, cluster.pooler_port, role, case)?;
            if through != direct {
                let first = direct.iter().zip(&through).find(|(d, t)| d != t);
                wrong.push(format!(
                    "{role}, {case:?}: {} and {} messages, {first:?}",
                    direct.len(),
                    through.len()
                ));
            }
            different.insert(direct);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(different.len() > 40, "the cases differ: {}", different.len());
    Ok(())
}
