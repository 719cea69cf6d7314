"""Runs prometheus-pgbouncer-exporter on a console and prints what it says when it is scraped: host, port, user, database, port of its own."""

import os
import subprocess
import sys
import tempfile
import time
import urllib.request

host, port, user, database, own = sys.argv[1:]

with tempfile.TemporaryDirectory() as folder:
    config = os.path.join(folder, "config.yml")
    with open(config, "w") as file:
        file.write(f"exporter_port: {own}\npgbouncers:\n  - dsn: postgresql://{user}@{host}:{port}/{database}\n")
    program = os.path.join(os.path.dirname(sys.executable), "pgbouncer-exporter")
    exporter = subprocess.Popen([sys.executable, program, "--config", config])
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                print(urllib.request.urlopen(f"http://127.0.0.1:{own}/metrics", timeout=20).read().decode())
                break
            except OSError:
                if exporter.poll() is not None or time.monotonic() > deadline:
                    sys.exit("the exporter does not answer")
                time.sleep(0.1)
    finally:
        exporter.kill()
        exporter.wait()
