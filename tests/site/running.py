"""The site in processes that a test starts, stops and asks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg

from connect_mailer.testing.ses import LocalSES
from tests import servers

ROOT = Path(__file__).parent.parent.parent

# A migrated database for each server: a copy is there at once.
_templates: dict[str, str] = {}


class Process:
    """One process of the site, with its children; what it says goes to a file."""

    def __init__(self, command: tuple[str, ...], env: Mapping[str, str]) -> None:
        # A file, because nobody reads a pipe while a test waits for something else.
        self._output = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed by `end`
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=env,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            # A group of its own, as a dyno or a container is.
            start_new_session=True,
        )

    def send_to_group(self, number: int) -> None:
        """Signal every process of it, as Heroku does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def is_suspended(self) -> bool:
        """Whether it has got a SIGSTOP."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def wait(self, seconds: float = 120) -> str:
        """Wait until it has ended; return what it said."""
        self.process.wait(seconds)
        return self.read()

    def read(self) -> str:
        """What it said so far."""
        return Path(self._output.name).read_text()

    def end(self) -> None:
        """Leave nothing of it behind, however it is."""
        self.send_to_group(signal.SIGKILL)
        self.process.wait(60)
        self._output.close()


class Site:
    """The site of ``tests.site``, with a database of its own.

    ``options`` are added to its ``CONNECT_MAILER``, ``env`` to its environment. Where
    ``broker_url`` is no Redis and no ``redis_url`` is given, the site has none.
    """

    def __init__(
        self,
        ses_url: str,
        *,
        redis_url: str = "",
        broker_url: str = "",
        server: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.server = server or servers.postgres()
        self.name = f"site_{uuid.uuid4().hex}"
        self.processes: list[Process] = []
        self.env = {
            **servers.make_environment(),
            "DJANGO_SETTINGS_MODULE": "tests.site.settings",
            # Celery warns about root, which a container may well run the tests as.
            "PYTHONWARNINGS": "error,ignore:You're running the worker with superuser",
            "SITE_SERVER": json.dumps(self.server),
            "SITE_DATABASE": self.name,
            "SITE_REDIS_URL": redis_url or ("" if broker_url else f"{servers.valkey_url()}/0"),
            "SITE_BROKER_URL": broker_url,
            "SITE_SES_URL": ses_url,
            "SITE_CONNECT_MAILER": json.dumps(options),
            **(env or {}),
        }
        self._make()

    def _make(self) -> None:
        template = _templates.get(self.server["HOST"], "template1")
        self._ask_server(f'CREATE DATABASE "{self.name}" TEMPLATE "{template}"')
        if template == "template1":
            self.run("migrate")
            _templates[self.server["HOST"]] = template = f"template_{uuid.uuid4().hex}"
            self._ask_server(f'CREATE DATABASE "{template}" TEMPLATE "{self.name}"')

    def close(self) -> None:
        for process in self.processes:
            process.end()
        self._drop()

    def _drop(self) -> None:
        self._ask_server(f'DROP DATABASE "{self.name}" WITH (FORCE)')

    def ask(self, sql: str, database: str = "") -> list[Any]:
        with psycopg.connect(
            host=self.server["HOST"],
            port=self.server["PORT"] or None,
            user=self.server["USER"],
            dbname=database or self.name,
            autocommit=True,
        ) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def _ask_server(self, sql: str) -> None:
        self.ask(sql, database=self.server["NAME"])

    def shut_out(self) -> None:
        """The server ends all connections to its database, and takes none until ``let_in``."""
        self._ask_server(f'ALTER DATABASE "{self.name}" ALLOW_CONNECTIONS false')
        self._ask_server(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.name}'"
        )

    def let_in(self) -> None:
        """Connections are taken again."""
        self._ask_server(f'ALTER DATABASE "{self.name}" ALLOW_CONNECTIONS true')

    def start(self, *command: str, **env: str) -> Process:
        process = Process(command, {**self.env, **env})
        self.processes.append(process)
        return process

    def run(self, *args: str) -> str:
        process = self.start("tests.site", *args)
        output = process.wait()
        assert process.process.returncode == 0, output
        return output

    def fail(self, *args: str, **env: str) -> str:
        """Run what must end with an error; return what it said."""
        process = self.start("tests.site", *args, **env)
        output = process.wait()
        assert process.process.returncode != 0, output
        return output

    def start_worker(self, *options: str, app: str = "tests.site.celery", **env: str) -> Process:
        return self.start(
            "celery", "-A", app, "worker", "-c", "2", "-l", "INFO",
            "-n", f"{uuid.uuid4().hex}@test", *options, **env,
        )  # fmt: skip

    def count(self) -> dict[str, int]:
        return dict(
            self.ask("SELECT status, count(*) FROM connect_mailer_outgoingmessage GROUP BY 1")
        )


class SQLiteSite(Site):
    """The same on SQLite: ``SITE_DATABASE`` is a file, which is the test's."""

    def _make(self) -> None:
        self.run("migrate")

    def _drop(self) -> None:
        pass

    def ask(self, sql: str, database: str = "") -> list[Any]:
        file = self.env["SITE_DATABASE"]
        with contextlib.closing(sqlite3.connect(file, timeout=30)) as connection, connection:
            return connection.execute(sql).fetchall()


