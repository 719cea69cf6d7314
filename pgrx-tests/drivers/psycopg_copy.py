"""psycopg_copy.py HOST PORT: COPY in and out, and what can go wrong in it."""

from expect import connect, equal, fails, value

ROWS = 20_000


def insert(c, rows):
    with c.cursor().copy("COPY driver_copy FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


with connect() as c:
    c.execute("DROP TABLE IF EXISTS driver_copy")
    c.execute("CREATE TABLE driver_copy (i int PRIMARY KEY, t text)")
    c.commit()
    insert(c, ((i, f"row {i}\t\\ ü" if i % 7 else None) for i in range(ROWS)))
    c.commit()
    equal(value(c, "SELECT count(*) FROM driver_copy"), ROWS, "rows copied in")
    with c.cursor().copy("COPY (SELECT i, t FROM driver_copy ORDER BY i) TO STDOUT") as copy:
        copy.set_types(["int4", "text"])
        got = list(copy.rows())
    equal(got, [(i, f"row {i}\t\\ ü" if i % 7 else None) for i in range(ROWS)], "rows copied out")
    with c.cursor().copy("COPY driver_copy TO STDOUT (FORMAT binary)") as copy:
        binary = b"".join(bytes(data) for data in copy)
    c.execute("TRUNCATE driver_copy")
    with c.cursor().copy("COPY driver_copy FROM STDIN (FORMAT binary)") as copy:
        for start in range(0, len(binary), 10_001):
            copy.write(binary[start:start + 10_001])
    equal(value(c, "SELECT sum(i) FROM driver_copy"), ROWS * (ROWS - 1) // 2, "rows of a binary copy")
    c.commit()

    fails("23505", "a duplicate in COPY", lambda: insert(c, [(ROWS, "new"), (1, "there already")]))
    c.rollback()
    equal(value(c, "SELECT count(*) FROM driver_copy"), ROWS, "rows after a failed COPY")
    fails("22P02", "no number in COPY", lambda: insert(c, [("x", "no number")] + [(i, "z" * 1000) for i in range(3000)]))
    c.rollback()

    class Own(Exception):
        pass

    def breaks():
        yield (ROWS + 1, "new")
        raise Own

    try:
        insert(c, breaks())
    except Own:
        pass
    else:
        raise SystemExit("an error of the client's own in COPY is lost")
    c.rollback()
    try:
        with c.cursor().copy("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 50000)) TO STDOUT") as copy:
            copy.read()
            raise Own  # upon which psycopg cancels the rest
    except Own:
        pass
    c.rollback()
    equal(value(c, "SELECT count(*) FROM driver_copy"), ROWS, "rows after COPYs that were broken off")
    c.execute("DROP TABLE driver_copy")

with connect(autocommit=True) as c:
    fails("22P02", "an error before COPY", lambda: c.execute("SELECT 'x'::int"))
    with c.cursor().copy("COPY (SELECT 1) TO STDOUT") as copy:
        equal(b"".join(bytes(data) for data in copy), b"1\n", "COPY after an error, autocommit")
print("ok")
