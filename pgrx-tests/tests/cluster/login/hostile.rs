//! What is malformed, slow, silent, or gone before it has logged in.

use super::raw::{Heard, Raw, Source};
use super::{at, code, said, times, with_password};
use anyhow::{Context, Result};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::script::frontend::Message;
use pgrx_tests::wait;
use postgres::NoTls;
use std::time::{Duration, Instant};

const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;

/// A SASLInitialResponse.
pub fn initial(mechanism: &[u8], first: &[u8]) -> Vec<u8> {
    let length = (first.len() as u32).to_be_bytes();
    Message::typed(b'p', &[mechanism, b"\0", &length, first].concat()).bytes
}

fn startup(parameters: &[(&[u8], &[u8])]) -> Vec<u8> {
    let parameters: Vec<_> = parameters.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
    Message::startup((3, 0), &parameters).bytes
}

fn packet(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
}

fn version(major: u16, minor: u16) -> Vec<u8> {
    [major.to_be_bytes(), minor.to_be_bytes()].concat()
}

/// First packets, none of which is a good one.
fn first_packets() -> Vec<Vec<u8>> {
    let (v3, good) = (version(3, 0), startup(&[(b"user", b"nobody_at_all"), (b"database", b"postgres")]));
    let mut all = vec![
        Vec::new(),
        vec![0],
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        vec![0xff; 64],
        vec![0; 64],
        0u32.to_be_bytes().to_vec(),
        3u32.to_be_bytes().to_vec(),
        packet(b""),
        packet(b"\0\x03"),
        packet(b"\0\x03\0"),
        packet(&v3),
        packet(&[&v3[..], b"\0"].concat()),
        packet(&[&v3[..], b"user"].concat()),
        packet(&[&v3[..], b"user\0"].concat()),
        packet(&[&v3[..], b"user\0postgres"].concat()),
        packet(&[&v3[..], b"user\0postgres\0"].concat()),
        packet(&[&v3[..], b"user\0\0\0"].concat()),
        packet(&[&v3[..], b"database\0postgres\0\0"].concat()),
        packet(&[&v3[..], b"user\0postgres\0\0\0"].concat()),
        packet(&[&v3[..], b"user\0postgres\0replication\0maybe\0\0"].concat()),
        packet(&version(1, 0)),
        packet(&[&version(2, 0)[..], &[0; 288]].concat()),
        packet(&version(4, 0)),
        packet(&version(0x7fff, 0xffff)),
        packet(&[&80_877_102u32.to_be_bytes()[..], &[0; 4]].concat()),
        packet(&[&80_877_102u32.to_be_bytes()[..], &[0; 300]].concat()),
        [&10_001u32.to_be_bytes()[..], &v3, &[b'a'; 9_993]].concat(),
        u32::MAX.to_be_bytes().to_vec(),
        0x7fff_ffffu32.to_be_bytes().to_vec(),
        Message::query(b"select 1").bytes,
    ];
    // The longest that is taken.
    let fill = vec![b'x'; 10_000 - 4 - 4 - 5 - 9 - 5 - 2 - 1];
    all.push(startup(&[(b"user", b"postgres"), (b"name", &fill)]));
    all.extend([1, 4, 5, 9, good.len() - 1].map(|length| good[..length].to_vec()));
    all
}

fn answer_to(cluster: &Cluster, port: u16, source: Source, bytes: &[u8]) -> Result<Vec<String>> {
    let mut client = Raw::open(cluster, port, source)?;
    client.send(bytes);
    client.finish();
    client.hear_all()
}

