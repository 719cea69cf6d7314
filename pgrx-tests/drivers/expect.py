"""What the scripts share: arguments, connecting, and a check that says what was wrong."""

import sys

import psycopg

HOST, PORT = sys.argv[1], int(sys.argv[2])
USER = "postgres"
DATABASE = "postgres"


def address(**more):
    return dict(host=HOST, port=PORT, user=USER, dbname=DATABASE, connect_timeout=20, **more)


def connect(**more):
    return psycopg.connect(**address(**more))


def equal(got, wanted, what):
    if got != wanted:
        sys.exit(f"{what}: got {got!r}, wanted {wanted!r}")


def fails(sqlstate, what, act):
    """Calls act, which must fail with this SQLSTATE; gives the error."""
    try:
        act()
    except psycopg.Error as error:
        equal(error.sqlstate, sqlstate, f"{what}: SQLSTATE of {error}")
        return error
    sys.exit(f"{what}: no error, wanted {sqlstate}")


def value(connection, sql, *parameters):
    """The only value of the only row."""
    return connection.execute(sql, parameters or None).fetchone()[0]
