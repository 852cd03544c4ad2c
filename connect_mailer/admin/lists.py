"""Lists of large tables: what Django's own would count, or look through, to the end."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings
from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models import Max, Min, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import formats
from django.utils.functional import cached_property
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from connect_mailer.admin.parts import to_local
from connect_mailer.templatetags.mailer_numbers import thousands

MAX_COUNT: Final = 10_000
# Parts of words are looked for in so many of the newest rows: there is no index for them.
SEARCHED_ROWS: Final = 100_000

if TYPE_CHECKING:
    AnyPaginator = Paginator[Any]
    AnyModelAdmin = admin.ModelAdmin[Any]
else:
    AnyPaginator = Paginator
    AnyModelAdmin = admin.ModelAdmin


class AtLeast(int):
    """A number that was counted up to here."""

    def __str__(self) -> str:
        # Django groups the digits of what it gets, where a site wants that of all numbers.
        is_grouped = settings.USE_THOUSAND_SEPARATOR
        return f"\N{GREATER-THAN OR EQUAL TO}{int(self) if is_grouped else thousands(self)}"


class BoundedPaginator(AnyPaginator):
    """Counts up to ``MAX_COUNT``, and has pages for as many: who wants more narrows the list."""

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        found = rows.order_by()[: MAX_COUNT + 1].count()
        return found if found <= MAX_COUNT else AtLeast(MAX_COUNT)


class LargeChangeList(ChangeList):
    """A list that is whole is not said to be one of more."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.is_whole = not self.query and not self.get_filters_params()
        if self.is_whole:
            self.full_result_count = self.result_count


class LargeTableAdmin(AnyModelAdmin):
    """A list that costs the same with ten rows and with ten million.

    It is sorted (``sortable_by``) by what has an index alone.
    """

    # What a list says that has no rows at all.
    empty_text: Any = ""
    change_list_template = "connect_mailer/admin/change_list.html"
    list_per_page = 50
    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Newest first: by key, or by date where a date is asked for, whose index then serves."""
        if any(name.startswith(f"{self.date_hierarchy}__") for name in request.GET):
            return (f"-{self.date_hierarchy}", "-pk")
        return ("-pk",)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return LargeChangeList

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = {
            "title": capfirst(self.opts.verbose_name_plural),
            "empty_text": self.empty_text,
        }
        return super().changelist_view(request, {**context, **(extra_context or {})})

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Look through the newest rows; what an index finds is found before this."""
        if search_term.strip():
            queryset = queryset.filter(pk__gt=self.find_oldest_searched(queryset.db))
        return super().get_search_results(request, queryset, search_term)

    @admin.display(description=gettext_lazy("created"), ordering="created_at")
    def created(self, obj: Any) -> str:
        """In as few letters as the language has."""
        return formats.date_format(to_local(obj.created_at), "SHORT_DATETIME_FORMAT")

    def find_oldest_searched(self, using: str) -> int:
        """The key after which rows are looked through."""
        newest = self.model._default_manager.using(using).aggregate(pk=Max("pk"))["pk"]
        return (newest or 0) - SEARCHED_ROWS


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
