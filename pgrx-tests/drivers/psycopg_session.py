"""psycopg_session.py HOST PORT: one client: start-up, values, transactions, errors, notices, cursors."""

import datetime
import decimal

import psycopg

from expect import address, connect, equal, fails, value


def startup():
    with connect(application_name="first name", options="-c work_mem=7MB -c statement_timeout=54321") as c:
        equal(value(c, "SHOW application_name"), "first name", "application_name from the start-up packet")
        equal(value(c, "SHOW work_mem"), "7MB", "work_mem from options")
        equal(value(c, "SHOW statement_timeout"), "54321ms", "statement_timeout from options")
        equal(c.info.parameter_status("application_name"), "first name", "ParameterStatus")
        c.execute("SET application_name = 'second name'")
        equal(c.info.parameter_status("application_name"), "second name", "ParameterStatus after SET")
        c.rollback()
        equal(value(c, "SHOW application_name"), "first name", "application_name after a rollback")
        equal(c.info.parameter_status("application_name"), "first name", "ParameterStatus after a rollback")
    with connect(options="-c datestyle=German\\ ,\\ DMY", client_encoding="LATIN1") as c:
        equal(value(c, "SHOW datestyle"), "German, DMY", "an option with blanks in it")
        equal(value(c, "SHOW client_encoding"), "LATIN1", "client_encoding")
        equal(value(c, "SELECT 'käse'::text"), "käse", "a text in LATIN1")
    try:
        psycopg.connect(**dict(address(), dbname="no such database"))
    except psycopg.OperationalError as error:  # which has no SQLSTATE here
        equal('"no such database" does not exist' in str(error), True, f"what it says of no such database: {error}")
    else:
        raise SystemExit("a database that is not there was connected to")


def values():
    with connect(autocommit=True) as c:
        rows = c.execute("SELECT g, g::text || 'x', NULL FROM generate_series(1, 5000) g").fetchall()
        equal(len(rows), 5000, "rows")
        equal(rows[-1], (5000, "5000x", None), "the last row")
        given = (
            2**40, "ü'\"\\", b"\x00\xff", True, None, decimal.Decimal("12.3400"),
            datetime.datetime(2024, 2, 29, 1, 2, 3, tzinfo=datetime.timezone.utc), [1, 2, 3],
        )
        sql = "SELECT %s::int8, %s::text, %s::bytea, %s::bool, %s::text, %s::numeric, %s::timestamptz, %s::int[]"
        for binary in (False, True):
            equal(c.execute(sql, given, binary=binary).fetchone(), given, f"parameters, binary={binary}")
        long = "y" * 3_000_000
        equal(value(c, "SELECT %s::text", long), long, "a value of 3 MB there and back")
        several = c.execute("SELECT 1; SELECT 2; SELECT 3")
        seen = [several.fetchone()[0]]
        while several.nextset():
            seen.append(several.fetchone()[0])
        equal(seen, [1, 2, 3], "three statements in one simple query")
        equal(c.execute("").description, None, "an empty query")


def transactions():
    with connect() as c, connect(autocommit=True) as other:
        other.execute("DROP TABLE IF EXISTS driver_t")
        other.execute("CREATE TABLE driver_t (id int PRIMARY KEY, v text)")
        with c.transaction():
            c.execute("INSERT INTO driver_t VALUES (1, 'one')")
            equal(value(other, "SELECT count(*) FROM driver_t"), 0, "seen by others before commit")
            try:
                with c.transaction():
                    c.execute("INSERT INTO driver_t VALUES (2, 'two')")
                    c.execute("INSERT INTO driver_t VALUES (2, 'again')")
            except psycopg.errors.UniqueViolation as error:
                equal(error.diag.constraint_name, "driver_t_pkey", "the constraint's name")
            c.execute("INSERT INTO driver_t VALUES (3, 'three')")
        equal(other.execute("SELECT array_agg(id ORDER BY id) FROM driver_t").fetchone()[0], [1, 3], "committed")
        fails("22012", "division by zero", lambda: c.execute("SELECT 1/0"))
        fails("25P02", "in a failed transaction", lambda: c.execute("SELECT 1"))
        equal(c.info.transaction_status, psycopg.pq.TransactionStatus.INERROR, "transaction status")
        c.commit()  # which the server turns into a rollback
        equal(c.info.transaction_status, psycopg.pq.TransactionStatus.IDLE, "transaction status after it")
        equal(value(c, "SELECT 5"), 5, "a query after a failed transaction")
        c.rollback()
        fails("42601", "a syntax error", lambda: other.execute("SELEC 1"))
        fails("42P01", "an unknown table, with parameters", lambda: other.execute("SELECT * FROM nix WHERE a=%s", (1,)))
        equal(value(other, "SELECT %s::int", 6), 6, "a query after errors in autocommit")
        c.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        c.read_only = True
        equal(value(c, "SHOW transaction_isolation"), "serializable", "isolation level")
        fails("25006", "a write in a read-only transaction", lambda: c.execute("DELETE FROM driver_t"))
        c.rollback()
        other.execute("DROP TABLE driver_t")


def notices():
    with connect(autocommit=True) as c:
        heard = []
        c.add_notice_handler(lambda diag: heard.append((diag.severity_nonlocalized, diag.message_primary)))
        for i in range(20):
            c.execute(f"DO $$ BEGIN RAISE NOTICE 'n%', {i}; RAISE WARNING 'w%', {i}; END $$")
        wanted = [one for i in range(20) for one in (("NOTICE", f"n{i}"), ("WARNING", f"w{i}"))]
        equal(heard, wanted, "notices")


def cursors():
    with connect() as c:
        with c.cursor(name="rows") as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT g FROM generate_series(1, 1000) g")
            equal(sum(row[0] for row in cursor), 500500, "a server-side cursor")
        with c.cursor(name="moving", scrollable=True) as cursor:
            cursor.execute("SELECT g FROM generate_series(1, 100) g")
            cursor.scroll(50)
            equal(cursor.fetchone(), (51,), "after a scroll")
            cursor.scroll(-11)
            equal(cursor.fetchmany(2), [(41,), (42,)], "after a scroll back")
        c.commit()
        cursor = c.cursor(name="kept", withhold=True)
        cursor.execute("SELECT g FROM generate_series(1, 100) g")
        equal(cursor.fetchone(), (1,), "a WITH HOLD cursor before commit")
        c.commit()
        equal(cursor.fetchone(), (2,), "a WITH HOLD cursor after commit")
        cursor.close()
        c.commit()


startup()
values()
transactions()
notices()
cursors()
print("ok")
