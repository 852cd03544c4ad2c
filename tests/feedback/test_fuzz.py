"""Random requests: never a 5xx without a cause outside, no write without a signature."""

from __future__ import annotations

import copy
import json
import uuid

import pytest
from django.test import Client
from django.utils import timezone
from django_bouncy.models import Bounce, Complaint, Delivery
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from connect_mailer.exceptions import NotificationRefused
from connect_mailer.feedback import events, sns
from connect_mailer.models import (
    NotificationReceipt,
    OutgoingMessage,
    OutgoingRecipient,
    Unsubscribe,
)
from connect_mailer.testing.sns import (
    make_bounce,
    make_complaint,
    make_delivery,
    make_event,
    make_mail,
)

pytestmark = pytest.mark.django_db

fuzz = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Half surrogates and NULs as well: JSON can write them.
texts = st.text(st.characters(exclude_categories=()), max_size=40)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | texts
json_values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
PEOPLE = ["a@example.com", "b@example.com"]
MAIL = make_mail(PEOPLE, ses_message_id="an-id")
BASES = [
    make_bounce(PEOPLE, event=True),
    make_complaint(["a@example.com"]),
    make_delivery(["a@example.com"]),
    make_bounce(PEOPLE, mail=MAIL),
    make_bounce(PEOPLE, mail=MAIL, bounce_type="Transient", subtype="MailboxFull"),
    make_complaint(PEOPLE, mail=MAIL),
    make_delivery(PEOPLE, mail=MAIL),
    *(
        make_event(kind, mail=MAIL, details={"link": "https://example.com/?a#b", "reason": "x"})
        for kind in ("Send", "Reject", "Open", "Click", "DeliveryDelay")
    ),
]
# What programs stumble over, and random choice seldom finds.
ODD = [
    "victim@example.net",
    "Name <victim@example.net>",
    "rfc822; victim@example.net",
    "victim@example.net\0",
    "a@exa\u212aple.com",
    "\u212a@example.com",
    "\u00df@example.com",
    "a@example\uff0ecom",
    '"=?utf-8?q?a?="@example.com',
    '"=?utf-8?q?=e9?="@example.com',
    '"=?utf-8?q?=00x?="@e.com',
    '"=?utf-8?q?a=0d=0ab?="@e.com',
    "not-spam",
    "Permanent",
    "delayed",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "2026-02-30T25:61:00Z",
    10**400,
    2**63,
    float("inf"),
    float("nan"),
    "x" * 5000,
    [["victim@example.net"]],
    {"emailAddress": "victim@example.net"},
]


def send(body: bytes) -> int:
    return Client().generic("POST", "/mail/bouncy/", body).status_code


def count_all() -> int:
    tables = (NotificationReceipt, Bounce, Complaint, Delivery, Unsubscribe, OutgoingMessage)
    return sum(table.objects.count() for table in tables)


@fuzz
@given(st.binary(max_size=400))
def test_any_bytes(body):
    assert send(body) == 400
    assert count_all() == 0


@fuzz
@given(json_values)
def test_any_json(value):
    assert send(json.dumps(value).encode()) == 400
    assert count_all() == 0


@fuzz
@given(data=st.data())
def test_a_genuine_request_with_one_field_replaced(signer, data):
    kind = data.draw(
        st.sampled_from(
            [
                signer.notification(BASES[0]),
                signer.notification("x", subject="y", version="2"),
                signer.unsubscribe_confirmation(),
            ]
        )
    )
    fields = json.loads(kind)
    name = data.draw(st.sampled_from(sorted(set(fields) - {"UnsubscribeURL"})))
    value = data.draw(leaves | json_values)
    # A Subject of null is none, as in the signed text of a message that has none.
    assume(value != fields[name])
    fields[name] = value
    before = count_all()
    assert send(json.dumps(fields).encode()) == 400
    assert count_all() == before


@fuzz
@given(data=st.data())
def test_a_genuine_request_with_one_byte_replaced(signer, data):
    genuine = signer.notification(BASES[0]).encode()
    body = bytearray(genuine)
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255))
    before = count_all()
    status = send(bytes(body))
    if status == 200:  # the same, written in another way, or a part that isn't signed
        signed = sns.make_signed_text(sns.parse(genuine))
        assert sns.make_signed_text(sns.parse(bytes(body))) == signed
        return
    assert count_all() == before
    if status != 400:  # another certificate of SNS, which can't be had
        assert status == 503
        assert sns.parse(bytes(body)).signing_cert_url != signer.certificate_url


@fuzz
@given(data=st.data())
def test_whatever_is_signed_is_taken(signer, data):
    """Amazon signed it, so it is taken, whatever strangers made of what is in it."""
    message = json.loads(json.dumps(data.draw(st.sampled_from(BASES))))
    for _ in range(data.draw(st.integers(1, 4))):
        target = message
        while True:
            names = list(target) if isinstance(target, dict) else list(range(len(target)))
            if not names:
                break
            name = data.draw(st.sampled_from(names))
            inner = target[name]
            if isinstance(inner, dict | list) and inner and data.draw(st.booleans()):
                target = inner
                continue
            # A copy: the next round may write into it.
            target[name] = copy.deepcopy(data.draw(json_values | st.sampled_from(ODD)))
            break
    status = data.draw(st.sampled_from(["sent", "sending", "queued", "failed"]))
    row, _ = OutgoingMessage.objects.update_or_create(
        ses_message_id="an-id", defaults={"status": status, "due_at": timezone.now()}
    )
    for address in PEOPLE:
        kind = data.draw(st.sampled_from(OutgoingRecipient.Status.values))
        row.recipients.update_or_create(address=address, defaults={"status": kind})
    Unsubscribe.objects.all().delete()
    body = signer.notification(json.dumps(message), message_id=str(uuid.uuid4()))
    assert send(body.encode()) == 200
    # Nobody but who was written to, whatever the report says.
    written = events.read_destination(message) or PEOPLE
    assert {*Unsubscribe.objects.values_list("address", flat=True)} <= {
        events.read_address(address) for address in written
    }


@fuzz
@given(message=json_values)
def test_any_message_that_is_signed_is_taken(signer, message):
    assert send(signer.notification(json.dumps(message)).encode()) == 200


@fuzz
@given(st.text(max_size=60) | texts)
def test_addresses_fold_ascii_only(text):
    address = events.read_address(text)
    if address is not None and text.isascii():
        assert address.isascii()
    if address is not None:
        assert events.read_address(address) == address


@fuzz
@given(st.text(max_size=200))
def test_parse_refuses_or_returns(text):
    with pytest.raises(NotificationRefused):
        sns.parse(text.encode("utf-8", "surrogatepass"))
