"""Every case of the corpus: the answer, and that nothing happened."""

from __future__ import annotations

import uuid
from io import BytesIO

import pytest
from django.utils import timezone
from django_bouncy import signals
from django_bouncy.models import Bounce, Complaint, Delivery

from connect_mailer.feedback import sns
from connect_mailer.models import NotificationReceipt, OutgoingMessage, Unsubscribe
from tests.feedback.corpus import cases, events
from tests.feedback.corpus.cases import Case
from tests.feedback.corpus.events import OddCase

CASES = cases.make_all()
ODD_CASES = events.make_all()

pytestmark = pytest.mark.django_db


def test_the_corpus_is_wide_and_each_case_is_told_apart():
    names = [case.name for case in (*CASES, *ODD_CASES)]
    assert len(CASES) > 1500
    assert len(ODD_CASES) > 600
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


@pytest.mark.parametrize("case", ODD_CASES, ids=lambda case: ascii(case.name))
def test_odd_case(case: OddCase, post, signer, downloads, settings):
    settings.CONNECT_MAILER = {
        **settings.CONNECT_MAILER,
        "SES_CONTACT_LIST": events.CONTACT_LIST,
    }
    if case.row:
        message = OutgoingMessage.objects.create(
            uuid=events.TAG,
            ses_message_id=events.ID,
            status=case.row[0],
            due_at=timezone.now(),
        )
        for address in events.PEOPLE:
            message.recipients.create(address=address, status=case.row[1])
    one = str(uuid.uuid4())
    for text in case.texts:
        message_id = one if case.is_repeated else str(uuid.uuid4())
        assert post(signer.notification(text, message_id=message_id)).status_code == 200
    assert downloads == []
    assert NotificationReceipt.objects.count() == (1 if case.is_repeated else len(case.texts))
    suppressed = {*Unsubscribe.objects.values_list("address", flat=True)}
    if case.suppressed is None:
        assert suppressed <= {*case.people}
    else:
        assert suppressed == case.suppressed
    if case.message is not None:
        message.refresh_from_db()
        assert message.status == case.message
    if case.statuses is not None:
        found = message.recipients.order_by("address").values_list("status", flat=True)
        assert tuple(found) == case.statuses
