//! The methods of authentication, and how the pooler itself gets in at the server.

use super::raw::Raw;
use super::{at, at_socket, said, told, until_said, with_password};
use anyhow::{Context, Result};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::drivers::{node, python, succeeded};
use pgrx_tests::{machine, wait};
use postgres::NoTls;

const METHODS: [(&str, &str); 5] = [
    ("by_trust", "trust"),
    ("by_reject", "reject"),
    ("by_password", "password"),
    ("by_md5", "md5"),
    ("by_scram", "scram-sha-256"),
];

/// Roles, how each is made, and its password.
const ROLES: [(&str, &str); 8] = [
    (
        "with_scram",
        "set password_encryption = 'scram-sha-256'; create role with_scram login password 'se cret'",
    ),
    ("with_md5", "set password_encryption = 'md5'; create role with_md5 login password 'se cret'"),
    ("still_valid", "create role still_valid login password 'se cret' valid until '2200-01-01'"),
    ("forever", "create role forever login password 'se cret' valid until 'infinity'"),
    ("expired", "create role expired login password 'se cret' valid until '2001-01-01'"),
    (
        "expired_md5",
        "set password_encryption = 'md5'; create role expired_md5 login password 'se cret' valid until '2001-01-01'",
    ),
    ("without", "create role without login"),
    ("no_login", "create role no_login password 'se cret'"),
];

/// The front gets in over TCP with what the client has shown, but where the server wants the password itself.
fn hba() -> String {
    let mut lines =
        "local all postgres trust\nlocal by_password all trust\nlocal all all reject\n".to_owned();
    for (database, method) in METHODS {
        lines += &format!("host {database} all 127.0.0.1/32 {method}\n");
    }
    lines
}

#[test]
fn each_method_lets_in_whom_the_server_lets_in() -> Result<()> {
    let cluster = Cluster::new("methods")?;
    cluster.set_hba(&hba())?;
    cluster.set("max_connections", "80")?;
    let cluster = cluster.start()?;
    for (_, made) in ROLES {
        cluster.sql(made)?;
    }
    for (database, _) in METHODS {
        cluster.sql(&format!("create database {database}"))?;
    }
    let (mut let_in, mut refused) = (0, 0);
    for (database, _) in METHODS {
        for role in ROLES.iter().map(|role| role.0).chain(["nobody_at_all"]) {
            for password in ["se cret", "wrong", ""] {
                let ask = |port| said(&with_password(at(port, role, database), password));
                let (direct, through) = (ask(cluster.port), ask(cluster.pooler_port));
                assert_eq!(through, direct, "{role} to {database} with {password:?}");
                if direct.starts_with("in as") { let_in += 1 } else { refused += 1 }
            }
            let ask = |port| said(&at(port, role, database));
            assert_eq!(
                ask(cluster.pooler_port),
                ask(cluster.port),
                "{role} to {database} without a password"
            );
        }
    }
    assert!(let_in >= 30 && refused >= 60, "{let_in} of {refused} were let in");
    // What only the log may say, it says.
    for text in ["Role \"nobody_at_all\" does not exist.", "User \"expired\" has an expired password."] {
        cluster.wait_log(text)?;
    }
    unknown_roles_look_like_others(&cluster)
}

