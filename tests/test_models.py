"""The suppression table."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction

from connect_mailer.exceptions import InvalidAddress
from connect_mailer.models import Unsubscribe

pytestmark = pytest.mark.django_db


def test_addresses_are_stored_as_they_are_compared() -> None:
    row = Unsubscribe.objects.create(address="Jo <JO@Example.org>", source="manual")
    Unsubscribe.objects.bulk_create([Unsubscribe(address="EVE@example.org")])

    assert row.address == "jo@example.org"
    assert Unsubscribe.objects.address_exists("JO@example.org")
    assert Unsubscribe.objects.address_exists("eve@EXAMPLE.org")
    assert not Unsubscribe.objects.address_exists("other@example.org")


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(InvalidAddress, match="'nobody'"):
        Unsubscribe.objects.create(address="nobody")
    with pytest.raises(ValidationError, match="nobody"):
        Unsubscribe(address="nobody").full_clean()
    with pytest.raises(InvalidAddress):
        Unsubscribe.objects.address_exists("nobody")


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor == "mysql", reason="it has to be told")
def test_who_tells_letters_apart_is_not_asked_to(capsys: Any) -> None:
    call_command("sqlmigrate", "connect_mailer", "0009", no_color=True)

    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line and not line.startswith("--")] in (
        [],
        ["BEGIN;", "COMMIT;"],
    )


def test_no_migration_is_missing() -> None:
    call_command("makemigrations", "connect_mailer", check_changes=True, dry_run=True, verbosity=0)


def test_once_for_each_address_source_and_list() -> None:
    Unsubscribe.objects.create(address="jo@example.org", source="user")
    Unsubscribe.objects.create(address="jo@example.org", source="bounce")
    Unsubscribe.objects.create(address="jo@example.org", source="user", mailing_list="digest")

    with pytest.raises(IntegrityError), transaction.atomic():
        Unsubscribe.objects.create(address="JO@example.org", source="user")


def test_suppress_adds_a_row_once(django_assert_num_queries: Any) -> None:
    row, is_new = Unsubscribe.objects.suppress("Jo@example.org", "bounce")
    again, is_new_again = Unsubscribe.objects.suppress("jo@EXAMPLE.org", "bounce")

    assert (is_new, is_new_again, again.pk) == (True, False, row.pk)
    with django_assert_num_queries(1):
        Unsubscribe.objects.suppress("jo@example.org", "bounce")


def test_the_user_with_that_address_is_linked() -> None:
    users = get_user_model()._default_manager
    jo = users.create(username="jo", email="Jo@Example.org")
    users.create(username="king", email="\u212aing@example.org")  # the Kelvin sign

    row, _ = Unsubscribe.objects.suppress("jo@example.org", "user")
    stranger, _ = Unsubscribe.objects.suppress("king@example.org", "user")

    assert row.user == jo
    assert stranger.user is None
    jo.delete()
    row.refresh_from_db()
    assert row.user is None
