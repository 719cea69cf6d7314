//! haproxy moves a real client's traffic on a promotion, configured as the README says, with backups in line.
//! PARITY row S4.

use anyhow::Result;
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::haproxy::{Haproxy, readme_configuration};
use pgrx_tests::{ports, wait};
use postgres::{Config, NoTls};
use std::time::Duration;

#[test]
fn haproxy_moves_traffic_on_a_promotion_with_backups_in_line() -> Result<()> {
    let s1 = Cluster::new("s1")?.start()?;
    s1.sql("CREATE TABLE writes (id bigint PRIMARY KEY, node text)")?;
    let s2 = s1.standby("s2")?.start()?;
    let s3 = s1.standby("s3")?.start()?;
    for standby in [&s2, &s3] {
        standby.wait_streaming()?;
    }
    let front = ports::free()?;
    let mut configuration = readme_configuration()?.replace(":5999", &format!(":{front}"));
    for (index, node) in [&s1, &s2, &s3].iter().enumerate() {
        let (server, check) = (5500 + index, 5400 + index);
        configuration = configuration.replace(&format!(":{server} "), &format!(":{} ", node.port));
        configuration =
            configuration.replace(&format!("port {check}"), &format!("port {}", node.banner_port));
    }
    let haproxy = Haproxy::start("failover", &configuration)?;
    let write = |id: i64| -> Result<String> {
        let mut config = Config::new();
        config.host("127.0.0.1").port(front).user("postgres").dbname("postgres");
        config.connect_timeout(Duration::from_secs(1));
        let mut client = config.connect(NoTls)?;
        let row = client.query_one(
            "INSERT INTO writes VALUES ($1, current_setting('cluster_name')) RETURNING node",
            &[&id],
        )?;
        Ok(row.get(0))
    };
    let mut id = 0;
    let mut write_reaches = |node: &str| {
        wait::until(&format!("a write reaches {node}"), || {
            id += 1;
            write(id).is_ok_and(|reached| reached == node)
        })
    };
    write_reaches("s1")?;
    wait::until("haproxy knows its servers", || {
        haproxy.status("s1").starts_with("UP") && haproxy.status("s2").starts_with("DOWN")
    })?;
    s2.wait_caught_up(&s1)?;
    s1.stop(Stop::Fast)?;
    s2.promote()?;
    write_reaches("s2")?;
    assert!(haproxy.status("s1").starts_with("DOWN") && haproxy.status("s3").starts_with("DOWN"));

    // The second in line, and then back.
    s3.stop(Stop::Fast)?;
    s3.follow(&s2)?;
    s3.start_again()?;
    s3.wait_streaming()?;
    s3.wait_caught_up(&s2)?;
    s2.stop(Stop::Fast)?;
    s3.promote()?;
    write_reaches("s3")?;
    assert_eq!(s3.sql("SELECT count(DISTINCT node) FROM writes")?, "3", "nothing that was written is lost");
    Ok(())
}
