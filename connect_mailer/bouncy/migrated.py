"""The migrations of django-bouncy's last release, without what Python 2 left in them."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from django.db import migrations, models


def mend() -> None:
    """Make text of the labels that are bytes, in which makemigrations would see a change."""
    for field in _find_fields():
        if isinstance(field.verbose_name, bytes):
            field.verbose_name = field.verbose_name.decode()
            field._verbose_name = field.verbose_name  # noqa: SLF001 (what migrations compare)


def _find_fields() -> Iterator[models.Field[Any, Any]]:
    package = import_module("django_bouncy.migrations")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        for operation in import_module(module.name).Migration.operations:
            if isinstance(operation, migrations.CreateModel):
                yield from (field for _name, field in operation.fields)
            elif isinstance(operation, migrations.AddField | migrations.AlterField):
                yield operation.field
