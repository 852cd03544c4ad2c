"""What a list of a large table looks up for its page."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from django.contrib.admin.views.main import ChangeList
from django.db.models import Max, Min
from django.http import HttpRequest
from django.utils import formats
from django.utils.translation import gettext as _

from connect_mailer.admin.lists import to_local


class LargeChangeList(ChangeList):
    """A list that is whole is not said to be one of more."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.is_whole = not self.query and not self.get_filters_params()
        if self.is_whole:
            self.full_result_count = self.result_count


def make_hierarchy(cl: Any) -> dict[str, Any] | None:
    """The links of ``date_hierarchy``, from the first and the last date alone.

    Django's own look through the whole table for the months that have rows.
    """
    name = cl.date_hierarchy
    bounds = cl.root_queryset.order_by().aggregate(first=Min(name), last=Max(name))
    if bounds["first"] is None:
        return None
    first, last = to_local(bounds["first"]).date(), to_local(bounds["last"]).date()
    year, month, day = (
        _to_number(cl.params.get(f"{name}__{part}")) for part in ("year", "month", "day")
    )

    is_one_month = first.replace(day=1) == last.replace(day=1)
    if is_one_month:
        year, month = last.year, last.month
    if not (1 <= year <= 9999 and 1 <= month <= 12 and 0 <= day <= 31):
        year = month = day = 0

    def link(**parts: int) -> str:
        filters = {f"{name}__{part}": value for part, value in parts.items()}
        return str(cl.get_query_string(filters, [f"{name}__"]))

    if year and month:
        days = _list_days(year, month, first, last)
        label = formats.date_format(date(year, month, 1), "YEAR_MONTH_FORMAT")
        if day:
            back = {"link": link(year=year, month=month), "title": label}
            chosen = [one for one in days if one.day == day]
            choices = [{"title": formats.date_format(one, "MONTH_DAY_FORMAT")} for one in chosen]
            return {"show": True, "back": back, "choices": choices}
        return {
            "show": True,
            "back": None if is_one_month else {"link": link(), "title": _("All dates")},
            "choices": [
                {
                    "link": link(year=year, month=month, day=one.day),
                    "title": formats.date_format(one, "MONTH_DAY_FORMAT"),
                }
                for one in days
            ],
        }
    months = _list_months(first, last)
    return {
        "show": True,
        "choices": [
            {
                "link": link(year=one.year, month=one.month),
                "title": formats.date_format(one, "YEAR_MONTH_FORMAT"),
            }
            for one in months
        ],
    }


def _list_months(first: date, last: date) -> list[date]:
    months = []
    at = first.replace(day=1)
    while at <= last:
        months.append(at)
        at = (at + timedelta(days=32)).replace(day=1)
    return months[-24:]


def _list_days(year: int, month: int, first: date, last: date) -> list[date]:
    start = date(year, month, 1)
    end = (start + timedelta(days=32)).replace(day=1)
    days = (start + timedelta(days=number) for number in range((end - start).days))
    return [day for day in days if first <= day <= last]


def _to_number(value: Any) -> int:
    value = value[-1] if isinstance(value, list) and value else value
    return int(value) if str(value).isdigit() else 0
