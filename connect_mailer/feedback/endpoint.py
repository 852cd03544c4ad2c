"""The webhook as URLs name it. What answers it is loaded with the first notification.

A process that only writes links into mail needs the URLs, too, and no signatures: what verifies
them is 9 MB.
"""

from __future__ import annotations

from django.contrib.auth.decorators import login_not_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt


@csrf_exempt
@login_not_required
@transaction.non_atomic_requests
def endpoint(request: HttpRequest) -> HttpResponse:
    """Take what SNS posts; see ``webhook.answer``."""
    from connect_mailer.feedback.webhook import answer

    return answer(request)
