"""A local SES; a site with short leases comes from ``open_site`` in each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from connect_mailer.testing.ses import LocalSES

# Of the workers: see there.
APP = "tests.faults.celery"


@pytest.fixture
def ses() -> Iterator[LocalSES]:
    with LocalSES(rate=2000, latency_seconds=0.01) as server:
        yield server
