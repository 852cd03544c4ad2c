"""The message page: what became of each message, and what can still be done about it.

What its actions need is imported by them: each process of a site imports the admin at its start.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from email import message_from_bytes, policy
from typing import Any, Final, cast

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import flatten_fieldsets
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Prefetch, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.defaultfilters import yesno
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.formats import localize
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext, ngettext_lazy

from connect_mailer.admin.lists import LargeTableAdmin, make_badge, to_local
from connect_mailer.models import (
    MessageEvent,
    OutgoingContent,
    OutgoingMessage,
    OutgoingRecipient,
)

Status = OutgoingMessage.Status

# What a body may do in its frame: be seen. Nothing is loaded, nothing runs.
_BODY_POLICY: Final = (
    "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "form-action 'none'; frame-ancestors 'self'"
)


@admin.register(OutgoingMessage)
class OutgoingMessageAdmin(LargeTableAdmin):
    """The outbox, to look at. Its lists never load a body; superusers may delete rows."""

    class Media:
        css = {"all": ["connect_mailer/admin.css"]}

    actions = ("send_again", "send_now", "cancel")
    change_form_template = "connect_mailer/admin/message.html"
    date_hierarchy = "created_at"
    list_display = (
        "status_badge",
        "subject_line",
        "recipient_summary",
        "created",
        "sent_at",
        "attempts",
        "stream",
    )
    list_display_links = ("subject_line",)
    sortable_by = ("created",)
    list_filter = (
        "status",
        "in_doubt",
        "stream",
        "created_at",
    )
    search_fields = ("subject",)  # and more: see `get_search_results`
    search_help_text = gettext_lazy(
        "A recipient (written to or not) or an SES id, of all messages; a sender and words of the "
        "subject, of the newest 100,000."  # lists.SEARCHED_ROWS
    )
    empty_text = gettext_lazy("No mail was queued yet, or none is kept any more.")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return flatten_fieldsets(self.get_fieldsets(request, obj))

    def get_fieldsets(self, request: HttpRequest, obj: OutgoingMessage | None = None) -> Any:
        """What an operator asks first, without what there is nothing to say of."""
        said = [
            name for name in ("sender", "last_error", "ses_message_id") if getattr(obj, name, "")
        ]
        doubt = ["is_in_doubt"] if obj is not None and obj.in_doubt else []
        # Of what is over, the column has the end of its last lease.
        due = ["due_at"] if obj is not None and obj.status in OutgoingMessage.OPEN else []
        return [
            (None, {"fields": [("status_badge", "stream", "attempts", *doubt), *said]}),
            (gettext_lazy("What happened"), {"fields": ["timeline"]}),
            (gettext_lazy("Recipients"), {"fields": ["everybody"]}),
            (
                gettext_lazy("Details"),
                {
                    "classes": ["collapse"],
                    "fields": [
                        ("created_at", *due, "sent_at", "finished_at"),
                        ("priority", "mailing_list", "send_after", "expires_at"),
                        ("size", "body_is_kept"),
                        "tags",
                        "uuid",
                    ],
                },
            ),
        ]

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
        from connect_mailer.addresses import find_key, to_lower

        if not search_term.strip():
            return queryset, False
        key = find_key(search_term)
        if key is not None:
            # A whole address is looked up as it is stored. Of a Message-ID that SES wrote, the
            # part before the @ is the SES id. One after the other, each by its own index.
            of_recipient = OutgoingRecipient.objects.filter(address=key)
            for rows in (
                queryset.filter(pk__in=of_recipient.values("message")),
                queryset.filter(OutgoingMessage.has_ses_id(key.partition("@")[0])),
            ):
                if rows.exists():
                    return rows, False
        elif " " not in search_term.strip():
            rows = queryset.filter(OutgoingMessage.has_ses_id(search_term.strip()))
            if rows.exists():
                return rows, False
        # Each of the newest rows and of their recipients is read once: a join of both tables
        # would be made of all rows first.
        after = self.find_oldest_searched(queryset.db)
        queryset = queryset.filter(pk__gt=after)
        recipients = OutgoingRecipient.objects.using(queryset.db).filter(message__gt=after)
        for word in search_term.split():
            # As it is stored: on MySQL, a capital would be another letter.
            to = recipients.filter(address__icontains=to_lower(word))
            queryset = queryset.filter(
                Q(subject__icontains=word)
                | Q(sender__icontains=word)
                | Q(pk__in=to.values("message"))
            )
        return queryset, False

    def get_urls(self) -> list[URLPattern]:
        """The admin's own, and those of the buttons and of the body."""
        view = self.admin_site.admin_view
        own = [
            path(
                f"<int:pk>/{name}/",
                view(function),
                name=f"connect_mailer_outgoingmessage_{name}",
            )
            for name, function in (
                ("act", self.act_view),
                ("preview", self.preview_view),
                ("body", self.body_view),
            )
        ]
        return [*own, *super().get_urls()]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if request.method == "GET":
            self._warn_of_pause(request)
        return super().changelist_view(request, extra_context)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        row = self.get_object(request, object_id)
        context = {
            "buttons": [] if row is None else self._find_buttons(request, row),
            "can_preview": row is not None and self._find_obstacle(request, row) == "",
        }
        return super().change_view(
            request, object_id, form_url, {**context, **(extra_context or {})}
        )

    def _find_buttons(self, request: HttpRequest, row: OutgoingMessage) -> list[tuple[str, str]]:
        buttons = []
        if self.has_send_again_permission(request):
            if row.status in (Status.SENT, Status.FAILED, Status.EXPIRED) and row.content_id:
                buttons.append(("send_again", _("Send again")))
            if row.status == Status.QUEUED:
                buttons.append(("send_now", _("Send now")))
        if self.has_cancel_permission(request) and row.status == Status.QUEUED:
            buttons.append(("cancel", _("Cancel")))
        return buttons

    def act_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Do with one message what a button says."""
        acts: dict[str, tuple[Callable[..., None], Callable[[HttpRequest], bool]]] = {
            "send_again": (self.send_again, self.has_send_again_permission),
            "send_now": (self.send_now, self.has_send_again_permission),
            "cancel": (self.cancel, self.has_cancel_permission),
        }
        act, is_allowed = acts.get(request.POST.get("act", ""), (None, None))
        if request.method != "POST" or act is None or not is_allowed or not is_allowed(request):
            raise PermissionDenied
        act(request, OutgoingMessage.objects.filter(pk=pk))
        url = reverse(
            "admin:connect_mailer_outgoingmessage_change",
            args=[pk],
            current_app=self.admin_site.name,
        )
        return HttpResponseRedirect(url)

    # The body

    def _find_obstacle(self, request: HttpRequest, row: OutgoingMessage) -> str:
        """Why this body can't be read by who asks; empty: it can."""
        if not request.user.has_perm("connect_mailer.preview_outgoingmessage"):
            return _("You may not read the body of messages.")
        if row.stream == OutgoingMessage.Stream.TRANSACTIONAL:
            return _("Account mail is not shown: it may have links that log somebody in.")
        return "" if row.content_id else _("Its body is no longer kept.")

    def _get_readable(self, request: HttpRequest, pk: int) -> OutgoingMessage:
        row: OutgoingMessage | None = self.get_object(request, str(pk))
        if row is None or not self.has_view_permission(request, row):
            raise Http404
        if obstacle := self._find_obstacle(request, row):
            raise PermissionDenied(obstacle)
        return row

    def preview_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The body in a frame that can do nothing but be seen."""
        row = self._get_readable(request, pk)
        context = {
            **self.admin_site.each_context(request),
            "title": _("What was written"),
            "opts": self.opts,
            "original": row,
        }
        return TemplateResponse(request, "connect_mailer/admin/preview.html", context)

    def body_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The body alone, for that frame."""
        from connect_mailer.sending import outbox

        row = self._get_readable(request, pk)
        content = OutgoingContent.objects.using(outbox.get_database()).get(messages=row)
        mail = message_from_bytes(bytes(content.mime), policy=policy.default)
        body = mail.get_body(("html", "plain"))
        is_html = body is not None and body.get_content_subtype() == "html"
        try:
            text = "" if body is None else body.get_content()
        except (LookupError, ValueError):  # a charset that nobody knows
            text = _("This body can't be shown.")
            is_html = False
        response = HttpResponse(
            text, content_type=f"text/{'html' if is_html else 'plain'}; charset=utf-8"
        )
        response["Content-Security-Policy"] = _BODY_POLICY
        response["X-Frame-Options"] = "SAMEORIGIN"
        response["Referrer-Policy"] = "no-referrer"
        response["Cache-Control"] = "no-store"
        self._log(request, [row], _("Read the body."))
        return response

    def delete_model(self, request: HttpRequest, obj: OutgoingMessage) -> None:
        self.delete_queryset(request, OutgoingMessage.objects.filter(pk=obj.pk))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[OutgoingMessage]) -> None:
        rows = OutgoingMessage.objects.filter(pk__in=list(queryset.values_list("pk", flat=True)))
        with transaction.atomic(using=rows.db):
            OutgoingContent.objects.release(rows)
            rows.delete()

    def _log(self, request: HttpRequest, rows: Any, text: str) -> None:
        LogEntry.objects.log_actions(cast("int", request.user.pk), rows, CHANGE, text)

    def _note(self, request: HttpRequest, pks: list[int], text: str, logged: str) -> None:
        """In the admin's log, and in the life of each message."""
        from connect_mailer.clock import DatabaseNow
        from connect_mailer.sending import outbox

        using = outbox.get_database()
        name = request.user.get_username()
        MessageEvent.objects.using(using).bulk_create(
            MessageEvent(
                message_id=pk,
                kind=MessageEvent.Kind.OPERATOR,
                at=DatabaseNow(),
                detail=text % {"name": name},
            )
            for pk in pks
        )
        self._log(request, OutgoingMessage.objects.filter(pk__in=pks), logged)

    @admin.action(description=gettext_lazy("Send again"), permissions=["send_again"])
    def send_again(self, request: HttpRequest, queryset: QuerySet[OutgoingMessage]) -> None:
        from connect_mailer.sending import outbox
        from connect_mailer.tasks import wake_on_commit
        from connect_mailer.transactions import again_at_deadlock

        pks = list(queryset.values_list("pk", flat=True))
        rows = OutgoingMessage.objects.filter(pk__in=pks)

        @again_at_deadlock
        def act(*, using: str) -> tuple[int, int]:
            with transaction.atomic(using=using):
                waiting = set(
                    rows.filter(status__in=OutgoingMessage.OPEN).values_list("pk", flat=True)
                )
                queued = outbox.send_again(rows)
                wake_on_commit(using=using)
                changed = rows.filter(status=Status.QUEUED).exclude(pk__in=waiting)
                self._note(
                    request,
                    list(changed.values_list("pk", flat=True)),
                    _("Queued again by %(name)s."),
                    _("Queued again."),
                )
            return queued, len(waiting)

        queued, waiting = act(using=rows.db)
        for number, text, level in (
            (
                queued,
                ngettext_lazy("%d message is queued again.", "%d messages are queued again."),
                messages.SUCCESS,
            ),
            (
                waiting,
                ngettext_lazy(
                    "%d message is on its way already.", "%d messages are on their way already."
                ),
                messages.INFO,
            ),
            (
                len(pks) - waiting - queued,
                ngettext_lazy(
                    "%d message can't be sent again: its body is no longer kept.",
                    "%d messages can't be sent again: their bodies are no longer kept.",
                ),
                messages.WARNING,
            ),
        ):
            if number:
                self.message_user(request, text % number, level)

    @admin.action(description=gettext_lazy("Send now"), permissions=["send_again"])
    def send_now(self, request: HttpRequest, queryset: QuerySet[OutgoingMessage]) -> None:
        """Those that wait for their time, or for another try."""
        from connect_mailer.sending import outbox
        from connect_mailer.tasks import wake_on_commit
        from connect_mailer.transactions import again_at_deadlock

        pks = list(queryset.values_list("pk", flat=True))

        @again_at_deadlock
        def act(*, using: str) -> list[int]:
            with transaction.atomic(using=using):
                hurried = outbox.send_now(pks, using=using)
                wake_on_commit(using=using)
                self._note(
                    request, hurried, _("Made due at once by %(name)s."), _("Made due at once.")
                )
            return hurried

        hurried = act(using=outbox.get_database())
        self._tell(
            request,
            len(hurried),
            ngettext_lazy("%d message is due now.", "%d messages are due now."),
        )
        self._tell_others(request, len(pks) - len(hurried))

    @admin.action(description=gettext_lazy("Cancel"), permissions=["cancel"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[OutgoingMessage]) -> None:
        """Those that have not left yet. They fail, and can be sent again."""
        from connect_mailer.sending import outbox
        from connect_mailer.transactions import again_at_deadlock

        pks = list(queryset.values_list("pk", flat=True))
        reason = _("Cancelled by %(name)s.") % {"name": request.user.get_username()}

        @again_at_deadlock
        def act(*, using: str) -> list[int]:
            with transaction.atomic(using=using):
                cancelled = outbox.cancel(pks, reason, using=using)
                self._note(request, cancelled, _("Cancelled by %(name)s."), _("Cancelled."))
            return cancelled

        cancelled = act(using=outbox.get_database())
        self._tell(
            request,
            len(cancelled),
            ngettext_lazy("%d message is cancelled.", "%d messages are cancelled."),
        )
        self._tell_others(request, len(pks) - len(cancelled))

    def _tell(self, request: HttpRequest, number: int, text: Any) -> None:
        if number:
            self.message_user(request, text % number, messages.SUCCESS)

    def _tell_others(self, request: HttpRequest, number: int) -> None:
        if number:
            text = ngettext(
                "%d message was not waiting: nothing was changed.",
                "%d messages were not waiting: nothing was changed.",
                number,
            )
            self.message_user(request, text % number, messages.WARNING)

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("connect_mailer.cancel_outgoingmessage")

    @admin.display(description=gettext_lazy("what happened"))
    def timeline(self, obj: OutgoingMessage) -> str:
        return render_to_string("connect_mailer/admin/timeline.html", {"steps": list_steps(obj)})

    @admin.display(description=gettext_lazy("recipients"))
    def everybody(self, obj: OutgoingMessage) -> str:
        """Each recipient, written to or not."""
        rows = OutgoingRecipient.objects.filter(message=obj).order_by("pk")
        context = {"rows": rows, "is_over": obj.status not in OutgoingMessage.OPEN}
        return render_to_string("connect_mailer/admin/recipients.html", context)

    @admin.display(description=gettext_lazy("status"), ordering="status")
    def status_badge(self, obj: OutgoingMessage) -> str:
        return make_badge(obj.status, obj.get_status_display())

    @admin.display(description=gettext_lazy("subject"), ordering="subject")
    def subject_line(self, obj: OutgoingMessage) -> str:
        """The subject, and what went wrong."""
        subject = obj.subject or _("(no subject)")
        if not obj.last_error or obj.status == Status.SENT:
            return subject
        error = Truncator(obj.last_error).chars(80)
        return format_html('{} <span class="mailer-error">{}</span>', subject, error)

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

    @admin.display(description=gettext_lazy("in doubt"))
    def is_in_doubt(self, obj: OutgoingMessage) -> str:
        return str(yesno(obj.in_doubt))

    @admin.display(description=gettext_lazy("body is kept"))
    def body_is_kept(self, obj: OutgoingMessage) -> str:
        return str(yesno(obj.content_id is not None))

    def _warn_of_pause(self, request: HttpRequest) -> None:
        from connect_mailer.sending import outbox, pauses

        for pause in pauses.find_pauses(using=outbox.get_database()):
            if pause.ends_at is None:
                label = OutgoingMessage.Stream(pause.stream).label
                text = _("The stream “%(stream)s” is paused: %(reason)s") % {
                    "stream": label,
                    "reason": pause.reason,
                }
            else:
                ends = pause.ends_at
                text = _("Sending is paused until %(until)s: %(reason)s") % {
                    "until": localize(to_local(ends)),
                    "reason": pause.reason,
                }
            self.message_user(request, text, messages.WARNING)


def list_steps(row: OutgoingMessage) -> list[dict[str, Any]]:
    """The life of a message, oldest first: what its row says, and its events."""
    steps: list[tuple[datetime, str, str, str, str]] = [
        (row.created_at, "queued", _("queued"), "", "")
    ]
    if row.sent_at:
        detail = _("SES id %(id)s") % {"id": row.ses_message_id} if row.ses_message_id else ""
        steps.append((row.sent_at, "sent", _("sent"), "", detail))
    is_told = False
    for event in row.events.order_by("at", "pk"):
        is_told = is_told or event.detail == row.last_error
        label = event.get_kind_display()
        steps.append((event.at, event.kind, label, event.address, event.detail))
    if row.finished_at and row.status != Status.SENT and not is_told:
        label = row.get_status_display()
        steps.append((row.finished_at, row.status, label, "", row.last_error))
    if row.status in OutgoingMessage.OPEN:
        label = _("being sent") if row.status == Status.SENDING else _("due")
        # Both times of a row that is due at once are of its first moment.
        steps.append((max(row.due_at, row.created_at), row.status, label, "", ""))
    names = ("at", "kind", "label", "address", "detail")
    ordered = sorted(steps, key=lambda step: step[0])
    return [dict(zip(names, step, strict=True)) for step in ordered]
