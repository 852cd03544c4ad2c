"""The app."""

from __future__ import annotations

from typing import Any

from celery.signals import worker_init
from django.apps import AppConfig, apps
from django.core.checks import CheckMessage, Tags, register
from django.utils.translation import gettext_lazy as _

from connect_mailer import legacy

# Now, while Django makes the configurations of the apps: before it imports any models.
legacy.register()


class ConnectMailerConfig(AppConfig):
    """Registers the checks, the tasks, the receivers and the old dotted path of the backend.

    Each process of a site does this at its start, so what is registered here loads its module
    when it is called.
    """

    name = "connect_mailer"
    label = "connect_mailer"
    verbose_name = _("Outgoing mail")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register."""
        register(_check_compatibility, Tags.compatibility)
        register(_check_security, Tags.security)
        worker_init.connect(_load_tasks, dispatch_uid="connect_mailer.tasks")
        if apps.is_installed("django_bouncy"):
            from connect_mailer.bouncy import signals
            from connect_mailer.signals import DISPATCH_UID

            signals.feedback.connect(_receive_feedback, dispatch_uid=DISPATCH_UID)


def _check_compatibility(**kwargs: Any) -> list[CheckMessage]:
    from connect_mailer import checks

    return [message for check in checks.COMPATIBILITY for message in check()]


def _check_security(**kwargs: Any) -> list[CheckMessage]:
    from connect_mailer import checks

    return [message for check in checks.SECURITY for message in check()]


def _load_tasks(**kwargs: Any) -> None:
    """In a worker, before it takes any: also where a site's Celery app looks for none in its apps.

    Others ask by name, or load them with the first mail.
    """
    from connect_mailer import legacy_tasks, tasks  # noqa: F401


def _receive_feedback(**kwargs: Any) -> None:
    from connect_mailer.feedback.receivers import suppress

    suppress(**kwargs)
