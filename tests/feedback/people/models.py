"""Users of a site whose keys are UUIDs, which SQLite has as text."""

from __future__ import annotations

import uuid

from django.contrib.auth.models import AbstractBaseUser
from django.db import models


class Person(AbstractBaseUser):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    email = models.EmailField(unique=True)

    USERNAME_FIELD = "email"


class _Present(models.Manager["Member"]):
    def get_queryset(self) -> models.QuerySet[Member]:
        return super().get_queryset().filter(has_left=False)


class Member(AbstractBaseUser):
    """One of a manager that does not show all, who is looked for in another way."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    email = models.EmailField(unique=True)
    has_left = models.BooleanField(default=False)

    USERNAME_FIELD = "email"
    objects = _Present()
