//! Scripts with other clients in between, whose state is another: what the server says directly and through the front is the same.

use anyhow::{Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::script::{Script, Target, staged};

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
