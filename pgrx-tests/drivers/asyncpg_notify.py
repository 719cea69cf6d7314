"""asyncpg_notify.py HOST PORT: add_listener and remove_listener: another's notifications, one's own, none after the end."""

import asyncio
import sys

import asyncpg


async def main():
    address = {"host": sys.argv[1], "port": int(sys.argv[2]), "user": "postgres", "database": "postgres"}
    listener = await asyncpg.connect(**address)
    notifier = await asyncpg.connect(**address)
    heard = asyncio.Queue()

    def hear(connection, pid, channel, payload):
        heard.put_nowait((pid, channel, payload))

    await listener.add_listener("News", hear)
    for number in range(3):
        await notifier.execute("SELECT pg_notify('News', $1)", str(number))
    got = [await asyncio.wait_for(heard.get(), 20) for _ in range(3)]
    assert got == [(notifier.get_server_pid(), "News", str(n)) for n in range(3)], got
    await listener.execute('NOTIFY "News", \'own\'')
    own = await asyncio.wait_for(heard.get(), 20)
    assert own == (listener.get_server_pid(), "News", "own"), own
    async with listener.transaction():
        await notifier.execute("SELECT pg_notify('News', 'meanwhile')")
        assert await listener.fetchval("SELECT 1") == 1
        assert heard.empty(), "in a transaction"
    meanwhile = await asyncio.wait_for(heard.get(), 20)
    assert meanwhile[2] == "meanwhile", meanwhile
    await listener.remove_listener("News", hear)
    await notifier.execute("SELECT pg_notify('News', 'too late')")
    assert await listener.fetchval("SELECT 1") == 1
    assert heard.empty(), "after the end"
    # What a pool does with a connection that is given back.
    await listener.add_listener("News", hear)
    await listener.reset()
    await listener.close()
    await notifier.close()


asyncio.run(main())
