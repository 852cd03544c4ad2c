"""The app."""

from __future__ import annotations

from django.apps import AppConfig
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
        from connect_mailer.feedback import receivers  # noqa: F401
