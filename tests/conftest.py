"""Fixtures that the tests of several modules share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache, partial
from math import inf

import pytest
import redis
from botocore.loaders import JSONFileLoader
from celery import current_app

from tests import servers

# It is a site of its own, on SQLite.
database = os.environ.get("TEST_DATABASE", "sqlite")
collect_ignore = [] if database == "sqlite" else ["connect"]
# With the broker that is in no wheel: `tox -e services`.
if database != "postgres" or not os.environ.get("TEST_SERVICES"):
    collect_ignore.append("test_rabbitmq.py")
# In an environment of its own, which runs several at once: `tox -e faults`.
if not os.environ.get("TEST_FAULTS"):
    collect_ignore += ["faults", "test_heroku.py", "test_workers.py"]
# They install other mail apps: `tox -e moving`.
if not os.environ.get("TEST_MOVING"):
    collect_ignore.append("moving")


@pytest.fixture
def valkey() -> Iterator[redis.Redis]:
    """A client of an empty Valkey server."""
    with redis.Redis.from_url(servers.valkey_url()) as client:
        client.flushall()
        yield client


@pytest.fixture(autouse=True, scope="session")
def _aws_models() -> Iterator[None]:
    """Read once: each new client of boto3 would read megabytes of JSON, slower than its test."""
    read = cache(partial(JSONFileLoader.load_file, JSONFileLoader()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", lambda _, path: read(path))
        yield


@pytest.fixture(autouse=True, scope="session")
def _broker() -> None:
    """No broker that happens to run: in this process, tasks go nowhere."""
    current_app.conf.broker_url = "memory://"


@pytest.fixture(autouse=True)
def _no_drain_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test knows nothing of what the one before it did a moment ago."""
    monkeypatch.setattr("connect_mailer.tasks._asked_at", -inf)
