//! Who the server says is there.

use crate::pooling::{text, through, with_pool};
use anyhow::{Context, Result, ensure};
use pgrx_tests::script::Target;

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
