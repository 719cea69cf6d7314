//! `#[pg_test]`s: run inside a backend of a server that has the library loaded, each in a transaction of its own.

#[pgrx::pg_schema]
#[allow(clippy::unwrap_used)]
mod tests {
    use pgrx::prelude::*;

    fn one<T: FromDatum + IntoDatum>(sql: &str) -> T {
        Spi::get_one::<T>(sql).unwrap().unwrap()
    }

    #[pg_test]
    fn the_view_shows_a_primary() {
        assert_eq!(one::<String>("SELECT role FROM postern.status"), "primary");
        assert!(one::<bool>(
            "SELECT written_lsn <= pg_current_wal_flush_lsn() AND lag IS NULL FROM postern.status"
        ));
        assert!(one::<bool>("SELECT clients >= 1 AND client_capacity > 1 FROM postern.status"));
    }

    #[pg_test]
    fn pg_monitor_reads_the_views_and_others_do_not() {
        Spi::run("CREATE ROLE watcher IN ROLE pg_monitor; SET ROLE watcher").unwrap();
        assert!(one::<i64>("SELECT count(*) FROM postern.status, postern.settings, postern.pooler") > 0);
        Spi::run("RESET ROLE; CREATE ROLE stranger; SET ROLE stranger").unwrap();
        let error = PgTryBuilder::new(|| Spi::run("SELECT * FROM postern.status").map_err(|e| e.to_string()))
            .catch_others(|_| Err("refused".to_owned()))
            .execute();
        assert!(error.is_err());
    }

    #[pg_test(error = "invalid configuration parameter name \"postern.status_listn\"")]
    fn a_mistyped_setting_is_refused() {
        Spi::run("SET postern.status_listn = ''").unwrap();
    }

    #[pg_test]
    fn every_setting_describes_itself() {
        let sql = "SELECT count(*) FROM pg_settings WHERE (name LIKE 'postern.%' OR name LIKE 'bgw_replstatus.%') \
                   AND (short_desc = '' OR extra_desc = '' OR context NOT IN ('sighup', 'postmaster', 'superuser', 'user'))";
        assert_eq!(one::<i64>(sql), 0);
        assert_eq!(one::<i64>("SELECT count(*) FROM postern.settings"), 36);
    }
}
