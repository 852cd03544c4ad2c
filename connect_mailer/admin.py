"""The operator's desk: who is not written to, and what became of each message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import flatten_fieldsets
from django.db import transaction
from django.db.models import Prefetch, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.defaultfilters import yesno
from django.urls import NoReverseMatch, reverse
from django.utils.formats import localize
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.timezone import is_aware, localtime
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext, ngettext_lazy

from connect_mailer import addresses
from connect_mailer.clock import DatabaseNow
from connect_mailer.exceptions import InvalidAddress
from connect_mailer.models import (
    Lease,
    OutgoingContent,
    OutgoingMessage,
    OutgoingRecipient,
    Unsubscribe,
)
from connect_mailer.sending import outbox
from connect_mailer.sending.wakeups import PAUSE
from connect_mailer.tasks import wake_on_commit

if TYPE_CHECKING:
    UnsubscribeModelAdmin = admin.ModelAdmin[Unsubscribe]
    OutgoingMessageModelAdmin = admin.ModelAdmin[OutgoingMessage]
    RecipientTabularInline = admin.TabularInline[OutgoingRecipient, OutgoingMessage]
else:
    UnsubscribeModelAdmin = OutgoingMessageModelAdmin = admin.ModelAdmin
    RecipientTabularInline = admin.TabularInline


@admin.register(Unsubscribe)
class UnsubscribeAdmin(UnsubscribeModelAdmin):
    """Rows are added by hand with the source ``manual``; those of others are not rewritten."""

    list_display = (
        "address",
        "source",
        "mailing_list",
        "user_link",
        "created_at",
    )
    list_filter = ("source",)
    list_per_page = 50
    list_select_related = ("user",)
    date_hierarchy = "created_at"
    ordering = ("-pk",)
    search_fields = ("address",)
    show_full_result_count = False
    raw_id_fields = ("user",)

    def get_fields(self, request: HttpRequest, obj: Unsubscribe | None = None) -> list[Any]:
        fields = ["address", "source", "mailing_list"]
        return fields if obj is None else [*fields, "user", "created_at", "modified_at"]

    def get_readonly_fields(
        self, request: HttpRequest, obj: Unsubscribe | None = None
    ) -> list[str]:
        if obj is None:
            return []
        return ["address", "source", "mailing_list", "created_at", "modified_at"]

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
        key = _find_key(search_term)
        if key is not None:
            rows = queryset.filter(address=key)
            if rows.exists():
                return rows, False
        return super().get_search_results(request, queryset, search_term)

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


class OutgoingRecipientInline(RecipientTabularInline):
    """Everybody on a message, written to or not."""

    model = OutgoingRecipient
    fields = (
        "address",
        "kind",
        "status_badge",
        "reason",
    )
    readonly_fields = fields
    ordering = ("pk",)
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return True  # to whoever may see the message

    @admin.display(description=gettext_lazy("status"))
    def status_badge(self, obj: OutgoingRecipient) -> str:
        return _badge(obj.status, obj.get_status_display())


@admin.register(OutgoingMessage)
class OutgoingMessageAdmin(OutgoingMessageModelAdmin):
    """The outbox, to look at. It never loads a body; superusers may delete rows."""

    class Media:
        css = {"all": ["connect_mailer/admin.css"]}

    actions = ("send_again",)
    inlines = (OutgoingRecipientInline,)
    list_display = (
        "status_badge",
        "subject_line",
        "recipient_summary",
        "short_error",
        "attempts",
        "created_at",
        "sent_at",
        "stream",
    )
    list_display_links = ("subject_line",)
    list_filter = (
        "status",
        "stream",
        "created_at",
    )
    list_per_page = 50
    ordering = ("-pk",)
    search_fields = (
        "recipients__address",
        "=ses_message_id",
        "subject",
        "sender",
    )
    search_help_text = gettext_lazy("Recipient (written to or not), sender, subject or SES id.")
    show_full_result_count = False
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("status_badge", "attempts", "is_in_doubt"),
                    "subject_line",
                    "sender",
                    "last_error",
                    "ses_message_id",
                )
            },
        ),
        (
            gettext_lazy("Times"),
            {"fields": (("created_at", "due_at"), ("sent_at", "finished_at"))},
        ),
        (
            gettext_lazy("As it was queued"),
            {
                "fields": (
                    ("stream", "priority", "mailing_list"),
                    ("send_after", "expires_at"),
                    ("size", "body_is_kept"),
                    "tags",
                    "uuid",
                )
            },
        ),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return flatten_fieldsets(self.fieldsets)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.is_active and request.user.is_superuser)

    def has_send_again_permission(self, request: HttpRequest) -> bool:
        # What would be the permission to change rows, were they not the outbox's own.
        return request.user.has_perm("connect_mailer.change_outgoingmessage")

    def get_queryset(self, request: HttpRequest) -> QuerySet[OutgoingMessage]:
        recipients = OutgoingRecipient.objects.only("message_id", "address", "status")
        return (
            super()
            .get_queryset(request)
            .prefetch_related(Prefetch("recipients", queryset=recipients.order_by("pk")))
        )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[OutgoingMessage], search_term: str
    ) -> tuple[QuerySet[OutgoingMessage], bool]:
        key = _find_key(search_term)
        if key is not None:
            # A whole address is looked up as it is stored. Of a Message-ID that SES wrote, the
            # part before the @ is the SES id.
            rows = queryset.filter(
                Q(pk__in=OutgoingRecipient.objects.filter(address=key).values("message"))
                | Q(sender__iexact=key)
                | Q(ses_message_id=key.partition("@")[0])
            )
            if rows.exists():
                return rows, False
        return super().get_search_results(request, queryset, search_term)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if request.method == "GET":
            self._warn_of_pause(request)
        return super().changelist_view(request, extra_context)

    def delete_model(self, request: HttpRequest, obj: OutgoingMessage) -> None:
        self.delete_queryset(request, OutgoingMessage.objects.filter(pk=obj.pk))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[OutgoingMessage]) -> None:
        rows = OutgoingMessage.objects.filter(pk__in=list(queryset.values_list("pk", flat=True)))
        with transaction.atomic(using=rows.db):
            OutgoingContent.objects.release(rows)
            rows.delete()

    @admin.action(description=gettext_lazy("Send again"), permissions=["send_again"])
    def send_again(self, request: HttpRequest, queryset: QuerySet[OutgoingMessage]) -> None:
        pks = list(queryset.values_list("pk", flat=True))
        rows = OutgoingMessage.objects.filter(pk__in=pks)
        with transaction.atomic(using=rows.db):
            waiting = set(rows.filter(status__in=OutgoingMessage.OPEN).values_list("pk", flat=True))
            queued = outbox.send_again(rows)
            wake_on_commit(using=rows.db)
            LogEntry.objects.log_actions(
                cast("int", request.user.pk),
                rows.filter(status=OutgoingMessage.Status.QUEUED).exclude(pk__in=waiting),
                CHANGE,
                _("Sent again."),
            )
        for number, text, level in (
            (
                queued,
                ngettext_lazy("%d message is queued again.", "%d messages are queued again."),
                messages.SUCCESS,
            ),
            (
                len(waiting),
                ngettext_lazy(
                    "%d message is on its way already.", "%d messages are on their way already."
                ),
                messages.INFO,
            ),
            (
                len(pks) - len(waiting) - queued,
                ngettext_lazy(
                    "%d message can't be sent again: its body is no longer kept.",
                    "%d messages can't be sent again: their bodies are no longer kept.",
                ),
                messages.WARNING,
            ),
        ):
            if number:
                self.message_user(request, text % number, level)

    @admin.display(description=gettext_lazy("status"), ordering="status")
    def status_badge(self, obj: OutgoingMessage) -> str:
        return _badge(obj.status, obj.get_status_display())

    @admin.display(description=gettext_lazy("subject"), ordering="subject")
    def subject_line(self, obj: OutgoingMessage) -> str:
        return obj.subject or _("(no subject)")

    @admin.display(description=gettext_lazy("recipients"))
    def recipient_summary(self, obj: OutgoingMessage) -> str | None:
        everybody = obj.recipients.all()
        if not everybody:
            return None
        # Whom it was for, and so first of all somebody who is written to.
        suppressed = OutgoingRecipient.Status.SUPPRESSED
        first = min(everybody, key=lambda recipient: recipient.status == suppressed)
        others = len(everybody) - 1
        if not others:
            return first.address
        return ngettext("%(address)s and %(n)d more", "%(address)s and %(n)d more", others) % {
            "address": first.address,
            "n": others,
        }

    @admin.display(description=gettext_lazy("last error"))
    def short_error(self, obj: OutgoingMessage) -> str:
        return Truncator(obj.last_error).chars(80)

    @admin.display(description=gettext_lazy("in doubt"))
    def is_in_doubt(self, obj: OutgoingMessage) -> str:
        return str(yesno(obj.in_doubt))

    @admin.display(description=gettext_lazy("body is kept"))
    def body_is_kept(self, obj: OutgoingMessage) -> str:
        return str(yesno(obj.content_id is not None))

    def _warn_of_pause(self, request: HttpRequest) -> None:
        pause = Lease.objects.filter(name=PAUSE, expires_at__gt=DatabaseNow()).first()
        if pause is None:
            return
        ends = pause.expires_at
        until = localize(localtime(ends) if is_aware(ends) else ends)
        self.message_user(
            request,
            _("Sending is paused until %(until)s: %(reason)s")
            % {"until": until, "reason": pause.note},
            messages.WARNING,
        )


def _badge(status: str, label: str) -> str:
    return format_html('<span class="mailer-status mailer-{}">{}</span>', status, label)


def _find_key(search_term: str) -> str | None:
    """What an address, however it is written, is stored as; ``None``: it is none."""
    try:
        return addresses.normalise(search_term)
    except InvalidAddress:
        return None
