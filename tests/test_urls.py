from __future__ import annotations

import pytest
from django.urls import resolve, reverse

from connect_mailer.feedback import webhook
from connect_mailer.optout import views


@pytest.mark.parametrize(
    ("path", "name", "kwargs", "view"),
    [
        ("/mail/bouncy/", "bouncy", {}, webhook.endpoint),
        ("/mail/unsubscribe/", "unsubscribe", {}, views.unsubscribe_by_old_link),
        ("/mail/unsubscribe/thanks/", "unsubscribe_thanks", {}, views.thanks),
        ("/mail/unsubscribe/a.b/", "unsubscribe", {"token": "a.b"}, views.unsubscribe),
        (
            "/mail/unsubscribe/a.b/undo/",
            "unsubscribe_undo",
            {"token": "a.b"},
            views.subscribe_again,
        ),
    ],
)
def test_where_the_pages_are(path, name, kwargs, view):
    assert resolve(path).func is view
    assert reverse(name, kwargs=kwargs) == path
