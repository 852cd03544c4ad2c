"""Many simultaneous deliveries of one notification, on a database in a file.

``python -m tests.feedback.site FILE DEFERRED|IMMEDIATE USERS`` prints what came of it as JSON,
on a site whose users are of that model.
A process of its own, because the test run's SQLite database is in memory, where threads
wait for each other in another way.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

DELIVERIES = 50


def deliver(body: str, number: int = DELIVERIES) -> dict[str, int]:
    """POST ``body`` ``number`` times at once; count the answers by status."""
    from threading import Barrier

    from django.db import connections
    from django.test import Client

    barrier = Barrier(number)

    def post(_number: int) -> str:
        barrier.wait(60)
        try:
            return str(Client().generic("POST", "/mail/bouncy/", body.encode()).status_code)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(number) as pool:
        return dict(Counter(pool.map(post, range(number))))


def main(file: str, transaction_mode: str, users: str) -> None:
    """Make a site on ``file``, deliver to it, print the result."""
    from django.conf import settings

    from tests import settings as base

    options = {name: getattr(base, name) for name in dir(base) if name.isupper()}
    options |= {
        "DATABASES": {
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": file,
                "OPTIONS": {"transaction_mode": transaction_mode},
            }
        },
        "ROOT_URLCONF": "tests.feedback.urls",
        "INSTALLED_APPS": [*base.INSTALLED_APPS, "tests.feedback.people"],
        "AUTH_USER_MODEL": users,
    }
    from connect_mailer.testing.sns import TOPIC_ARN, SNSSigner, make_bounce

    settings.configure(**options, BOUNCY_TOPIC_ARN=[TOPIC_ARN])
    import django

    django.setup()
    from django.contrib.auth import get_user_model
    from django.core.management import call_command
    from django_bouncy.models import Bounce

    from connect_mailer.models import NotificationReceipt, Unsubscribe

    call_command("migrate", run_syncdb=True, verbosity=0)
    user = get_user_model().objects.create(email="B@example.com")
    signer = SNSSigner.generate()
    signer.trust()
    answers = deliver(signer.notification(make_bounce(["a@example.com", "b@example.com"])))
    rows = [table.objects.count() for table in (NotificationReceipt, Bounce, Unsubscribe)]
    linked = [row.address for row in Unsubscribe.objects.filter(user=user.pk)]
    json.dump({"answers": answers, "rows": rows, "linked": linked}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:4])