#[test]
fn a_malformed_login_hears_what_the_server_says() -> Result<()> {
    let cluster = Cluster::new("malformed")?;
    cluster.set_hba("local all all trust\nhost all asked,nobody_at_all 127.0.0.1/32 scram-sha-256\n\
                     host all md5er 127.0.0.1/32 md5\nhost all clear 127.0.0.1/32 password\nhost all all all trust\n")?;
    let cluster = cluster.start()?;
    cluster.sql("create role asked login password 'x'; create role clear login password 'x'")?;
    cluster.sql("set password_encryption = 'md5'; create role md5er login password 'x'")?;
    let worker = cluster.front_pid()?;
    let mut wrong = Vec::new();
    let mut hold = |what: String, direct: Vec<String>, through: Vec<String>| {
        if direct != through {
            wrong.push(format!("{what}: directly {direct:?}, through the pooler {through:?}"));
        }
    };
    for source in [Source::Address([127, 0, 0, 1].into()), Source::Unix] {
        for bytes in first_packets() {
            let ask = |port| answer_to(&cluster, port, source, &bytes);
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
            hold(format!("{source:?} {shown:?}"), ask(cluster.port)?, ask(cluster.pooler_port)?);
        }
    }
    // Requests for encryption. A server that was built with GSSAPI says G to one of them; the pooler never does.
    let encryption = |port, codes: &[u32]| -> Result<Vec<String>> {
        let mut client = Raw::tcp(&cluster, port)?;
        let mut heard = Vec::new();
        for (number, code) in codes.iter().enumerate() {
            client.send(&Message::request(*code).bytes);
            if codes[..number].contains(code) {
                heard.extend(client.hear_all()?);
                return Ok(heard);
            }
            heard.push(client.hear_byte()?.shown());
        }
        client.startup(&[("user", "asked")]);
        heard.push(client.hear()?.shown());
        Ok(heard)
    };
    for codes in [&[SSL][..], &[SSL, SSL]] {
        hold(format!("{codes:?}"), encryption(cluster.port, codes)?, encryption(cluster.pooler_port, codes)?);
    }
    for codes in [&[GSS][..], &[SSL, GSS], &[GSS, SSL]] {
        let heard = encryption(cluster.pooler_port, codes)?;
        assert_eq!(heard.last().map(|last| &last[..]), Some("SASL SCRAM-SHA-256  "), "{heard:?}");
    }
    for codes in [&[GSS, GSS][..], &[SSL, GSS, SSL], &[GSS, SSL, GSS]] {
        let heard = encryption(cluster.pooler_port, codes)?.concat();
        assert!(
            heard.contains("C0A000") && heard.contains("unsupported frontend protocol 1234.56"),
            "{heard}"
        );
    }
    let ask = |port| -> Result<Vec<String>> {
        let mut client = Raw::tcp(&cluster, port)?;
        client.send(&[Message::request(SSL).bytes, startup(&[(b"user", b"asked")])].concat());
        Ok(vec![client.hear_byte()?.shown(), client.hear()?.shown()])
    };
    hold(
        "a startup packet right behind SSLRequest".to_owned(),
        ask(cluster.port)?,
        ask(cluster.pooler_port)?,
    );
    for (role, answers) in [("clear", passwords()), ("md5er", passwords()), ("asked", scram_firsts())] {
        for bytes in answers {
            let ask = |port| -> Result<Vec<String>> {
                let mut client = Raw::tcp(&cluster, port)?;
                client.startup(&[("user", role), ("database", "postgres")]);
                let mut heard = vec![client.hear()?.shown()];
                client.send(&bytes);
                client.finish();
                heard.extend(client.hear_all()?);
                Ok(heard)
            };
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
            hold(format!("{role} {shown:?}"), ask(cluster.port)?, ask(cluster.pooler_port)?);
        }
    }
    for role in ["asked", "nobody_at_all"] {
        for last in scram_lasts() {
            let ask = |port| -> Result<Vec<String>> {
                let mut client = Raw::tcp(&cluster, port)?;
                client.startup(&[("user", role), ("database", "postgres")]);
                client.hear()?;
                client.send(&initial(b"SCRAM-SHA-256", b"n,,n=,r=abc"));
                let Heard::Message(b'R', body) = client.hear()? else { anyhow::bail!("no challenge") };
                let challenge = String::from_utf8_lossy(&body[4..]).into_owned();
                let nonce =
                    challenge.split(',').next().and_then(|part| part.strip_prefix("r=")).context("nonce")?;
                let text: Vec<u8> = replace(last, b"NONCE", nonce.as_bytes());
                client.send(&Message::typed(b'p', &text).bytes);
                client.finish();
                client.hear_all()
            };
            let shown = String::from_utf8_lossy(last).into_owned();
            hold(format!("{role} {shown:?}"), ask(cluster.port)?, ask(cluster.pooler_port)?);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(
        said(&with_password(at(cluster.pooler_port, "asked", "postgres"), "x")),
        "in as asked to postgres"
    );
    assert_eq!(cluster.front_pid()?, worker);
    Ok(())
}

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    match text.windows(from.len()).position(|window| window == from) {
        Some(at) => [&text[..at], to, &text[at + from.len()..]].concat(),
        None => text.to_vec(),
    }
}

/// Answers to a request for a password.
fn passwords() -> Vec<Vec<u8>> {
    let typed = |body: &[u8]| Message::typed(b'p', body).bytes;
    vec![
        Vec::new(),
        b"p".to_vec(),
        typed(b""),
        typed(b"\0"),
        typed(b"x"),
        typed(b"x\0y"),
        typed(b"x\0y\0"),
        typed(b"\xff\xfe\0"),
        typed(&[&[b'x'; 900][..], b"\0"].concat()),
        typed(&[b'x'; 70_000]),
        Message::query(b"select 1").bytes,
        Message::terminate().bytes,
        b"p\0\0\0\x03".to_vec(),
        b"p\0\0\0\0".to_vec(),
        b"p\xff\xff\xff\xff".to_vec(),
        b"p\x7f\xff\xff\xff".to_vec(),
        b"p\0\0\0\x10abc".to_vec(),
    ]
}

/// First messages of SCRAM, each with a mistake of its own.
fn scram_firsts() -> Vec<Vec<u8>> {
    let typed = |body: &[u8]| Message::typed(b'p', body).bytes;
    let mut all = passwords();
    for body in [
        &b"SCRAM-SHA-256"[..],
        b"SCRAM-SHA-256\0",
        b"SCRAM-SHA-256\0\0\0",
        b"SCRAM-SHA-256\0\0\0\0\0",
        b"SCRAM-SHA-256\0\xff\xff\xff\xff",
        b"SCRAM-SHA-256\0\xff\xff\xff\xfen,,n=,r=abc",
        b"SCRAM-SHA-256\0\0\0\0\x20n,,n=,r=abc",
        b"SCRAM-SHA-256\0\0\0\0\x04n,,n=,r=abc",
        b"SCRAM-SHA-256-PLUS\0\0\0\0\x0bn,,n=,r=abc",
        b"SCRAM-SHA-1\0\0\0\0\x0bn,,n=,r=abc",
        b"\0\0\0\0\x0bn,,n=,r=abc",
    ] {
        all.push(typed(body));
    }
    for first in [
        &b""[..],
        b"\0",
        b"n",
        b"n,",
        b"n,,",
        b"n,,n",
        b"n,,n=",
        b"n,,n=,",
        b"n,,n=,r",
        b"n,,n=,r=",
        b"n,,n=,r=\x01",
        b"n,,n=,r=a b",
        b"n,,n=,r=\xc3\xa4",
        b"n,,n=,r=abc,",
        b"n,,n=,r=abc,x",
        b"n,,n=,r=abc,x=1",
        b"n,,n=a=2Cb,r=abc",
        b"n,,r=abc",
        b"n,,r=abc,n=",
        b"n,,m=x,n=,r=abc",
        b"n,a=bob,n=,r=abc",
        b"n,b=bob,n=,r=abc",
        b"nn,,n=,r=abc",
        b"x,,n=,r=abc",
        b",,n=,r=abc",
        b"y,,n=,r=abc",
        b"p,,n=,r=abc",
        b"p=,,n=,r=abc",
        b"p=tls-unique,,n=,r=abc",
        b"p=tls-server-end-point,,n=,r=abc",
        b"n,,n=,r=ab\0c",
        b"n,,n\xff=,r=abc",
        b"\xff\xff\xff",
    ] {
        all.push(initial(b"SCRAM-SHA-256", first));
    }
    all.push(initial(b"SCRAM-SHA-256", &[&b"n,,n=,r="[..], &[b'r'; 900]].concat()));
    all.push(initial(b"SCRAM-SHA-256", &[&b"n,,n=,r="[..], &[b'r'; 2_000]].concat()));
    all
}

/// Last messages of SCRAM, each with a mistake of its own.
fn scram_lasts() -> &'static [&'static [u8]] {
    &[
        b"",
        b"\0",
        b"c",
        b"c=",
        b"c=biws",
        b"c=biws,",
        b"c=biws,r",
        b"c=biws,r=",
        b"c=biws,r=NONCE",
        b"c=biws,r=NONCE,",
        b"c=biws,r=NONCE,p",
        b"c=biws,r=NONCE,p=",
        b"c=biws,r=NONCE,p=!!!!",
        b"c=biws,r=NONCE,p=AAAA",
        b"c=biws,r=NONCE,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        b"c=biws,r=NONCE,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        b"c=biws,r=NONCE,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=,x=1",
        b"c=biws,r=NONCE,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=x",
        b"c=biws,r=NONCE,x=1,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        b"c=biws,r=NONCE,x,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        b"c=eSws,r=NONCE,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        b"c=,r=NONCE,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        b"c=biws,r=abc,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        b"c=biws,r=NONCEx,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        b"r=NONCE,c=biws,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        b"m=1,c=biws,r=NONCE,p=AAAA",
        b"c=biws,r=NONCE,p=AAAA\0,x=1",
    ]
}

