from __future__ import annotations

import pytest
from django.urls import resolve, reverse

from connect_mailer.feedback import webhook
from connect_mailer.optout import views


@pytest.mark.parametrize(
    ("path", "name", "kwargs", "view"),
    [
        ("/mail/bouncy/", "bouncy", {}, webhook.endpoint),
        ("/mail/unsubscribe/a.b/", "unsubscribe", {"token": "a.b"}, views.unsubscribe),
    ],
)
def test_where_the_pages_are(path, name, kwargs, view):
    assert resolve(path).func is view
    assert reverse(name, kwargs=kwargs) == path
