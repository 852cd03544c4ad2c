"""``migrate``, ``queue N`` (without a wake-up, as if the broker had lost it), ``drain``."""

from __future__ import annotations

import sys

import django

from tests.site.celery import app


def main(command: str, *args: str) -> None:
    app.set_default()
    django.setup()
    if command == "migrate":
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
    elif command == "queue":
        from unittest import mock

        from django.core.mail import EmailMessage

        from connect_mailer import tasks
        from connect_mailer.backend import ConnectMailerBackend

        with mock.patch.object(tasks, "_publish"):
            ConnectMailerBackend().send_messages(
                [
                    EmailMessage("Hi", "Body", None, [f"u{number}@example.org"])
                    for number in range(int(args[0]))
                ]
            )
    elif command == "drain":
        from connect_mailer.conf import conf
        from connect_mailer.sending.delivery import Drain
        from connect_mailer.sending.limiter import RedisLimiter
        from connect_mailer.sending.rate import account_rate
        from connect_mailer.sending.transport import get_ses_client

        client = get_ses_client()
        redis = conf.redis
        assert redis is not None
        drain = Drain(
            transport=client,
            limiter=RedisLimiter(redis.url, redis.options),
            rate=account_rate.get(client),
            using="default",
        )
        sys.stdout.write(f"{drain.run()}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
