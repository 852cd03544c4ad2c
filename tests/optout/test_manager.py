"""``Unsubscribe.objects``: opting out, coming back, and who is told."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.mail import EmailMessage
from django.db import transaction
from django.utils import timezone

from connect_mailer import signals
from connect_mailer.backend import ConnectMailerBackend
from connect_mailer.exceptions import InvalidAddress
from connect_mailer.models import Unsubscribe

pytestmark = pytest.mark.django_db

ADDRESS = "ada@example.com"


@pytest.fixture
def heard():
    """What the signals told, in order."""
    told = []

    def hear(signal, **kwargs):
        name = "unsubscribed" if signal is signals.unsubscribed else "resubscribed"
        assert kwargs["sender"] is Unsubscribe
        told.append((name, kwargs["address"], kwargs["mailing_list"]))

    for signal in (signals.unsubscribed, signals.resubscribed):
        signal.connect(hear)
    yield told
    for signal in (signals.unsubscribed, signals.resubscribed):
        signal.disconnect(hear)


def _rows():
    return set(Unsubscribe.objects.values_list("source", "mailing_list"))


def test_out_and_back(heard, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        assert Unsubscribe.objects.opt_out("Ada <ADA@example.com>", "digest")
        assert not Unsubscribe.objects.opt_out(ADDRESS, "digest")
        assert _rows() == {("user", "digest")}
        assert Unsubscribe.objects.come_back(ADDRESS, "digest")
        assert not Unsubscribe.objects.come_back(ADDRESS, "digest")
    assert not _rows()
    assert heard == [("unsubscribed", ADDRESS, "digest"), ("resubscribed", ADDRESS, "digest")]


def test_a_second_opt_out_leaves_the_transaction_usable():
    with transaction.atomic():
        Unsubscribe.objects.opt_out(ADDRESS)
        Unsubscribe.objects.opt_out(ADDRESS)
        assert _rows() == {("user", "")}


def test_one_opt_out_is_not_another():
    Unsubscribe.objects.opt_out(ADDRESS, "digest")
    assert not Unsubscribe.objects.come_back(ADDRESS)
    assert not Unsubscribe.objects.come_back("bob@example.com", "digest")
    assert _rows() == {("user", "digest")}


def test_what_was_said_since_is_not_taken_back(heard, django_capture_on_commit_callbacks):
    before = timezone.now()
    with django_capture_on_commit_callbacks(execute=True):
        Unsubscribe.objects.opt_out(ADDRESS)
        assert not Unsubscribe.objects.come_back(ADDRESS, before=before)
        assert _rows() == {("user", "")}
        assert Unsubscribe.objects.come_back(ADDRESS, before=timezone.now())
    assert not _rows()
    assert heard == [("unsubscribed", ADDRESS, ""), ("resubscribed", ADDRESS, "")]


def test_an_opt_out_that_is_repeated_is_newer():
    Unsubscribe.objects.opt_out(ADDRESS)
    Unsubscribe.objects.suppress(ADDRESS, "bounce")
    old = timezone.now() - timedelta(days=1)
    Unsubscribe.objects.update(created_at=old, modified_at=old)
    assert not Unsubscribe.objects.opt_out(ADDRESS)
    assert not Unsubscribe.objects.come_back(ADDRESS, before=timezone.now() - timedelta(hours=1))
    assert set(Unsubscribe.objects.values_list("created_at", flat=True)) == {old}
    assert Unsubscribe.objects.get(source="bounce").modified_at == old


def test_who_registers_again_is_welcome(heard, django_capture_on_commit_callbacks):
    for mailing_list in ("", "digest"):
        Unsubscribe.objects.suppress(ADDRESS, "user", mailing_list)
    Unsubscribe.objects.suppress("bob@example.com", "user")
    with django_capture_on_commit_callbacks(execute=True):
        assert Unsubscribe.objects.welcome_back("Ada@Example.com") == 2
    assert sorted(heard) == [("resubscribed", ADDRESS, ""), ("resubscribed", ADDRESS, "digest")]
    assert not Unsubscribe.objects.address_exists(ADDRESS)
    assert Unsubscribe.objects.address_exists("bob@example.com")
    assert Unsubscribe.objects.welcome_back(ADDRESS) == 0


@pytest.mark.parametrize("source", ["bounce", "complaint", "manual"])
def test_other_reasons_stay(source, heard, django_capture_on_commit_callbacks):
    Unsubscribe.objects.suppress(ADDRESS, source)
    with django_capture_on_commit_callbacks(execute=True):
        assert not Unsubscribe.objects.come_back(ADDRESS)
        assert Unsubscribe.objects.welcome_back(ADDRESS) == 0
    assert _rows() == {(source, "")}
    assert not heard


@pytest.mark.django_db(transaction=True)
def test_nobody_is_told_of_what_was_rolled_back(heard):
    with transaction.atomic():
        Unsubscribe.objects.opt_out(ADDRESS)
        transaction.set_rollback(True)
    assert not _rows()
    Unsubscribe.objects.opt_out(ADDRESS, "digest")
    assert heard == [("unsubscribed", ADDRESS, "digest")]


def test_who_came_back_is_written_to():
    message = EmailMessage("Hello", "Body", "site@example.com", [ADDRESS])
    Unsubscribe.objects.opt_out(ADDRESS)
    assert ConnectMailerBackend().send_messages([message]) == 0
    Unsubscribe.objects.come_back(ADDRESS)
    assert ConnectMailerBackend().send_messages([message]) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [("e", "\xe9"), ("i", "\u0131"), ("ss", "\xdf"), ("k", "\u212a"), ("\xe9", "\xc9")],
)
def test_what_looks_alike_is_somebody_else(one, other):
    one, other = f"{one}@example.com", f"{other}@example.com"
    for theirs, address in ((one, other), (other, one)):
        assert Unsubscribe.objects.opt_out(theirs)
        assert not Unsubscribe.objects.address_exists(address)
        assert not Unsubscribe.objects.come_back(address)
        assert Unsubscribe.objects.opt_out(address)
        assert Unsubscribe.objects.come_back(theirs)
        assert [row.address for row in Unsubscribe.objects.all()] == [address]
        assert Unsubscribe.objects.welcome_back(address) == 1


def test_lists_differ_by_a_letter():
    for mailing_list in ("digest", "Digest", "dig\xe9st"):
        assert Unsubscribe.objects.opt_out(ADDRESS, mailing_list)
    assert Unsubscribe.objects.come_back(ADDRESS, "Digest")
    assert _rows() == {("user", "digest"), ("user", "dig\xe9st")}


@pytest.mark.parametrize("method", ["opt_out", "come_back", "welcome_back"])
def test_what_is_no_address(method):
    with pytest.raises(InvalidAddress):
        getattr(Unsubscribe.objects, method)("not an address")
