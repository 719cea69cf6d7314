//! The peer that the benchmarks compare with is what it should be.

use anyhow::Result;
use pgrx_tests::certificate::Certificate;
use pgrx_tests::cluster::Cluster;
use pgrx_tests::lacking;
use pgrx_tests::pgbouncer::{Options, Pgbouncer};
use pgrx_tests::process;

fn connect(bouncer: &Pgbouncer, user: &str, password: &str) -> Result<postgres::Client> {
    let mut config = postgres::Config::new();
    config.host("127.0.0.1").port(bouncer.port).user(user).password(password).dbname("postgres");
    Ok(config.connect(postgres::NoTls)?)
}

#[test]
fn a_query_passes_and_it_ends_when_dropped() -> Result<()> {
    let server = Cluster::new("bounced")?.start()?;
    server.sql("CREATE ROLE somebody LOGIN; CREATE ROLE other LOGIN PASSWORD 'secret'")?;
    let bouncer = Pgbouncer::start(&server, &Options::default())?;
    for user in ["postgres", "somebody"] {
        let mut client = connect(&bouncer, user, "")?;
        let row = client.query_one("SELECT current_user::text, $1::int + 1", &[&41])?;
        assert_eq!((row.get(0), row.get(1)), (user, 42));
    }
    let pid = bouncer.pid()?;
    drop(bouncer);
    assert!(!process::is_running(pid));

    let scram = Options { auth_type: "scram-sha-256".to_owned(), ..Options::default() };
    let bouncer = Pgbouncer::start(&server, &scram)?;
    assert!(connect(&bouncer, "other", "secret").is_ok());
    assert!(connect(&bouncer, "other", "wrong").is_err());
    Ok(())
}

#[test]
fn it_speaks_tls_when_told() -> Result<()> {
    if lacking::in_server("TLS") {
        return Ok(());
    }
    let server = Cluster::new("bounced-tls")?.start()?;
    let certificate = Certificate::self_signed(server.socket_directory())?;
    let options = Options { tls: Some((certificate, "require".to_owned())), ..Options::default() };
    let bouncer = Pgbouncer::start(&server, &options)?;
    assert!(connect(&bouncer, "postgres", "").is_err());
    let mut psql = server.program("psql");
    // libpq looks for certificates at home, where the server user may not look.
    psql.env("HOME", "/").env("PGSSLMODE", "require").args([
        "-h",
        "127.0.0.1",
        "-U",
        "postgres",
        "-Atc",
        "SELECT 42",
    ]);
    let output = psql.args(["-p", &bouncer.port.to_string()]).output()?;
    assert_eq!(output.stdout, b"42\n", "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
