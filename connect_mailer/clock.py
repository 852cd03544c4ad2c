"""The database's clock: the one clock that all processes of a site share."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db.models.functions import Now


class DatabaseNow(Now):
    """``Now()`` as the time fields of this app are stored, on every database.

    Django stores UTC on SQLite and MySQL where ``USE_TZ`` is on and local time where it is
    off, but its own ``Now()`` is UTC on SQLite and the session's zone on MySQL in both cases.
    """

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        zone = "" if settings.USE_TZ else ", 'localtime'"
        template = f"STRFTIME('%%%%Y-%%%%m-%%%%d %%%%H:%%%%M:%%%%f', 'NOW'{zone})"
        return self.as_sql(compiler, connection, template=template, **extra)

    def as_mysql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = "UTC_TIMESTAMP(6)" if settings.USE_TZ else "CURRENT_TIMESTAMP(6)"
        return self.as_sql(compiler, connection, template=template, **extra)
