"""psycopg_listen.py HOST PORT SERVER_PORT: a client that only listens, while another notifies at the server."""

import sys

import psycopg

host, port, server_port = sys.argv[1:4]
with psycopg.connect(host=host, port=port, user="postgres", dbname="postgres", autocommit=True) as c:
    c.execute("LISTEN news")
    c.execute('LISTEN "Other News"')
    with psycopg.connect(host=host, port=server_port, user="postgres", dbname="postgres", autocommit=True) as n:
        n.execute("SELECT pg_notify('news', 'gr\u00f6\u00dfe'), pg_notify('Other News', '')")
    got = [(n.channel, n.payload) for n in c.notifies(timeout=20, stop_after=2)]
    if got != [("news", "gr\u00f6\u00dfe"), ("Other News", "")]:
        raise SystemExit(f"heard {got}")
    if c.execute("SELECT 1").fetchone() != (1,):
        raise SystemExit("SELECT 1")
    c.execute("UNLISTEN *")
with psycopg.connect(host=host, port=port, user="postgres", dbname="postgres") as c:
    c.execute("LISTEN news")
    c.rollback()
    c.execute("LISTEN later")
    c.commit()
    got = [row[0] for row in c.execute("SELECT pg_listening_channels()").fetchall()]
    if got != ["later"]:
        raise SystemExit(f"listens to {got}")
