"""Pages of the app: ``path("mail/", include("connect_mailer.urls"))``.

The names have no namespace, as they always were; the app itself never looks them up.
"""

from __future__ import annotations

from django.urls import path

from connect_mailer.feedback.endpoint import endpoint
from connect_mailer.optout import views as optout

urlpatterns = [
    path("bouncy/", endpoint, name="bouncy"),
    # Of one name, as Connect had the first: reverse() tells them apart by the token.
    path("unsubscribe/", optout.unsubscribe_by_old_link, name="unsubscribe"),
    path("unsubscribe/thanks/", optout.thanks, name="unsubscribe_thanks"),
    path("unsubscribe/<str:token>/", optout.unsubscribe, name="unsubscribe"),
    path("unsubscribe/<str:token>/undo/", optout.subscribe_again, name="unsubscribe_undo"),
]
