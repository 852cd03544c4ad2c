"""Pages of the app: ``path("mail/", include("connect_mailer.urls"))``.

The names have no namespace, as they always were; the app itself never looks them up.
"""

from __future__ import annotations

from django.urls import path

from connect_mailer.feedback.webhook import endpoint
from connect_mailer.optout import views as optout

urlpatterns = [
    path("bouncy/", endpoint, name="bouncy"),
    path("unsubscribe/<str:token>/", optout.unsubscribe, name="unsubscribe"),
]
