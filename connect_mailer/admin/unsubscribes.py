"""The unsubscribe page: who is not written to, why and since when, and how that ends.

What its views need is imported by them: each process of a site imports the admin at its start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin.models import ADDITION, LogEntry
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, URLPattern, path, reverse
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.timesince import timesince
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from connect_mailer.admin.lists import LargeTableAdmin, make_badge, to_local
from connect_mailer.models import OutgoingRecipient, Unsubscribe

# Of the person's recent messages.
_RECENT = 10
# At once: SES takes about one a second off its list.
_MAX_RELEASED = 50


@admin.register(Unsubscribe)
class UnsubscribeAdmin(LargeTableAdmin):
    """Rows are added by hand with the source ``manual``; those of others are not rewritten."""

    list_display = (
        "address",
        "source_badge",
        "of_list",
        "user_link",
        "created",
    )
    empty_text = gettext_lazy(
        "Everybody may be written to: nobody bounced, complained or opted out."
    )
    actions = ("release", "export")
    change_form_template = "connect_mailer/admin/unsubscribe.html"
    change_list_template = "connect_mailer/admin/unsubscribes.html"
    list_filter = ("source",)
    sortable_by = ("address", "created")
    list_select_related = ("user",)
    date_hierarchy = "created_at"
    search_fields = ("address",)
    search_help_text = gettext_lazy("A whole address; parts of one, of the newest 100,000.")
    raw_id_fields = ("user",)

    class Media:
        css = {"all": ["connect_mailer/admin.css"]}

    def get_fields(self, request: HttpRequest, obj: Unsubscribe | None = None) -> list[Any]:
        if obj is None:
            return ["address", "source", "mailing_list"]
        expires = ["expires_at"] if obj.expires_at else []
        return [
            *("address", ("source_badge", "of_list"), "why", "since", *expires),
            *("user", "recent_messages"),
        ]

    def get_readonly_fields(
        self, request: HttpRequest, obj: Unsubscribe | None = None
    ) -> list[str]:
        if obj is None:
            return []
        return [
            *("address", "source_badge", "of_list", "why"),
            *("since", "expires_at", "recent_messages"),
        ]

    def formfield_for_choice_field(self, db_field: Any, request: Any, **kwargs: Any) -> Any:
        # Of the form all the same, or a row that is there already would not be noticed.
        kwargs["disabled"] = True
        return super().formfield_for_choice_field(db_field, request, **kwargs)

    def save_model(self, request: HttpRequest, obj: Unsubscribe, form: Any, change: bool) -> None:
        if change:
            super().save_model(request, obj, form, change)
            return
        row, _created = Unsubscribe.objects.suppress(
            obj.address, Unsubscribe.Source.MANUAL, obj.mailing_list
        )
        obj.pk, obj.user = row.pk, row.user

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Unsubscribe], search_term: str
    ) -> tuple[QuerySet[Unsubscribe], bool]:
        from connect_mailer.addresses import find_key, to_lower

        key = find_key(search_term)
        if key is not None:
            rows = queryset.filter(address=key)
            if rows.exists():
                return rows, False
        # As it is stored: on MySQL, a capital would be another letter.
        return super().get_search_results(request, queryset, to_lower(search_term))

    @admin.display(description=gettext_lazy("source"), ordering="source")
    def source_badge(self, obj: Unsubscribe) -> str:
        return make_badge(obj.source, obj.get_source_display())

    @admin.display(description=gettext_lazy("since"))
    def since(self, obj: Unsubscribe) -> str:
        at = date_format(to_local(obj.created_at), "DATETIME_FORMAT")
        return f"{at} ({timesince(obj.created_at)})"

    @admin.display(description=gettext_lazy("mailing list"), ordering="mailing_list")
    def of_list(self, obj: Unsubscribe) -> str:
        return obj.mailing_list or _("all mail")

    @admin.display(description=gettext_lazy("user"), ordering="user")
    def user_link(self, obj: Unsubscribe) -> str | None:
        if obj.user is None:
            return None
        options = type(obj.user)._meta
        try:
            url = reverse(
                f"admin:{options.app_label}_{options.model_name}_change",
                args=[obj.user.pk],
                current_app=self.admin_site.name,
            )
        except NoReverseMatch:  # the site shows its users in no admin
            return str(obj.user)
        return format_html('<a href="{}">{}</a>', url, obj.user)

    @admin.display(description=gettext_lazy("why"))
    def why(self, obj: Unsubscribe) -> str:
        """The words of who said so, and the message that they are about, while it is kept."""
        statuses = {
            Unsubscribe.Source.BOUNCE: OutgoingRecipient.Status.BOUNCED,
            Unsubscribe.Source.COMPLAINT: OutgoingRecipient.Status.COMPLAINED,
        }
        status = statuses.get(Unsubscribe.Source(obj.source))
        cause = None
        if status is not None:
            told = OutgoingRecipient.objects.filter(address=obj.address, status=status)
            cause = told.select_related("message").order_by("-pk").first()
        detail = obj.detail or (cause.reason if cause else "")
        context = {
            "cause": cause,
            "detail": detail,
            "source": obj.get_source_display(),
            "notifications": self._find_notifications(obj),
        }
        return render_to_string("connect_mailer/admin/why.html", context)

    def _find_notifications(self, obj: Unsubscribe) -> str:
        """Where all that SES said of the address is, as django-bouncy keeps it."""
        if obj.source not in (Unsubscribe.Source.BOUNCE, Unsubscribe.Source.COMPLAINT):
            return ""
        try:
            name = f"admin:django_bouncy_{obj.source}_changelist"
            url = reverse(name, current_app=self.admin_site.name)
        except NoReverseMatch:  # the site shows them in no admin
            return ""
        return f"{url}?{urlencode({'q': obj.address})}"

    @admin.display(description=gettext_lazy("recent messages"))
    def recent_messages(self, obj: Unsubscribe) -> str:
        """The last ones to this address, whether it was written to or not."""
        recent = OutgoingRecipient.objects.filter(address=obj.address).select_related("message")
        rows = recent.defer("message__last_error", "message__tags").order_by("-pk")[:_RECENT]
        return render_to_string("connect_mailer/admin/recent.html", {"rows": rows})

    # Many at once

    def get_urls(self) -> list[URLPattern]:
        """The admin's own, and those of many at once."""
        view = self.admin_site.admin_view
        return [
            path("several/", view(self.several_view), name="connect_mailer_unsubscribe_several"),
            path(
                "<int:pk>/release/",
                view(self.release_view),
                name="connect_mailer_unsubscribe_release",
            ),
            *super().get_urls(),
        ]

    def several_view(self, request: HttpRequest) -> HttpResponse:
        """Paste or upload, look at what will be added and what is no address, add."""
        from connect_mailer.admin.several import SeveralForm, add

        if not self.has_add_permission(request):
            raise PermissionDenied
        data = (request.POST, request.FILES) if request.method == "POST" else ()
        form = SeveralForm(*data)
        preview = None
        if request.method == "POST" and form.is_valid():
            preview = form.cleaned_data["preview"]
            if "add" in request.POST:
                rows = add(preview.new)
                LogEntry.objects.log_actions(
                    cast("int", request.user.pk), rows, ADDITION, _("Added with others.")
                )
                text = ngettext("%d address is added.", "%d addresses are added.", len(rows))
                self.message_user(request, text % len(rows), messages.SUCCESS)
                return self._go_to_list()
        context = {
            **self.admin_site.each_context(request),
            "title": _("Add several addresses"),
            "opts": self.opts,
            "form": form,
            "preview": preview,
        }
        return TemplateResponse(request, "connect_mailer/admin/several.html", context)

    @admin.action(description=gettext_lazy("Export as CSV"), permissions=["view"])
    def export(
        self, request: HttpRequest, queryset: QuerySet[Unsubscribe]
    ) -> StreamingHttpResponse:
        """As a file that “Add several” takes."""
        from connect_mailer.admin.several import COLUMNS

        rows = queryset.order_by("pk").values_list(*COLUMNS, "created_at")
        lines = _write_lines([*COLUMNS, "created_at"], rows.iterator(chunk_size=2000))
        response = StreamingHttpResponse(lines, content_type="text/csv; charset=utf-8")
        response["Content-Disposition"] = 'attachment; filename="unsubscribes.csv"'
        return response

    # Written to again

    @admin.action(description=gettext_lazy("Release: write to them again"), permissions=["delete"])
    def release(self, request: HttpRequest, queryset: QuerySet[Unsubscribe]) -> None:
        """Remove the rows, and take the addresses off SES's own list, where they are on it."""
        from connect_mailer.conf import conf

        rows = list(queryset[: _MAX_RELEASED + 1])
        if len(rows) > _MAX_RELEASED:
            text = _("At most %(number)d at once, since SES is asked about each: none is released.")
            self.message_user(request, text % {"number": _MAX_RELEASED}, messages.ERROR)
            return
        self.log_deletions(request, queryset.filter(pk__in=[row.pk for row in rows]))
        Unsubscribe.objects.filter(pk__in=[row.pk for row in rows]).delete()
        addresses = sorted({row.address for row in rows})
        left = set(
            Unsubscribe.objects.filter(address__in=addresses).values_list("address", flat=True)
        )
        text = ngettext("%d row is removed.", "%d rows are removed.", len(rows))
        self.message_user(request, text % len(rows), messages.SUCCESS)
        if left:
            names = ", ".join(sorted(left))
            self.message_user(
                request,
                _("Still not written to, for another reason: %(names)s") % {"names": names},
                messages.WARNING,
            )
        if conf.is_ses:
            self._release_at_ses(request, [one for one in addresses if one not in left])

    def release_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The button of one row."""
        if request.method != "POST" or not self.has_delete_permission(request):
            raise PermissionDenied
        self.release(request, Unsubscribe.objects.filter(pk=pk))
        return self._go_to_list()

    def _go_to_list(self) -> HttpResponse:
        name = "admin:connect_mailer_unsubscribe_changelist"
        return HttpResponseRedirect(reverse(name, current_app=self.admin_site.name))

    def _release_at_ses(self, request: HttpRequest, addresses: list[str]) -> None:
        from connect_mailer.account import suppressed
        from connect_mailer.account.aws import AWS
        from connect_mailer.exceptions import AccountError

        aws = AWS()
        released = []
        try:
            for address in addresses:
                released += [address] if suppressed.release(aws, address) else []
        except AccountError as error:
            self.message_user(
                request,
                _("SES's own suppression list could not be changed, and may still stop mail: %s")
                % error,
                messages.ERROR,
            )
        if released:
            text = _("Taken off SES's own suppression list, too: %(names)s")
            self.message_user(request, text % {"names": ", ".join(released)}, messages.SUCCESS)


class _Echo:
    """A file that gives back what is written to it."""

    def write(self, text: str) -> str:
        return text


def _write_lines(names: list[str], rows: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    import csv

    writer = csv.writer(cast(Any, _Echo()))
    yield cast(str, writer.writerow(names))
    for row in rows:
        # An address may begin as a formula does: spreadsheets would run it.
        cells = (str(cell) for cell in row)
        yield cast(
            str, writer.writerow(f"'{cell}" if cell[:1] in "=+-@" else cell for cell in cells)
        )