class MySQLSite(Site):
    """The same on MariaDB or MySQL."""

    def _make(self) -> None:
        self.env["SITE_SETTINGS"] = "import pymysql; pymysql.install_as_MySQLdb()"
        self._ask_server(f"CREATE DATABASE {self.name} CHARACTER SET utf8mb4")
        self.run("migrate")

    def _drop(self) -> None:
        self._ask_server(f"DROP DATABASE {self.name}")

    def ask(self, sql: str, database: str = "") -> list[Any]:
        import pymysql

        connection = pymysql.connect(
            host=self.server["HOST"],
            port=int(self.server["PORT"] or 3306),
            user=self.server["USER"],
            password=self.server["PASSWORD"],
            database=database or self.name,
            autocommit=True,
        )
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())

    def _ask_server(self, sql: str) -> None:
        self.ask(sql, database="information_schema")


def make_sqlite(pragma: str = "", *, timeout: int = 20) -> dict[str, Any]:
    """Django settings of SQLite as the documentation has them."""
    init = f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {pragma}"
    options = {"transaction_mode": "IMMEDIATE", "timeout": timeout, "init_command": init}
    return {"ENGINE": "django.db.backends.sqlite3", "OPTIONS": options}


@contextlib.contextmanager
def open_site(ses_url: str, *, kind: type[Site] = Site, **options: Any) -> Iterator[Site]:
    site = kind(ses_url, **options)
    try:
        yield site
    finally:
        site.close()


def wait_for(
    is_so: Callable[[], bool],
    seconds: float = 150,
    tell: Callable[[], object] = str,
    pause_seconds: float = 0.05,
) -> None:
    """Wait until ``is_so``; ``tell`` says what was wrong where it never is.

    The patience is that of a machine with ten times as much to do as it can.
    """
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"It never came. {tell()}"
        time.sleep(pause_seconds)


def count_arrivals(ses: LocalSES) -> Counter[str]:
    """How often each address was written to."""
    return Counter(address for mail in ses.mailbox() for address in mail.recipients)


def count_last_arrivals(ses: LocalSES) -> Counter[str]:
    """The same, where who wrote is gone: SES may be reading yet what was sent to it."""
    number = -1
    while number != len(ses.mailbox()):
        number = len(ses.mailbox())
        time.sleep(0.5)
    return count_arrivals(ses)


def everybody(number: int) -> set[str]:
    """The addresses of ``tests.site queue N``."""
    return {f"u{n}@example.org" for n in range(number)}
