//! What a publication says, that there is none, or another by now, and what becomes of it.

use crate::stream::{
    another_to_file, delivered, events, ids, running, shows, source_is, start, stopped, to_file,
};
use anyhow::{Context, Result, ensure};
use pgrx_tests::wait;

#[test]
fn row_filters_column_lists_partitions_and_odd_names_are_as_the_publication_says() -> Result<()> {
    let cluster = start("stream-publication", &[])?;
    cluster.sql(
        "create schema \"Other\";
         create table filtered (id int primary key, secret text, v int);
         create table \"Other\".\"Mixed \"\"Case\" (\"Id\" int primary key, \"a b\" text);
         create table parts (id int primary key, v int) partition by range (id);
         create table parts_1 partition of parts for values from (0) to (10);
         create table parts_2 partition of parts for values from (10) to (20);
         create table leaves (id int primary key) partition by list (id);
         create table leaves_1 partition of leaves for values in (1);
         create table others (id int);
         create publication by_root for table filtered (id, v) where (id > 10), \"Other\".\"Mixed \"\"Case\", parts
             with (publish_via_partition_root = true);
         create publication leaves for table leaves",
    )?;
    let path = to_file(&cluster, r#"{"publication":"by_root","schema":true}"#)?;
    let leaves = another_to_file(&cluster, "leaves", r#"{"publication":"leaves"}"#)?;
    cluster.sql(
        "insert into filtered values (1, 'no', 1), (11, 'no', 2); update filtered set id = 12 where id = 1;
         update filtered set id = 2 where id = 11;
         insert into \"Other\".\"Mixed \"\"Case\" values (1, 'x');
         insert into parts values (1, 1), (11, 1); update parts set id = 12 where id = 1;
         insert into leaves values (1); insert into others values (1)",
    )?;
    delivered(&cluster)?;
    let said: Vec<_> = events(&path)?
        .iter()
        .map(|event| {
            let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
            format!("{} {}.{} {}", text("Action"), text("Schema"), text("Table"), event["Columns"])
        })
        .collect();
    let wanted = [
        r#"insert public.filtered {"id":11,"v":2}"#,
        r#"insert public.filtered {"id":12,"v":1}"#,
        r#"delete public.filtered {"id":11,"v":null}"#,
        r#"insert Other.Mixed "Case {"Id":1,"a b":"x"}"#,
        r#"insert public.parts {"id":1,"v":1}"#,
        r#"insert public.parts {"id":11,"v":1}"#,
        r#"delete public.parts {"id":1,"v":null}"#,
        r#"insert public.parts {"id":12,"v":1}"#,
    ];
    ensure!(said == wanted, "{}", said.join("\n"));
    let leaves = events(&leaves)?;
    ensure!(leaves.len() == 1 && leaves[0]["Table"] == "leaves_1", "{leaves:?}");
    Ok(())
}

#[test]
fn changes_without_a_publication_are_stated_and_do_not_wedge_the_stream() -> Result<()> {
    let cluster = start("stream-publication-gone", &[])?;
    cluster.sql("create table t (id int primary key); create publication p for table t")?;
    // A slot that is older than the publication of the source.
    cluster
        .sql("select pg_create_logical_replication_slot('older', 'pgoutput'); insert into t values (1)")?;
    let path = to_file(&cluster, r#"{"retry":"200ms","slot":"older","publication":"younger"}"#)?;
    cluster.sql("insert into t values (2)")?;
    delivered(&cluster)?;
    ensure!(ids(&path)? == [2], "{:?}", ids(&path)?);
    source_is(&cluster, "streaming", "there was no publication \"younger\"")?;
    let stated = cluster.sql("select gap from postern.streams")?;
    cluster.sql("drop publication younger")?;
    cluster.sql("insert into t values (3)")?;
    wait::until("another gap is stated", || {
        cluster.sql("select gap from postern.streams").is_ok_and(|gap| gap.len() > stated.len())
    })?;
    cluster.sql("create publication younger for table t; insert into t values (4)")?;
    delivered(&cluster)?;
    ensure!(ids(&path)? == [2, 4], "{:?}", ids(&path)?);
    // Before it was made, and while it was gone: the two are told apart.
    let gap = || cluster.sql("select gap from postern.streams");
    wait::until("both gaps are stated", || {
        gap().is_ok_and(|gap| gap.matches("changes then were not published").count() == 2)
    })
    .with_context(|| format!("{:?}", gap()))
}

#[test]
fn another_publication_counts_for_what_waits_too_as_it_was_when_that_was_changed() -> Result<()> {
    let cluster = start("stream-other-publication", &[])?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(&cluster, "{}")?;
    stopped(&cluster)?;
    cluster.sql("insert into t values (1)")?;
    cluster.sql("create publication later for table t")?;
    cluster.sql("insert into t values (2)")?;
    cluster.sql(
        r#"select postern.alter_source('shop', '{"publication": "later"}'); select postern.start_source('shop')"#,
    )?;
    running(&cluster, "shop to lines")?;
    delivered(&cluster)?;
    ensure!(ids(&path)? == [2], "{:?}", ids(&path)?);
    shows(&cluster, "select gap from postern.streams", "there was no publication \"later\" from")?;
    source_is(&cluster, "streaming", "there was no publication \"later\" from")
}

#[test]
fn a_publication_that_postern_made_goes_with_its_source_and_no_other_does() -> Result<()> {
    let cluster = start("stream-publication", &[])?;
    cluster.sql(
        r#"create table t (id int primary key); create publication theirs for table t; create role other; grant create on database postgres to other;
           select postern.create_sink('d', 'stub_discard'); select postern.create_sink('e', 'stub_discard');
           select postern.create_source('a', 'postgres', '{"tables": ["t"]}'); select postern.create_stream('a', 'a', 'd');
           select postern.create_source('b', 'postgres', '{"publication": "theirs"}'); select postern.create_stream('b', 'b', 'd');
           select postern.create_source('c', 'postgres', '{"tables": ["t"]}'); select postern.create_stream('c', 'c', 'd');
           select postern.create_source('d', 'postgres', '{"tables": ["t"]}'); select postern.create_stream('d', 'd', 'd')"#,
    )?;
    for stream in ["a", "b", "c", "d"] {
        running(&cluster, stream)?;
    }
    cluster.sql(
        r#"select postern.create_source('e', 'postgres', '{"publication": "postern_c"}'); select postern.create_stream('e', 'e', 'd')"#,
    )?;
    running(&cluster, "e")?;
    cluster.sql("alter table t owner to other; alter publication postern_d owner to other")?;
    for name in ["a", "b", "c", "d"] {
        cluster
            .sql(&format!("select postern.drop_stream('{name}'); select postern.drop_source('{name}')"))?;
    }
    let left = cluster.sql("select string_agg(pubname, ' ' order by pubname) from pg_publication")?;
    ensure!(left == "postern_c postern_d theirs", "{left}");
    Ok(())
}
