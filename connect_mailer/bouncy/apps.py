"""django-bouncy as published, made to run: its tables, its migrations and its admin.

``"connect_mailer.bouncy"`` in ``INSTALLED_APPS`` stands in the place of ``"django_bouncy"``.
"""

from __future__ import annotations

from django.apps import AppConfig
from django.db import models
from django.utils.translation import gettext_lazy as _

from connect_mailer import legacy

# Now, while Django makes the configurations of the apps: before it imports any models.
legacy.register()


class BouncyConfig(AppConfig):
    """The app ``django_bouncy``. What its last release lacks is made up for in ``ready()``, and of
    its migrations in ``migrated``."""

    name = "django_bouncy"
    label = "django_bouncy"
    verbose_name = _("Bounces and complaints")
    # As in its migrations, whatever the site's DEFAULT_AUTO_FIELD is.
    default_auto_field = "django.db.models.AutoField"

    def ready(self) -> None:
        for model in self.get_models():
            # Python 2's name of it is all that they have.
            if model.__str__ is models.Model.__str__ and hasattr(model, "__unicode__"):
                model.__str__ = model.__unicode__  # type: ignore[method-assign]
