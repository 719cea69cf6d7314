"""psycopg_prepared.py HOST PORT: prepared statements on the server, and pipelines."""

from expect import connect, equal, fails, value


def prepared():
    clients = [connect(autocommit=True) for _ in range(10)]
    # Every client's statements have the same names (_pg3_0 …) and other texts.
    for turn in range(30):
        for number, c in enumerate(clients):
            for statement in range(5):
                sql = f"SELECT {number} * 1000 + {statement} * 100 + %s::int"
                got = c.execute(sql, (turn,), prepare=True).fetchone()[0]
                equal(got, number * 1000 + statement * 100 + turn, f"client {number}, statement {statement}")
    for c in clients:
        equal(len(c._prepared._names), 5, "statements that psycopg has prepared")
        c.close()


def many():
    with connect(autocommit=True) as c:
        c.prepared_max = 50
        # More statements than may be kept: psycopg deallocates the oldest.
        for turn in range(2):
            for number in range(150):
                got = c.execute(f"SELECT %s::int + {number}", (turn,), prepare=True).fetchone()[0]
                equal(got, number + turn, "one of many statements")


def after_errors():
    with connect() as c:
        sql = "SELECT 10 / %s::int"
        equal(c.execute(sql, (5,), prepare=True).fetchone()[0], 2, "a prepared statement")
        fails("22012", "its error", lambda: c.execute(sql, (0,), prepare=True))
        c.rollback()
        equal(c.execute(sql, (2,), prepare=True).fetchone()[0], 5, "it after an error and a rollback")
        c.rollback()
        c.execute("PREPARE by_hand (int) AS SELECT $1 + 1")
        c.commit()
        equal(value(c, "EXECUTE by_hand (41)"), 42, "PREPARE and EXECUTE in two transactions")
        c.execute("DEALLOCATE by_hand")
        c.commit()
        fails("26000", "EXECUTE after DEALLOCATE", lambda: c.execute("EXECUTE by_hand (1)"))


def ddl():
    with connect(autocommit=True) as c:
        c.execute("DROP TABLE IF EXISTS driver_p")
        c.execute("CREATE TABLE driver_p AS SELECT 1 AS a")
        one = "SELECT a FROM driver_p WHERE a = %s"
        equal(c.execute(one, (1,), prepare=True).fetchall(), [(1,)], "before DDL")
        c.execute("ALTER TABLE driver_p ADD b int DEFAULT 2")
        equal(c.execute(one, (1,), prepare=True).fetchall(), [(1,)], "after DDL that changes no result")
        c.execute("DROP TABLE driver_p")


def pipelines():
    with connect(autocommit=True) as c:
        with c.pipeline():
            cursors = [c.execute("SELECT %s::int, pg_backend_pid()", (i,)) for i in range(500)]
            rows = [cursor.fetchone() for cursor in cursors]
        equal([row[0] for row in rows], list(range(500)), "a pipeline of 500")

        def broken():
            with c.pipeline() as pipeline:
                good = c.execute("SELECT 1")
                pipeline.sync()
                equal(good.fetchone(), (1,), "before the error")
                # Which of these raises it depends on what has come by then.
                c.execute("SELECT 1/0")
                c.execute("CREATE TABLE driver_skipped ()")
                pipeline.sync()

        for _ in range(20):
            fails("22012", "an error in a pipeline", broken)
            with c.pipeline():
                after = c.execute("SELECT to_regclass('driver_skipped')")
                equal(after.fetchone(), (None,), "what the server skips up to the Sync")
        equal(value(c, "SELECT 4"), 4, "after the pipeline")
    with connect() as c:
        with c.pipeline():
            c.execute("CREATE TEMP TABLE driver_pipe (i int) ON COMMIT DROP")
            c.cursor().executemany("INSERT INTO driver_pipe VALUES (%s)", [(i,) for i in range(300)])
            total = c.execute("SELECT sum(i) FROM driver_pipe")
            equal(total.fetchone(), (44850,), "a pipelined transaction")
            c.commit()


prepared()
many()
after_errors()
ddl()
pipelines()
print("ok")
