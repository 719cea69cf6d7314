"""psycopg_notify.py HOST PORT: notifications: notifies(), a handler, one's own, those of another."""

from expect import connect, equal

with connect(autocommit=True) as listener, connect(autocommit=True) as notifier:
    listener.execute("LISTEN news")
    for number in range(3):
        notifier.execute("SELECT pg_notify('news', %s)", (str(number),))
    got = [(n.channel, n.payload, n.pid) for n in listener.notifies(timeout=20, stop_after=3)]
    equal(got, [("news", str(n), notifier.info.backend_pid) for n in range(3)], "another's, while it is idle")
    handled = []
    listener.add_notify_handler(lambda n: handled.append((n.payload, n.pid)))
    listener.execute("NOTIFY news, 'own'")
    equal(handled, [("own", listener.info.backend_pid)], "its own, with the command")
    with listener.transaction():
        notifier.execute("NOTIFY news, 'meanwhile'")
        equal(listener.execute("SELECT 1").fetchone(), (1,), "a query in a transaction")
        equal(len(handled), 1, "nothing comes in a transaction")
    if len(handled) < 2:
        list(listener.notifies(timeout=20, stop_after=1))
    equal(handled[1:], [("meanwhile", notifier.info.backend_pid)], "what came meanwhile")
    listener.execute("UNLISTEN news")
    notifier.execute("NOTIFY news, 'too late'")
    equal([n.payload for n in listener.notifies(timeout=0.2)], [], "after UNLISTEN")
