"""psycopg_login.py HOST PORT ROLE PASSWORD DATABASE: one login, and who it is."""

import sys

import psycopg

host, port, role, password, database = sys.argv[1:6]
with psycopg.connect(host=host, port=port, user=role, password=password, dbname=database, sslmode="disable") as c:
    got = c.execute("SELECT session_user::text, current_database()::text").fetchone()
if got != (role, database):
    raise SystemExit(f"logged in as {got}")
