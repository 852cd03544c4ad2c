"""What a visitor of the site can do. Nothing here knows how mail is delivered."""

from __future__ import annotations

import time
from typing import Any

import django
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import views as auth_views
from django.contrib.auth.forms import PasswordResetForm
from django.core.exceptions import ValidationError
from django.core.mail import get_connection, send_mail
from django.core.validators import validate_email
from django.db.models import Count
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_GET, require_POST

from connect_mailer.models import OutgoingMessage, OutgoingRecipient, Unsubscribe
from connect_mailer.testing import RemoteLocalSES
from demo import newsletter


@require_GET
@ensure_csrf_cookie
def home(request: HttpRequest) -> HttpResponse:
    """Show what is going on."""
    counts = OutgoingMessage.objects.values("status").annotate(count=Count("pk"))
    return render(
        request,
        "demo/home.html",
        {
            "statuses": [(row["status"], row["count"]) for row in counts.order_by("status")],
            "unsubscribes": Unsubscribe.objects.order_by("-created_at")[:10],
            "withheld": OutgoingRecipient.objects.filter(status="suppressed")
            .select_related("message")
            .order_by("-pk")[:10],
            "stats": _get_ses().stats(),
            "simulator": [newsletter.BOUNCES, newsletter.COMPLAINS, newsletter.OUT_OF_OFFICE],
            "reader": newsletter.READER,
            "letters": newsletter.MESSAGES,
        },
    )


@require_POST
def send_newsletter(request: HttpRequest) -> HttpResponse:
    """Send an issue to all readers, and tell how long each message took to send."""
    subject = request.POST.get("subject") or "Demo Gazette"
    queued, seconds = 0, []
    for letter in newsletter.make_letters():
        start = time.perf_counter()
        queued += letter.send(subject)
        seconds.append(time.perf_counter() - start)
    if request.accepts("text/html"):
        messages.success(request, f"{queued} messages are on their way.")
        return redirect("home")
    return JsonResponse({"queued": queued, "seconds": seconds})


@require_POST
def send_letter(request: HttpRequest) -> HttpResponse:
    """Send one message to the address that the visitor typed."""
    address = request.POST.get("address", "")
    try:
        validate_email(address)
    except ValidationError as error:
        messages.error(request, error.messages[0])
        return redirect("home")
    if send_mail("A letter from the demo", "Good to see you.\n", None, [address]):
        messages.success(request, f"A letter to {address} is on its way.")
    else:
        messages.warning(request, f"{address} is not written to.")
    return redirect("home")


@require_GET
def mailbox(request: HttpRequest) -> HttpResponse:
    """Show the last messages that the local SES accepted."""
    ses = _get_ses()
    rows = [
        {
            "received_at": mail.received_at,
            "recipients": mail.recipients,
            "subject": mail.message["Subject"],
            "way_out": str(mail.message["List-Unsubscribe"] or "").strip("<>"),
        }
        for mail in reversed(ses.mailbox(since=max(0, ses.stats().accepted - 30)))
    ]
    return render(request, "demo/mailbox.html", {"mails": rows})


class TransactionalPasswordResetForm(PasswordResetForm):
    """A reader who wants no newsletter still wants to log in."""

    def send_mail(
        self,
        subject_template_name: str,
        email_template_name: str,
        context: dict[str, Any],
        from_email: str | None,
        to_email: str,
        html_email_template_name: str | None = None,
    ) -> None:
        """Send the link through ``TransactionalBackend``."""
        subject = " ".join(render_to_string(subject_template_name, context).split())
        body = render_to_string(email_template_name, context)
        send_mail(subject, body, from_email, [to_email], **_through_transactional())


class PasswordReset(auth_views.PasswordResetView):
    """Django's own page, with the form above."""

    form_class = TransactionalPasswordResetForm


def _get_ses() -> RemoteLocalSES:
    """The local SES that ``python -m demo`` started."""
    ses = RemoteLocalSES()
    ses.url = settings.SES_URL
    return ses


def _through_transactional() -> dict[str, Any]:
    if django.VERSION >= (6, 1):
        return {"using": "transactional"}
    return {"connection": get_connection("connect_mailer.backend.TransactionalBackend")}
