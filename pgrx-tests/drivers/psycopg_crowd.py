"""psycopg_crowd.py HOST PORT [CLIENTS]: many clients at once, each with settings of its own; and cancelling."""

import asyncio
import sys
import threading
import time

import psycopg

from expect import address, connect, equal, fails, value

CLIENTS = int(sys.argv[3]) if len(sys.argv) > 3 else 30
TURNS = 25
SHOW = (
    "SELECT current_setting('application_name'), current_setting('work_mem'), current_setting('search_path'), "
    "current_setting('TimeZone'), current_setting('driver.own', true), current_setting('statement_timeout')"
)


async def client(number):
    more = dict(application_name=f"client {number}", autocommit=True)
    async with await psycopg.AsyncConnection.connect(**address(**more)) as c:
        # By SET, by set_config with parameters, inside a DO block, and one that is rolled back.
        await c.execute(f"SET work_mem = '{number + 1}MB'")
        await c.execute("SELECT set_config('search_path', %s, false)", (f"schema_{number}",))
        await c.execute(f"DO $$ BEGIN PERFORM set_config('TimeZone', 'Etc/GMT+{number % 12}', false); END $$")
        await c.execute("SELECT set_config('driver.own', %s, false)", (f"own {number}",))
        await c.execute("BEGIN")
        await c.execute("SET statement_timeout = 77777")
        await c.execute("ROLLBACK")
        mb = number + 1
        wanted = (f"client {number}", f"{mb}MB" if mb % 1024 else "1GB", f"schema_{number}", f"Etc/GMT+{number % 12}")
        wanted += (f"own {number}", "0")
        for turn in range(TURNS):
            got = await (await c.execute(SHOW)).fetchone()
            equal(got, wanted, f"settings of client {number}, turn {turn}")
            if turn % 5 == number % 5:
                async with c.transaction():
                    await c.execute("SET LOCAL work_mem = '2GB'")
                    local = await (await c.execute("SHOW work_mem")).fetchone()
                    equal(local, ("2GB",), "SET LOCAL in its transaction")
                    await asyncio.sleep(0.001)
            if turn == TURNS // 2:
                await c.execute("RESET work_mem")
                await c.execute(f"SET work_mem = '{mb + 1000}kB'")
                wanted = (wanted[0], f"{mb + 1000}kB" if (mb + 1000) % 1024 else "1MB") + wanted[2:]


async def crowd():
    await asyncio.gather(*(client(number) for number in range(CLIENTS)))


def cancel():
    with connect(autocommit=True) as victim, connect(autocommit=True) as other:
        # cancel_safe came with psycopg 3.2.
        for way in (way for way in ("cancel", "cancel_safe") if hasattr(victim, way)):
            # Once it runs: a cancel that comes before it hits nothing.
            def when_it_runs(cancels=getattr(victim, way)):
                running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
                while value(other, running) == 0:
                    time.sleep(0.05)
                cancels()

            timer = threading.Thread(target=when_it_runs)
            timer.start()
            before = time.monotonic()
            error = fails("57014", way, lambda: victim.execute("SELECT pg_sleep(60)"))
            equal(error.diag.message_primary, "canceling statement due to user request", way)
            equal(time.monotonic() - before < 30, True, f"{way} comes in time")
            timer.join()
            equal(value(victim, "SELECT 1"), 1, f"a query after {way}")
            equal(value(other, "SELECT 2"), 2, f"somebody else's query after {way}")
        # A cancel while idle hits nobody.
        for _ in range(20):
            victim.cancel()
            equal(value(other, "SELECT 3"), 3, "somebody else's query beside a late cancel")
        time.sleep(0.2)
        equal(value(victim, "SELECT 4"), 4, "an idle client that was cancelled")


def leaving():
    # Clients that go in the middle of a transaction leave nothing to others.
    for _ in range(20):
        c = connect()
        c.execute("SET work_mem = '99MB'")
        c.execute("CREATE TEMP TABLE left_behind (i int)")
        c.execute("SELECT pg_advisory_lock(4711)")
        c.close()
    with connect(autocommit=True) as c:
        equal(value(c, "SHOW work_mem") == "99MB", False, "work_mem of a client that has left")
        for _ in range(200):
            if value(c, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711") == 0:
                break
            time.sleep(0.05)
        else:
            sys.exit("the advisory lock of a client that has left is still there")
        equal(value(c, "SELECT to_regclass('left_behind')"), None, "a temporary table of a client that has left")


asyncio.run(crowd())
cancel()
leaving()
print("ok")
