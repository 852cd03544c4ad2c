"""``docs/heroku.rst``: its Procfile's worker with its settings, stopped as Heroku stops it."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path
from textwrap import dedent
from typing import Any

from connect_mailer.testing.ses import LocalSES
from tests.site.running import ROOT, count_arrivals, open_site, wait_for

PAGE = (ROOT / "docs" / "heroku.rst").read_text("utf-8")
APP = "tests.site.heroku"


def find_block(caption: str) -> str:
    [block] = re.findall(rf"   :caption: {re.escape(caption)}\n\n((?:   .*\n)+)", PAGE)
    return dedent(block)


def read_worker() -> list[str]:
    """The command, with this site in the place of the example."""
    processes = dict(line.split(": ", 1) for line in find_block("Procfile").splitlines())
    return [APP if word == "example" else word for word in shlex.split(processes["worker"])]


def read_settings() -> dict[str, Any]:
    settings: dict[str, Any] = {}
    exec(find_block("settings.py, Celery"), {}, settings)
    return {name.removeprefix("CELERY_").lower(): value for name, value in settings.items()}


def test_the_worker_stops_and_nothing_is_lost(valkey: object, tmp_path: Path) -> None:
    [remap] = re.findall(r"heroku config:set REMAP_SIGTERM=(\w+)", PAGE)
    environment = {"SITE_CELERY": json.dumps(read_settings()), "REMAP_SIGTERM": remap}
    with LocalSES(rate=20) as ses, open_site(ses.url, env=environment) as site:
        site.run("queue", "60")
        call = ("celery", "-A", APP, "call", f"{APP}.nap", "--args")
        site.start(*call, json.dumps([str(tmp_path), 5])).wait()

        worker = site.start(*read_worker())
        wait_for(
            lambda: len(ses.mailbox()) >= 5 and (tmp_path / "begun").exists(), tell=worker.read
        )
        worker.send_to_group(signal.SIGTERM)
        output = worker.wait()

        # Without the variable, the children that are at work are killed by their own SIGTERM.
        assert (tmp_path / "done").exists(), output
        assert "WorkerLostError" not in output
        left = site.count()
        assert left.get("sending", 0) == 0
        assert left["sent"] == len(ses.mailbox()) < 60

        ses.configure(rate=2000)
        site.ask("UPDATE connect_mailer_lease SET expires_at = now()")
        site.start(*read_worker())
        wait_for(lambda: site.count() == {"sent": 60}, 100)
        assert set(count_arrivals(ses).values()) == {1}
