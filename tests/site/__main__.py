"""What a process of the site does: ``python -m tests.site COMMAND``.

``migrate``; ``queue N`` (without a wake-up, as if the broker had lost it), ``queue N RECIPIENTS``
(so many of each), ``send N`` (with it; says how many seconds it took), ``send N BYTES`` (of noise,
each), ``send_each N`` (one by one), ``reset`` (one of the transactional stream), ``roll_back N``;
``deliver N`` (asks for so many drains); ``drain``, ``drain N`` (so many at once, in threads);
``purge`` (again and again until it is ended; says how many rows, each time); ``serve`` (the
webhook, until it is ended); ``look PATH`` (prints a page of the admin).
"""

from __future__ import annotations

import os
import sys
import time

import django

from tests.site.celery import app


def main(command: str, *args: str) -> None:
    app.set_default()
    django.setup()
    if command == "migrate":
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
    elif command == "manage":
        from django.core.management import call_command

        call_command(*args)
    elif command == "queue":
        queue(*map(int, args))
    elif command == "send":
        started_at = time.monotonic()
        send(*map(int, args))
        sys.stdout.write(f"took {time.monotonic() - started_at:.1f} s\n")
    elif command == "send_each":
        for _ in range(int(args[0])):
            send(1)
    elif command == "reset":
        from django.core.mail import EmailMessage

        from connect_mailer.backend import TransactionalBackend

        message = EmailMessage("Reset", "Your new password", None, ["reset@example.org"])
        TransactionalBackend().send_messages([message])
    elif command == "roll_back":
        from django.db import transaction

        with transaction.atomic():
            send(int(args[0]))
            transaction.set_rollback(True)
    elif command == "deliver":
        from connect_mailer.tasks import deliver

        for _ in range(int(args[0])):
            deliver.delay()
    elif command == "drain":
        drain(*map(int, args))
    elif command == "purge":
        purge()
    elif command == "serve":
        serve()
    elif command == "look":
        look(*args)


def queue(number: int, recipients: int = 1) -> None:
    from unittest import mock

    from connect_mailer import tasks

    with mock.patch.object(tasks, "_publish"):
        send(number, recipients=recipients)


def send(number: int, size: int = 3, *, recipients: int = 1) -> None:
    from django.core.mail import EmailMessage

    from connect_mailer.backend import ConnectMailerBackend

    ConnectMailerBackend().send_messages(
        [
            EmailMessage(
                "Hi",
                os.urandom(size // 2).hex(),
                None,
                [f"u{n}{'+' * place}@example.org" for place in range(recipients)],
            )
            for n in range(number)
        ]
    )


def drain(number: int = 1) -> None:
    """Run so many drains; the last line says how many rows these sent."""
    from concurrent.futures import ThreadPoolExecutor

    from django.db import connections

    from connect_mailer.sending.delivery import Drain, get_limiter
    from connect_mailer.sending.rate import account_rate
    from connect_mailer.sending.transport import get_ses_client

    client = get_ses_client()
    rate = account_rate.get(client)

    def run(_: int = 0) -> int:
        limiter = get_limiter("default")
        try:
            return Drain(transport=client, limiter=limiter, rate=rate, using="default").run()
        finally:
            connections.close_all()  # those of this thread

    if number == 1:  # in the main thread, which hears signals
        sent = run()
    else:
        with ThreadPoolExecutor(number) as pool:
            sent = sum(pool.map(run, range(number)))
    sys.stdout.write(f"{sent}\n")


def purge() -> None:
    """Forget what is finished, at once."""
    from connect_mailer.sending import outbox

    while True:
        number = outbox.purge(keep_days=0, keep_bodies_days=0, using="default")
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


def serve() -> None:
    """Serve the site on a free port, which it prints; trust who signs with SITE_SIGNER."""
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    from django.core.wsgi import get_wsgi_application
    from django.db import connection

    from connect_mailer.testing.sns import SNSSigner

    class Handler(WSGIRequestHandler):
        disable_nagle_algorithm = True

        def log_message(self, *args: object) -> None:
            """Nothing: what matters is in the database."""

    SNSSigner.from_pem(os.environ["SITE_SIGNER"], topic_arn=os.environ["SITE_TOPIC"]).trust()
    # One after the other, through one connection to the database.
    connection.settings_dict["CONN_MAX_AGE"] = None
    server = WSGIServer(("127.0.0.1", 0), Handler)
    server.set_app(get_wsgi_application())
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


def look(path: str) -> None:
    """Print a page of the admin as an operator gets it."""
    from django.contrib.auth import get_user_model
    from django.test import Client

    client = Client()
    client.force_login(get_user_model().objects.create_superuser("operator"))
    response = client.get(path)
    assert response.status_code == 200, response
    sys.stdout.write(response.content.decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
