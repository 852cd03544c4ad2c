"""One process of the site: it calls what lines of JSON name, one by one."""

from __future__ import annotations

import json
import sys
import warnings
from contextlib import ExitStack
from typing import Any

import django

# Django 6.1 warns about the setting that Connect has. No option of the interpreter can say so:
# those are read before Django can be imported.
warnings.simplefilter("error")
warnings.filterwarnings("ignore", message=".*EMAIL_BACKEND.*")
warnings.filterwarnings("ignore", message=".*MAILERS.*")

_overrides = ExitStack()


def add_user(email: str) -> int:
    from tests.connect.accounts.models import User

    return int(User.objects.create(email=email).pk)


def send(*recipients: str, **fields: Any) -> int:
    """A message to each of them, as Connect sends: by Django's own functions."""
    from django.core.mail import EmailMessage, get_connection

    return int(
        get_connection().send_messages(
            [EmailMessage("New message", "Hello", None, [one], **fields) for one in recipients]
        )
        or 0
    )


def reset_password(email: str) -> int:
    from tests.connect.accounts.adapter import send_mail

    return send_mail(email)


def deliver() -> int:
    from connect_mailer.testing import deliver_all

    return deliver_all()


def trust(pem: str) -> None:
    from connect_mailer.testing import SNSSigner

    SNSSigner.from_pem(pem).trust()


def get(path: str) -> list[Any]:
    return _ask("get", path)


def post(path: str, body: str = "") -> list[Any]:
    return _ask("post", path, data=body, content_type="text/plain")


def _ask(method: str, path: str, **options: Any) -> list[Any]:
    from django.test import Client

    client = Client(enforce_csrf_checks=True)
    response = getattr(client, method)(path, **options)
    return [response.status_code, response.get("Location", ""), response.content.decode()]


def read(name: str) -> list[Any]:
    """The rows of a model, ``app.Model``, of which each is a dict."""
    from django.apps import apps

    return list(apps.get_model(name).objects.order_by("pk").values())


def unsubscribe(address: str) -> None:
    from connect_mailer.models import Unsubscribe

    Unsubscribe.objects.opt_out(address)


def get_conf(name: str) -> Any:
    from connect_mailer.conf import conf

    return getattr(conf, name)


def check() -> list[str]:
    from django.core.checks import run_checks

    return [f"{message.id} {message.msg}" for message in run_checks()]


def get_setting(name: str) -> Any:
    from django.conf import settings

    return getattr(settings, name)


def set_setting(name: str, value: Any) -> None:
    """Until ``clear()``."""
    from django.test import override_settings

    override = override_settings(**{name: value})
    override.enable()
    _overrides.callback(override.disable)


def clear() -> None:
    """As it was at first."""
    from django.core.cache import cache
    from django.core.management import call_command

    _overrides.close()
    call_command("flush", interactive=False, verbosity=0)
    cache.clear()


def main() -> None:
    from django.core.management import call_command

    from tests.connect.celery import app

    app.set_default()
    django.setup()
    call_command("migrate", verbosity=0)
    for line in sys.stdin:
        name, arguments, options = json.loads(line)
        result = globals()[name](*arguments, **options)
        sys.stdout.write(f"{json.dumps(result, default=str)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