/// Names cannot be probed: the same requests, the same salt each time, the same errors.
fn unknown_roles_look_like_others(cluster: &Cluster) -> Result<()> {
    let first = |port, role: &str, database: &str| -> Result<String> {
        let mut client = Raw::tcp(cluster, port)?;
        client.startup(&[("user", role), ("database", database)]);
        Ok(client.hear()?.shown())
    };
    let challenge = |port, role: &str| -> Result<String> {
        let mut client = Raw::tcp(cluster, port)?;
        client.startup(&[("user", role), ("database", "by_scram")]);
        client.hear()?;
        client.send(&super::hostile::initial(b"SCRAM-SHA-256", b"n,,n=,r=abc"));
        Ok(client.hear()?.shown())
    };
    for role in ["nobody_at_all", "nobody_else", "without"] {
        let direct = challenge(cluster.port, role)?;
        assert!(direct.starts_with("SASL challenge r=…,s="), "{direct}");
        for _ in 0..2 {
            assert_eq!(challenge(cluster.pooler_port, role)?, direct, "{role}");
        }
    }
    assert_ne!(
        challenge(cluster.pooler_port, "nobody_at_all")?,
        challenge(cluster.pooler_port, "nobody_else")?
    );
    let error = |role: &str, database: &str| {
        said(&with_password(at(cluster.pooler_port, role, database), "wrong")).replace(role, "ROLE")
    };
    for (encryption, request, role) in
        [("scram-sha-256", "SASL SCRAM-SHA-256  ", "with_scram"), ("md5", "authentication 5", "with_md5")]
    {
        cluster.sql(&format!("alter system set password_encryption = '{encryption}'"))?;
        cluster.reload()?;
        for port in [cluster.port, cluster.pooler_port] {
            wait::until(&format!("an unknown role is asked by {encryption}"), || {
                first(port, "nobody_at_all", "by_md5").is_ok_and(|heard| heard == request)
            })?;
        }
        assert_eq!(first(cluster.pooler_port, role, "by_md5")?, request);
        for database in ["by_password", "by_md5"] {
            assert_eq!(error("nobody_at_all", database), error(role, database), "{database}, {encryption}");
        }
    }
    assert_eq!(error("nobody_at_all", "by_scram"), error("with_scram", "by_scram"));
    Ok(())
}

