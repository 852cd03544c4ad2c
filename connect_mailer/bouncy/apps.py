"""django-bouncy as published, made to run: its tables, its migrations and its admin.

``"connect_mailer.bouncy"`` in ``INSTALLED_APPS`` stands in the place of ``"django_bouncy"``.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from django.apps import AppConfig
from django.db import migrations, models
from django.utils.translation import gettext_lazy as _

from connect_mailer import legacy

# Now, while Django makes the configurations of the apps: before it imports any models.
legacy.register()


class BouncyConfig(AppConfig):
    """The app ``django_bouncy``. What its last release lacks is made up for in ``ready()``."""

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
        for field in _migrated_fields():
            # Bytes, for they were written by Python 2: makemigrations would see a change.
            if isinstance(field.verbose_name, bytes):
                field.verbose_name = field.verbose_name.decode()
                field._verbose_name = field.verbose_name  # noqa: SLF001 (what migrations compare)


def _migrated_fields() -> Iterator[models.Field[Any, Any]]:
    package = import_module("django_bouncy.migrations")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        for operation in import_module(module.name).Migration.operations:
            if isinstance(operation, migrations.CreateModel):
                yield from (field for _name, field in operation.fields)
            elif isinstance(operation, migrations.AddField | migrations.AlterField):
                yield operation.field
