"""Deployments of Connect: their environment, as Heroku has it, and what they are asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from connect_mailer.testing import LocalSES, SNSSigner
from tests import servers

ROOT = Path(__file__).parent.parent.parent
SIGNER = SNSSigner.generate()

# What the pages of Connect tell a deployment to set; nothing else is.
HEROKU = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "EMAIL_BACKEND": "seacucumber.backend.SESBackend",
    "CUCUMBER_RATE_LIMIT": "20",
    "BOUNCY_AUTO_SUBSCRIBE": "True",
    "BOUNCY_TOPIC_ARN": SIGNER.topic_arn,
    "EMAIL_SECRET_KEY": "a secret of links",
    "ORIGIN": "https://connect.example.org",
}


class Connect:
    """A deployment in a process of its own. ``site.send("jane@example.org")`` is sent there."""

    def __init__(self, folder: Path, ses: LocalSES, without: tuple[str, ...]) -> None:
        self.env = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "DJANGO_SETTINGS_MODULE": "tests.connect.settings",
            "SECRET_KEY": "a key for tests only",
            "DATABASE_URL": f"sqlite:///{folder / 'connect.sqlite3'}",
            "BROKER_URL": f"{servers.valkey_url()}/3",
            # The tests' own SES, in the place of Amazon's.
            "CUCUMBER_SES_REGION_ENDPOINT": ses.url,
            **{name: value for name, value in HEROKU.items() if name not in without},
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.connect"],
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments, **options: self._ask(name, arguments, options)

    def _ask(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{json.dumps([name, arguments, options])}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"{name} failed: see the captured output"
        return json.loads(answer)

    def post_feedback(self, message: dict[str, Any]) -> int:
        """What SES says, as SNS signs and posts it; return the status of the answer."""
        self.trust(SIGNER.to_pem())
        status: int = self.post("/mail/bouncy/", SIGNER.notification(message))[0]
        return status

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="package")
def package_ses() -> Iterator[LocalSES]:
    with LocalSES(rate=20) as server:
        yield server


@pytest.fixture
def ses(package_ses: LocalSES) -> LocalSES:
    package_ses.clear()
    return package_ses


@pytest.fixture(scope="package")
def _deployments(
    package_ses: LocalSES, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Connect]]:
    """Make a deployment that lacks some variables, or have it again: each takes a second."""
    made: dict[tuple[str, ...], Connect] = {}
    with ExitStack() as stack:

        def get(*without: str) -> Connect:
            if without not in made:
                made[without] = Connect(tmp_path_factory.mktemp("site"), package_ses, without)
                stack.callback(made[without].close)
            made[without].clear()
            return made[without]

        yield get


@pytest.fixture
def deploy(_deployments: Callable[..., Connect], ses: LocalSES) -> Callable[..., Connect]:
    return _deployments


@pytest.fixture
def connect(deploy: Callable[..., Connect]) -> Connect:
    """The deployment that follows the page word for word."""
    return deploy()
