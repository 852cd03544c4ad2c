"""``docs/heroku.rst``: its Procfile with its settings, booted and stopped as Heroku does that."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from http.client import HTTPException
from pathlib import Path
from textwrap import dedent
from threading import Thread
from urllib.request import urlopen

from connect_mailer.testing.ses import LocalSES
from docs.settings_entries import read_entries
from tests import servers
from tests.site.running import ROOT, Process, Site, count_arrivals, open_site, wait_for

PAGE = (ROOT / "docs" / "heroku.rst").read_text("utf-8")
APP = "tests.site.heroku"


def find_block(caption: str) -> str:
    [block] = re.findall(rf"   :caption: {re.escape(caption)}\n\n((?:   .*\n|\n)+)", PAGE)
    return dedent(block)


def read_procfile() -> dict[str, str]:
    return dict(line.split(": ", 1) for line in find_block("Procfile").splitlines() if line)


def start(site: Site, kind: str) -> Process:
    """A process of the Procfile, with this site in the place of the example."""
    words = shlex.split(read_procfile()[kind].replace("python manage.py", "django"))
    names = {"example": APP, "example.wsgi": "tests.site.wsgi"}
    return site.start(*(names.get(word, word) for word in words))


def stop(processes: list[Process]) -> bool:
    """SIGTERM to all that there is, and SIGKILL after 30 s; return whether that came to it."""
    for process in processes:
        process.send_to_group(signal.SIGTERM)
    was_killed = False
    for process in processes:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.send_to_group(signal.SIGKILL)
            process.wait()
            was_killed = True
    return was_killed


def ask_for_mail(url: str, accepted: set[str]) -> None:
    """One request after the other, until nobody answers."""
    for number in range(500):
        try:
            with urlopen(f"{url}/send/u{number}/", timeout=30) as answer:
                assert answer.read() == b"1"
        except (OSError, HTTPException):
            return
        accepted.add(f"u{number}@example.org")


def test_the_example_of_app_json_is_one() -> None:
    """Source: Heroku's "app.json Schema"."""
    [block] = re.findall(r"code-block:: json\n\n((?:   .*\n|\n)+)", PAGE)
    app = json.loads(block)
    assert set(app) <= {"name", "buildpacks", "addons", "formation", "env"}
    assert all(set(one) == {"url"} for one in app["buildpacks"])
    assert all(re.fullmatch(r"heroku-[a-z]+:[a-z0-9-]+", one) for one in app["addons"])
    processes = set(read_procfile())
    assert processes == {"release", "web", "worker", "beat"}
    assert set(app["formation"]) < processes
    for kind in app["formation"].values():
        assert (type(kind["quantity"]), type(kind["size"])) == (int, str)
    read = {name for entry in read_entries().values() for name in entry.names}
    # Of the site itself, of its links (docs/settings.rst), and boto3's own.
    assert set(app["env"]) - read == {"SECRET_KEY", "ORIGIN", "AWS_DEFAULT_REGION"}
    for value in app["env"].values():
        assert set(value) <= {"description", "value", "required", "generator"}


def test_a_formation_stops_and_nothing_is_lost(valkey: object, tmp_path: Path) -> None:
    [remap] = re.findall(r"heroku config:set REMAP_SIGTERM=(\w+)", PAGE)
    port = servers.find_free_port()
    settings = [
        *map(find_block, ("settings.py, Celery", "settings.py, Redis")),
        'del CONNECT_MAILER["REDIS_URL"]  # the limiter takes it over from Celery',
        f"CELERY_BEAT_SCHEDULE_FILENAME = {str(tmp_path / 'beat')!r}",
        'CELERY_BEAT_SCHEDULE = {"a": {"task": "connect_mailer.tasks.sweep", "schedule": 1}}',
    ]
    with (
        LocalSES(rate=20) as ses,
        servers.open_tls(servers.valkey_url(), tmp_path) as redis_url,
        open_site(
            ses.url,
            redis_url=f"{redis_url}/0",
            env={
                "SITE_SETTINGS": "\n".join(settings),
                "REDIS_URL": f"{redis_url}/0",
                "REMAP_SIGTERM": remap,
                "PORT": str(port),
                "HOME": str(tmp_path),  # where gunicorn keeps a socket
            },
        ) as site,
    ):
        site.ask("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        release = start(site, "release")
        output = release.wait()
        assert release.process.returncode == 0, output

        web, worker, beat = formation = [start(site, kind) for kind in ("web", "worker", "beat")]
        wait_for(lambda: "Booting worker" in web.read(), tell=web.read)
        call = ("celery", "-A", APP, "call", f"{APP}.nap", "--args")
        site.start(*call, json.dumps([str(tmp_path), 5])).wait()
        accepted: set[str] = set()
        asking = Thread(target=ask_for_mail, args=(f"http://127.0.0.1:{port}", accepted))
        asking.start()
        wait_for(
            lambda: len(ses.mailbox()) >= 5 and (tmp_path / "begun").exists(), tell=worker.read
        )
        wait_for(lambda: "Sending due task" in beat.read(), tell=beat.read)
        was_killed = stop(formation)
        asking.join()

        output = worker.read()
        left = site.count()
        if not was_killed:
            # Without the variable, children that are at work are killed by their own SIGTERM.
            assert (tmp_path / "done").exists(), output
            assert "WorkerLostError" not in output
            assert left.get("sending", 0) == 0
            assert left["sent"] == len(ses.mailbox()) < sum(left.values())

        ses.configure(rate=2000)
        site.ask("UPDATE connect_mailer_lease SET expires_at = now()")
        site.ask(
            "UPDATE connect_mailer_outgoingmessage SET due_at = now() WHERE status = 'sending'"
        )
        worker = start(site, "worker")
        total = sum(left.values())
        wait_for(lambda: site.count() == {"sent": total}, 100, tell=worker.read)
        arrivals = count_arrivals(ses)
        assert accepted <= set(arrivals)
        assert was_killed or set(arrivals.values()) == {1}
