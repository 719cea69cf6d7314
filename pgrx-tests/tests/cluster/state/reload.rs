//! What a reload of the server's settings does to sessions: it goes under what each has of its own.

use crate::pooling::{text, through, with_pool};
use crate::raw::Raw;
use anyhow::{Result, ensure};
use pgrx_tests::wait;
use std::time::{Duration, Instant};

#[test]
fn what_stands_over_a_default_outlives_a_reload() -> Result<()> {
    let cluster = with_pool("state-reload", 1, &[])?;
    let mut clients: Vec<_> = (0..2)
        .map(|_| through(&cluster).options("-c work_mem=1MB").connect(postgres::NoTls))
        .collect::<Result<_, _>>()?;
    for (number, client) in clients.iter_mut().enumerate() {
        client.batch_execute(&format!("set work_mem = '5MB'; set state.number = '{number}'"))?;
    }
    cluster.connect()?.batch_execute("alter system set transform_null_equals = on")?;
    cluster.connect()?.batch_execute("select pg_reload_conf()")?;
    let limit = Instant::now() + wait::LIMIT;
    while text(&mut clients[0], "show transform_null_equals")? != "on" {
        ensure!(Instant::now() < limit, "the reload does not come");
    }
    for client in clients.iter_mut().rev() {
        ensure!(text(client, "show work_mem")? == "5MB");
        client.batch_execute("reset work_mem")?;
        ensure!(text(client, "show work_mem")? == "1MB");
    }
    Ok(())
}

#[test]
fn a_reload_reaches_every_client_once_and_goes_under_what_each_has_set() -> Result<()> {
    let cluster = with_pool("reload", 1, &[("work_mem", "4100kB"), ("timezone", "UTC")])?;
    let open = || Raw::open(cluster.pooler_port);
    let (mut own, mut none, mut third) = (open()?, open()?, open()?);
    own.query("set work_mem = '1MB'; set timezone = 'Asia/Tokyo'")?;
    none.query("select 1")?;
    third.query("set state.x = 'third'")?;
    cluster.set("work_mem", "4200kB")?.set("timezone", "Europe/Rome")?;
    cluster.reload()?;
    // The one backend has read it.
    wait::until("the reload has come", || {
        let answer = third.query("show work_mem");
        answer.is_ok_and(|answer| answer[1].1.ends_with(b"4200kB"))
    })?;
    let shown = |answer: &[(u8, Vec<u8>)]| -> Vec<String> {
        let rows = answer.iter().filter(|(tag, _)| *tag == b'D');
        rows.map(|(_, body)| String::from_utf8_lossy(&body[6..]).into_owned()).collect()
    };
    let told = |answer: &[(u8, Vec<u8>)]| -> Vec<String> {
        let told = answer.iter().filter(|(tag, _)| *tag == b'S');
        told.map(|(_, body)| String::from_utf8_lossy(body).replace('\0', "=")).collect()
    };
    for round in 0..3 {
        let answer = none.query("show work_mem; show timezone")?;
        ensure!(shown(&answer) == ["4200kB", "Europe/Rome"], "round {round}: {:?}", shown(&answer));
        let expected: &[&str] = if round == 0 { &["TimeZone=Europe/Rome="] } else { &[] };
        ensure!(told(&answer) == expected, "round {round}: {:?}", told(&answer));
        let answer = own.query("show work_mem; show timezone")?;
        ensure!(shown(&answer) == ["1MB", "Asia/Tokyo"], "round {round}: {:?}", shown(&answer));
        ensure!(told(&answer).is_empty(), "round {round}: {:?}", told(&answer));
    }
    let answer = own.query("reset work_mem; reset timezone; show work_mem; show timezone")?;
    ensure!(
        shown(&answer) == ["4200kB", "Europe/Rome"] && told(&answer) == ["TimeZone=Europe/Rome="],
        "{answer:?}"
    );
    for client in [&mut own, &mut none, &mut third] {
        let unasked = client.unasked(Duration::from_millis(100))?;
        ensure!(unasked.is_empty(), "{unasked:?}");
    }
    // A base that came with the login stays over it, and what is under it changes.
    let mut options = through(&cluster).options("-c work_mem=2MB").connect(postgres::NoTls)?;
    ensure!(text(&mut options, "show work_mem")? == "2MB");
    cluster.set("work_mem", "4300kB")?;
    cluster.reload()?;
    wait::until("the second reload has come", || {
        none.query("show work_mem").is_ok_and(|answer| shown(&answer) == ["4300kB"])
    })?;
    ensure!(text(&mut options, "show work_mem")? == "2MB");
    options.batch_execute("set work_mem = '5MB'")?;
    none.query("select 1")?;
    options.batch_execute("reset work_mem")?;
    ensure!(text(&mut options, "show work_mem")? == "2MB");
    ensure!(shown(&third.query("show work_mem")?) == ["4300kB"]);
    Ok(())
}
