"""The app."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig, apps
from django.utils.translation import gettext_lazy as _

from connect_mailer import legacy

# Now, while Django makes the configurations of the apps: before it imports any models.
legacy.register()


class ConnectMailerConfig(AppConfig):
    """Registers the checks, the receivers and the old dotted path of the backend."""

    name = "connect_mailer"
    label = "connect_mailer"
    verbose_name = _("Outgoing mail")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Load what registers itself."""
        from connect_mailer import checks, legacy_tasks, tasks  # noqa: F401

        if apps.is_installed("django_bouncy"):
            from django_bouncy import signals

            from connect_mailer.feedback import DISPATCH_UID

            signals.feedback.connect(_receive_feedback, dispatch_uid=DISPATCH_UID)


def _receive_feedback(**kwargs: Any) -> None:
    """Loads what listens to django-bouncy's ``feedback`` with the first of it."""
    from connect_mailer.feedback.receivers import suppress

    suppress(**kwargs)
