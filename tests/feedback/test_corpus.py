"""Every case of the corpus: the answer, and that nothing happened."""

from __future__ import annotations

from io import BytesIO

import pytest
from django_bouncy import signals
from django_bouncy.models import Bounce, Complaint, Delivery

from connect_mailer.feedback import sns
from connect_mailer.models import NotificationReceipt, Unsubscribe
from tests.feedback.corpus.cases import Case, make_all

CASES = make_all()

pytestmark = pytest.mark.django_db


def test_the_corpus_is_wide_and_each_case_is_told_apart():
    names = [case.name for case in CASES]
    assert len(names) > 1500
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case.name))
def test_case(case: Case, post, signer, downloads, settings, monkeypatch):
    # Where a forged subscription would do harm.
    settings.BOUNCY_AUTO_SUBSCRIBE = True
    monkeypatch.setattr(sns, "fetch", lambda *args, **kwargs: pytest.fail("a call was made"))
    signalled = []

    def receive(**kwargs):
        signalled.append(kwargs)

    signals.notification.connect(receive)
    try:
        body = case.make(signer)
        # Not Django's own input for tests, which knows how long it is.
        environ = {"wsgi.input": BytesIO(body if isinstance(body, bytes) else body.encode())}
        answer = post(body, method=case.method, **environ, **case.environ)
    finally:
        signals.notification.disconnect(receive)
    assert answer.status_code == case.status
    assert downloads == []
    assert bool(signalled) is (case.status == 200)
    assert NotificationReceipt.objects.count() == len(signalled)
    for table in (Bounce, Complaint, Delivery, Unsubscribe):
        assert not table.objects.exists()