/// The name of the user that runs this test, for peer.
fn own_name() -> Result<String> {
    let output = std::process::Command::new("id").arg("-un").output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[test]
fn peer_on_the_poolers_socket_goes_by_the_map_of_pg_ident_conf() -> Result<()> {
    let (me, server) = (own_name()?, machine::server_user_name()?);
    let cluster = Cluster::new("peer")?;
    cluster.set_hba(
        "local all postgres trust\nlocal all mapped,unmapped peer map=crew\nlocal all all peer\nhost all all all reject\n",
    )?;
    std::fs::write(
        cluster.data().join("pg_ident.conf"),
        format!("crew {me} mapped\ncrew {server} mapped\nother {me} unmapped\n"),
    )?;
    let cluster = cluster.start()?;
    cluster
        .sql(&format!("create role mapped login; create role unmapped login; create role \"{me}\" login"))?;
    let ask = |port, role: &str| said(&at_socket(&cluster, port, role, "postgres"));
    assert_eq!(ask(cluster.pooler_port, "mapped"), "in as mapped to postgres");
    for role in ["mapped", "unmapped", "nobody_at_all"] {
        assert_eq!(ask(cluster.pooler_port, role), ask(cluster.port, role), "{role}");
    }
    assert!(
        ask(cluster.pooler_port, "unmapped").contains("Peer authentication failed for user \"unmapped\"")
    );
    assert_eq!(ask(cluster.port, &me), format!("in as {me} to postgres"));
    if me != server {
        // The client is who it says to be; the front itself is not, and says what to do about it.
        let shut = ask(cluster.pooler_port, &me);
        assert!(
            shut.contains("08006") && shut.contains("pg_hba.conf") && shut.contains("pg_ident.conf"),
            "{shut}"
        );
    }

    // The map is read again on a reload, and what the error says helps.
    std::fs::write(
        cluster.data().join("pg_ident.conf"),
        format!(
            "crew {me} unmapped\ncrew {me} mapped\n{}",
            if me == server { "" } else { "crew root2 mapped\n" }
        ),
    )?;
    cluster.reload()?;
    let unmapped = at_socket(&cluster, cluster.pooler_port, "unmapped", "postgres");
    if me == server {
        return until_said(&unmapped, "in as unmapped");
    }
    let mut hint = String::new();
    wait::until("the error says which line helps", || {
        let error = unmapped.connect(NoTls).err();
        hint = error.as_ref().and_then(|e| e.as_db_error()?.hint().map(str::to_owned)).unwrap_or_default();
        hint.contains("pg_ident.conf")
    })?;
    let line = hint.rsplit(": ").next().context("no line")?;
    let path = cluster.data().join("pg_ident.conf");
    std::fs::write(&path, format!("{}{line}\n", std::fs::read_to_string(&path)?))?;
    cluster.reload()?;
    until_said(&unmapped, "in as unmapped")
}

/// Debian's own file, with the method of the lines for TCP.
fn debian(method: &str) -> String {
    format!(
        "local   all             postgres                                peer\n\
         local   all             all                                     peer\n\
         host    all             all             127.0.0.1/32            {method}\n\
         host    all             all             ::1/128                 {method}\n\
         local   replication     all                                     peer\n\
         host    replication     all             127.0.0.1/32            {method}\n\
         host    replication     all             ::1/128                 {method}\n"
    )
}

#[test]
fn out_of_the_box_on_debian_a_role_with_a_password_connects() -> Result<()> {
    let cluster = Cluster::new("debian")?.start()?;
    let mut admin = cluster.connect()?;
    for statement in [
        "create database shop",
        "set password_encryption = 'scram-sha-256'",
        "create role clerk login password 'kä se'",
        "create role careful login password 'x'",
        "set password_encryption = 'md5'",
        "create role old_clerk login password 'se cret'",
    ] {
        admin.batch_execute(statement)?;
    }
    let lines = |text: &str| -> Result<()> {
        cluster.set_hba(text)?;
        cluster.reload()
    };
    lines(&debian("scram-sha-256"))?;
    let port = cluster.pooler_port;
    let wrong = with_password(at(port, "clerk", "shop"), "wrong");
    until_said(&wrong, "28P01: password authentication failed for user \"clerk\"")?;
    assert_eq!(said(&with_password(at(port, "clerk", "shop"), "kä se")), "in as clerk to shop");
    let arguments = ["127.0.0.1", &port.to_string(), "clerk", "kä se", "shop"];
    succeeded("psycopg_login.py", &python("psycopg_login.py", &arguments)?)?;
    succeeded("pg_login.js", &node("pg_login.js", &arguments)?)?;
    let mut psql = cluster.program("psql");
    psql.args(["-X", "-At", "-h", "127.0.0.1", "-p", &port.to_string(), "-U", "clerk", "-d", "shop"]);
    let output = psql.env("PGPASSWORD", "kä se").args(["-c", "select session_user"]).output()?;
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "clerk\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    lines(&debian("md5"))?;
    let old = with_password(at(port, "old_clerk", "shop"), "se cret");
    until_said(&old, "in as old_clerk to shop")?;
    assert_eq!(said(&with_password(at(port, "clerk", "shop"), "kä se")), "in as clerk to shop");

    // Where the server wants the password itself there is no way for the pooler, and its error says what would be one.
    lines(&debian("password"))?;
    let careful = with_password(at(port, "careful", "shop"), "x");
    until_said(&careful, "08006")?;
    let error = careful.connect(NoTls).and_then(|mut client| client.batch_execute("select 1")).unwrap_err();
    let error = error.as_db_error().with_context(|| told(&error))?;
    assert!(error.message().contains("line 3 of pg_hba.conf wants a password"), "{error:?}");
    let hint = error.hint().unwrap_or_default();
    assert!(hint.contains("pg_hba.conf"), "{hint}");
    let line = hint.rsplit(": ").next().unwrap_or_default();
    assert_eq!(line, "host all \"careful\" 127.0.0.1/32 scram-sha-256");
    lines(&format!("{line}\n{}", debian("password")))?;
    until_said(&careful, "in as careful to shop")
}
