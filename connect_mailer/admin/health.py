"""The health page: whether mail flows, how close the account is to its limits, and a pause.

What it asks is imported by its views: each process of a site imports the admin at its start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _

from connect_mailer.models import Health, OutgoingMessage

if TYPE_CHECKING:
    HealthModelAdmin = admin.ModelAdmin[Health]
else:
    HealthModelAdmin = admin.ModelAdmin


@admin.register(Health)
class HealthAdmin(HealthModelAdmin):
    """One page, in the place where other models have their list."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_pause_permission(self, request: HttpRequest) -> bool:
        """Whether who asks may pause and resume streams."""
        return request.user.has_perm("connect_mailer.pause_health")

    def get_urls(self) -> list[URLPattern]:
        """The page, what it loads afterwards, and where its buttons lead."""
        view = self.admin_site.admin_view
        return [
            path("", view(self.changelist_view), name="connect_mailer_health_changelist"),
            path("account/", view(self.account_view), name="connect_mailer_health_account"),
            path("pause/", view(self.pause_view), name="connect_mailer_health_pause"),
        ]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """What the database knows; SES is asked afterwards, so that it can't hold this up."""
        from connect_mailer.admin.streams import Stream, is_still
        from connect_mailer.health import figures
        from connect_mailer.sending import outbox, pauses

        if not self.has_view_permission(request):
            raise PermissionDenied
        using = outbox.get_database()
        found = figures.load(using=using)
        paused = {pause.stream: pause for pause in pauses.find_pauses(using=using)}
        context = {
            **self.admin_site.each_context(request),
            "title": _("Mail health"),
            "opts": self.opts,
            "figures": found,
            "account_pause": paused.get(""),
            "streams": [
                Stream(
                    name=waiting.stream,
                    label=str(OutgoingMessage.Stream(waiting.stream).label),
                    waiting=waiting,
                    counts=found.day[waiting.stream],
                    pause=paused.get(waiting.stream),
                    is_still=is_still(waiting, found.moving),
                )
                for waiting in figures.find_waiting(using=using)
            ],
            "windows": [
                (_("last 24 hours"), found.last_day),
                (_("last 7 days"), found.last_week),
                (
                    _("last 10,000 recipients")
                    if found.last_recipients.written >= figures.LAST_RECIPIENTS
                    else _("last 30 days"),
                    found.last_recipients,
                ),
            ],
            "review": figures.REVIEW,
            "suspension": figures.SUSPENSION,
            "domains": figures.find_bouncing_domains(using=using),
            "can_pause": self.has_pause_permission(request),
            "can_view_messages": request.user.has_perm("connect_mailer.view_outgoingmessage"),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "connect_mailer/admin/health.html", context)

    # A transaction of the whole request would last as long as SES takes.
    @method_decorator(transaction.non_atomic_requests)
    def account_view(self, request: HttpRequest) -> HttpResponse:
        """A part of the page: what SES says of the account, and what the doctor finds."""
        from connect_mailer import tallies
        from connect_mailer.account.findings import Level
        from connect_mailer.account.site import examine_quickly
        from connect_mailer.account.standing import load_account
        from connect_mailer.admin.streams import find_end_of_quota
        from connect_mailer.conf import conf
        from connect_mailer.health import figures
        from connect_mailer.sending import outbox

        if not self.has_view_permission(request):
            raise PermissionDenied
        worst_first = [Level.ERROR, Level.WARNING, Level.NOTE, Level.OK]
        findings = sorted(examine_quickly(), key=lambda found: worst_first.index(found.level))
        context: dict[str, Any] = {"is_ses": conf.is_ses, "findings": findings}
        if conf.is_ses:
            using = outbox.get_database()
            account = load_account(using=using)
            if isinstance(account, str):
                context["error"] = account
            else:
                hour = figures.load_hour(using=using)
                rate = sum(point.counts["written"] for point in hour) / sum(
                    point.seconds for point in hour
                )
                context |= {
                    "account": account,
                    "rate": rate,
                    "peak": max(point.counts["written"] for point in hour) / tallies.MINUTES,
                    "is_unlimited": account.max_24_hour_send < 0,
                    "runs_out_at": find_end_of_quota(account, rate),
                }
        return TemplateResponse(request, "connect_mailer/admin/health_account.html", context)

    def pause_view(self, request: HttpRequest) -> HttpResponse:
        """Pause or resume one stream, or let a paused account try again now."""
        from connect_mailer.admin.streams import PauseForm
        from connect_mailer.sending import outbox, pauses
        from connect_mailer.tasks import wake_on_commit

        if request.method != "POST" or not self.has_pause_permission(request):
            raise PermissionDenied
        form = PauseForm(request.POST)
        if not form.is_valid():
            raise PermissionDenied
        stream, action = form.cleaned_data["stream"], form.cleaned_data["action"]
        # Not within the f-string below, where makemessages would not find it.
        reason = form.cleaned_data["reason"].strip() or _("No reason given")
        using = outbox.get_database()
        label = OutgoingMessage.Stream(stream).label if stream else _("account")
        with transaction.atomic(using=using):
            if action == "pause":
                note = f"{reason} ({request.user.get_username()})"
                done = pauses.pause(stream, note, using=using)
                told = _("The stream “%(stream)s” is paused.") % {"stream": label}
                logged = _("Paused: %(reason)s") % {"reason": note}
            else:
                done = pauses.resume(stream, using=using)
                told = _("Mail of “%(stream)s” is sent again.") % {"stream": label}
                logged = _("Resumed.")
                wake_on_commit(using=using)
        if done:
            LogEntry.objects.create(
                user_id=cast(int, request.user.pk),
                content_type=ContentType.objects.get_for_model(Health, for_concrete_model=False),
                object_id=stream or "account",
                object_repr=str(label),
                action_flag=CHANGE,
                change_message=logged,
            )
            self.message_user(request, told, messages.SUCCESS)
        else:
            self.message_user(request, _("That was done already."), messages.INFO)
        url = reverse("admin:connect_mailer_health_changelist", current_app=self.admin_site.name)
        return HttpResponseRedirect(url)
