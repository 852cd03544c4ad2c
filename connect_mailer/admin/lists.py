"""Lists of large tables: what Django's own would count, or look through, to the end; their cells.

What a page needs is imported by it: each process of a site imports the admin at its start.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings
from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Max, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import formats
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.text import capfirst
from django.utils.timezone import is_aware, localtime
from django.utils.translation import gettext_lazy

MAX_COUNT: Final = 10_000
# Parts of words are looked for in so many of the newest rows: there is no index for them.
SEARCHED_ROWS: Final = 100_000

if TYPE_CHECKING:
    from django.contrib.admin.views.main import ChangeList

    AnyPaginator = Paginator[Any]
    AnyModelAdmin = admin.ModelAdmin[Any]
else:
    AnyPaginator = Paginator
    AnyModelAdmin = admin.ModelAdmin


class AtLeast(int):
    """A number that was counted up to here."""

    def __str__(self) -> str:
        from connect_mailer.templatetags.mailer_numbers import thousands

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
        from connect_mailer.admin.change_list import LargeChangeList

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


def make_badge(status: str, label: str) -> str:
    """A status that can be told apart at a glance: by its colour, and by its word."""
    return format_html('<span class="mailer-status mailer-{}">{}</span>', status, label)


def to_local(at: datetime) -> datetime:
    """In the time zone of the site; without ``USE_TZ`` it is already."""
    return localtime(at) if is_aware(at) else at