const CLIENTS: usize = 20;

/// As many clients as there are places get in, and no more: nothing has leaked. Every one is served.
fn every_place_is_free(cluster: &Cluster) -> Result<()> {
    let config = at(cluster.pooler_port, "postgres", "postgres");
    let mut clients = Vec::new();
    while clients.len() < CLIENTS {
        // A place is free a moment after its client has gone.
        clients.push(wait::for_value("a place for another client", || Ok(config.connect(NoTls)?))?);
    }
    for client in &mut clients {
        client.batch_execute("select 1")?;
    }
    assert_eq!(code(&config), "53300");
    drop(clients);
    let servers = "select coalesce(max(n), 0) from (select count(*) n from pg_stat_activity \
                   where backend_type = 'client backend' and pid <> pg_backend_pid() group by usesysid) counts";
    let most = cluster.sql("show postern.pool_size")?.parse::<u32>()?;
    wait::until("there are no more server connections than the pool may have", || {
        cluster.sql(servers).is_ok_and(|count| count.parse::<u32>().is_ok_and(|count| count <= most))
    })
}

#[test]
fn silent_slow_and_vanishing_clients_cost_nobody_else_anything() -> Result<()> {
    let cluster = Cluster::new("hostile")?;
    cluster.set_hba(
        "local all all trust\nhost all asked 127.0.0.1/32 scram-sha-256\nhost all all all trust\n",
    )?;
    cluster.set("postern.max_client_connections", &CLIENTS.to_string())?;
    cluster.set("postern.client_login_timeout", "2s")?;
    cluster.set("postern.pool_size", "3")?;
    let cluster = cluster.start()?;
    cluster.sql("create role asked login password 'x'")?;
    let (worker, port) = (cluster.front_pid()?, cluster.pooler_port);
    every_place_is_free(&cluster)?;

    // Slow ones: a byte a second is not fast enough, whatever it sends; nor is stopping halfway.
    let begun = Instant::now();
    let slow: Vec<_> = (0..5)
        .map(|stage| {
            let mut client = Raw::tcp(&cluster, port)?;
            match stage {
                0 => {}
                1 => client.send(&[0, 0, 0]),
                2 => client.send(&startup(&[(b"user", b"asked")])[..12]),
                3 => client.startup(&[("user", "asked"), ("database", "postgres")]),
                _ => {
                    client.startup(&[("user", "asked"), ("database", "postgres")]);
                    client.hear()?;
                    client.send(&initial(b"SCRAM-SHA-256", b"n,,n=,r=abc"));
                }
            }
            Ok(client)
        })
        .collect::<Result<_>>()?;
    let dripping = std::thread::scope(|scope| -> Result<Duration> {
        let mut client = Raw::tcp(&cluster, port)?;
        let Raw::Tcp(stream) = &client else { anyhow::bail!("not TCP") };
        let mut writer = stream.try_clone()?;
        let drip = scope.spawn(move || {
            // What is being tested is the time itself.
            for byte in startup(&[(b"user", b"asked"), (b"database", b"postgres")]) {
                if std::io::Write::write_all(&mut writer, &[byte]).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        assert_eq!(client.hear()?, Heard::Closed);
        let ended = begun.elapsed();
        drop(client);
        let _ = drip.join();
        Ok(ended)
    })?;
    assert!((2..30).contains(&dripping.as_secs()), "{dripping:?}");
    for mut client in slow {
        while client.hear()? != Heard::Closed {}
    }
    let all = begun.elapsed();
    assert!(all < Duration::from_secs(40), "{all:?}");

    // Silent ones, more than may be logging in at once.
    let silent: Vec<_> = (0..2000).map(|_| Raw::tcp(&cluster, port)).collect::<Result<_>>()?;
    let mut took = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        assert_eq!(said(&with_password(at(port, "asked", "postgres"), "x")), "in as asked to postgres");
        took.push(begun.elapsed());
    }
    // The silent ones go after two seconds, and nobody waits for that.
    assert!(took.iter().any(|took| *took < Duration::from_millis(1500)), "{took:?}");
    drop(silent);

    // Those that vanish, at every stage of a login.
    for round in 0..60 {
        let mut client = Raw::tcp(&cluster, port)?;
        match round % 6 {
            0 => {}
            1 => client.send(&startup(&[(b"user", b"postgres")])[..10]),
            2 => client.startup(&[("user", "asked"), ("database", "postgres")]),
            3 => {
                client.startup(&[("user", "asked"), ("database", "postgres")]);
                client.hear()?;
                client.send(&initial(b"SCRAM-SHA-256", b"n,,n=,r=abc"));
            }
            // Let in, and gone before the welcome.
            4 => client.startup(&[("user", "postgres"), ("database", "postgres")]),
            _ => {
                client.startup(&[("user", "postgres"), ("database", "postgres")]);
                client.hear()?;
                client.send(&Message::query(b"select pg_sleep(0.01)").bytes);
            }
        }
    }
    every_place_is_free(&cluster)?;
    assert_eq!(cluster.front_pid()?, worker, "the same worker has served all of it");
    assert_eq!(times(&cluster, "panicked"), 0, "{}", cluster.log_tail());
    Ok(())
}

#[test]
fn who_takes_too_long_to_log_in_hears_what_the_server_tells_such_a_client() -> Result<()> {
    let cluster = Cluster::new("login-time")?;
    cluster.set_hba("local all all trust\nhost all all all scram-sha-256\n")?;
    cluster.set("authentication_timeout", "2s")?.set("postern.client_login_timeout", "2s")?;
    let cluster = cluster.start()?;
    cluster.sql("create role asked login password 'x'")?;
    let begun = Instant::now();
    let at_each_stage = |port: u16| -> Result<Vec<Raw>> {
        let stages = 0..4;
        let client = |stage| {
            let mut client = Raw::tcp(&cluster, port)?;
            match stage {
                0 => {}
                1 => client.send(&startup(&[(b"user", b"asked")])[..12]),
                _ => client.startup(&[("user", "asked"), ("database", "postgres")]),
            }
            if stage == 3 {
                client.hear()?;
                client.send(&initial(b"SCRAM-SHA-256", b"n,,n=,r=abc"));
            }
            Ok(client)
        };
        stages.map(client).collect()
    };
    let clients = at_each_stage(cluster.port)?.into_iter().zip(at_each_stage(cluster.pooler_port)?);
    for (stage, (mut direct, mut through)) in clients.enumerate() {
        let all = |client: &mut Raw| -> Result<Vec<String>> {
            let mut all = Vec::new();
            loop {
                let heard = client.hear()?;
                all.push(heard.shown());
                if matches!(heard, Heard::Closed | Heard::Scraps(_)) {
                    return Ok(all);
                }
            }
        };
        let (direct, through) = (all(&mut direct)?, all(&mut through)?);
        assert_eq!(through, direct, "stage {stage}");
        assert_eq!(through.len(), if stage < 2 { 1 } else { 2 }, "stage {stage}: {through:?}");
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(30), "{took:?}");
    Ok(())
}
