"""Users without a name: the e-mail address is what they log in with."""

from __future__ import annotations

from django.contrib.auth.models import AbstractBaseUser
from django.db import models


class User(AbstractBaseUser):
    email = models.EmailField(unique=True)

    USERNAME_FIELD = "email"
