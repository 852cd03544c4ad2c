"""``IN`` for many values, without a parameter for each of them where the database can do so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db.models import F
from django.db.models.lookups import In


class AnyOf(In):
    """``filter(AnyOf("address", addresses))``: as ``filter(address__in=addresses)``.

    On PostgreSQL the values are one array: to write and to read a statement with hundreds of
    parameters takes longer than to answer it.
    """

    def __init__(self, field: str, values: Iterable[Any]) -> None:
        super().__init__(F(field), list(values))

    def as_postgresql(self, compiler: Any, connection: Any) -> tuple[str, tuple[Any, ...]]:
        """See ``Lookup``."""
        if not self.rhs:
            raise EmptyResultSet
        lhs, params = self.process_lhs(compiler, connection)
        field = self.lhs.output_field
        values = [field.get_db_prep_value(value, connection) for value in self.rhs]
        return f"{lhs} = ANY(%s)", (*params, values)
