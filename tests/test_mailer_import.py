"""``mailer_import``: tables as the other apps made them, in this database."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, models
from django_bouncy.models import Bounce, Complaint

from connect_mailer import imports
from connect_mailer.models import Unsubscribe
from connect_mailer.testing import LocalSES
from connect_mailer.testing.account import LocalSuppression

# Where making a table commits (MySQL), the tables are emptied after each test.
pytestmark = pytest.mark.django_db(transaction=not connection.features.can_rollback_ddl)

THEN = datetime(2019, 7, 31, 4, 23, tzinfo=UTC)


def run(*args: Any) -> str:
    output = io.StringIO()
    call_command("mailer_import", *map(str, args), stdout=output, stderr=output)
    return output.getvalue()


def rows() -> set[tuple[str, str]]:
    return set(Unsubscribe.objects.values_list("address", "source"))


def make_model(table: str, **fields: models.Field[Any, Any]) -> Any:
    """A model of a table that only another app would have."""
    meta = type("Meta", (), {"app_label": "elsewhere", "db_table": table})
    return type(table, (models.Model,), {"__module__": __name__, "Meta": meta, **fields})


CONNECT = make_model(
    "mailer_unsubscribe",
    address=models.EmailField(),
    source=models.CharField(max_length=20),
    created_at=models.DateTimeField(),
)
DJANGO_SES = make_model("django_ses_blacklistedemail", email=models.EmailField(max_length=255))
DJANGO_MAILER = make_model(
    "mailer_dontsendentry", to_address=models.EmailField(), when_added=models.DateTimeField()
)


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A table for as long as a test lasts."""
    editor = connection.schema_editor()
    editor.deferred_sql = []
    sql, _ = editor.table_sql(request.param)
    name = connection.ops.quote_name(request.param._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(sql)
        yield request.param
        cursor.execute(f"DROP TABLE {name}")


@pytest.mark.parametrize("table", [CONNECT], indirect=True)
class TestConnect:
    @pytest.fixture(autouse=True)
    def _rows(self, table: Any) -> None:
        for address, source in (
            ("Jo@Example.org", "user"),
            ("jo@example.org", "user"),
            ("eve@example.org", "bounce"),
            ("nonsense", "user"),
        ):
            table.objects.create(address=address, source=source, created_at=THEN)

    def test_mixed_case_and_duplicates_are_one_row(self) -> None:
        written = run("connect")

        assert rows() == {("jo@example.org", "user"), ("eve@example.org", "bounce")}
        assert "4 read: 2 new, 1 known, 1 skipped." in written
        assert "'nonsense'" in written
        assert {row.created_at for row in Unsubscribe.objects.all()} == {THEN}

    def test_again_nothing_is_new(self) -> None:
        run("connect")

        assert "0 new" in run("connect")
        assert Unsubscribe.objects.count() == 2

    def test_a_dry_run_changes_nothing(self) -> None:
        assert "2 would be new" in run("connect", "--dry-run")
        assert rows() == set()

    def test_on_a_terminal_it_shows_how_far_it_is(self) -> None:
        terminal = io.StringIO()
        terminal.isatty = lambda: True  # type: ignore[method-assign]
        call_command("mailer_import", "connect", stdout=io.StringIO(), stderr=terminal)
        assert "4 of 4  [####################] 100%" in terminal.getvalue()

    def test_in_chunks(self, table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(imports, "CHUNK", 3)
        table.objects.bulk_create(
            table(address=f"u{n}@example.org", source="user", created_at=THEN) for n in range(10)
        )

        assert "14 read: 12 new, 1 known, 1 skipped." in run("connect")


@pytest.mark.parametrize("table", [DJANGO_SES], indirect=True)
def test_django_ses(table: Any) -> None:
    table.objects.create(email="jo@example.org")
    run("django-ses")
    assert rows() == {("jo@example.org", "bounce")}


@pytest.mark.parametrize("table", [DJANGO_MAILER], indirect=True)
def test_django_mailer_is_not_taken_for_connect(table: Any) -> None:
    table.objects.create(to_address="jo@example.org", when_added=THEN)
    run("django-mailer")
    assert rows() == {("jo@example.org", "manual")}
    with pytest.raises(CommandError, match="no table 'mailer_unsubscribe'"):
        run("connect")


def test_bounces_and_complaints_of_before() -> None:
    common = {"sns_topic": "t", "mail_timestamp": THEN, "mail_from": "site@example.com"}
    for address, hard in (("hard@example.org", True), ("soft@example.org", False)):
        Bounce.objects.create(address=address, hard=hard, bounce_type="x", **common)
    for address, told in (
        ("slow@example.org", {"action": "delayed"}),
        ("left@example.org", {"bounce_subtype": "UnsubscribedRecipient"}),
    ):
        Bounce.objects.create(address=address, hard=True, bounce_type="x", **told, **common)
    for address, kind in (("spam@example.org", "abuse"), ("ham@example.org", "Not-Spam")):
        Complaint.objects.create(address=address, feedback_type=kind, **common)
    Complaint.objects.create(address="gone@example.org", feedback_type=None, **common)
    Unsubscribe.objects.suppress("gone@example.org", "user")

    written = run("bouncy")

    assert "7 read: 3 new, 1 known, 3 skipped." in written
    for reason in ("a soft bounce", "still trying", "not spam"):
        assert reason in written
    assert rows() == {
        ("hard@example.org", "bounce"),
        ("left@example.org", "user"),  # SES says that they unsubscribed
        ("spam@example.org", "complaint"),
        ("gone@example.org", "user"),  # it has a row already
    }


def test_the_account_of_ses(settings: Any) -> None:
    with LocalSES() as ses:
        settings.AWS_ACCESS_KEY_ID = settings.AWS_SECRET_ACCESS_KEY = "test"
        settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "SES_ENDPOINT_URL": ses.url}
        ses.account.suppressed["jo@example.org"] = LocalSuppression(reason="COMPLAINT")
        run("ses")
    assert rows() == {("jo@example.org", "complaint")}


class TestCSV:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("jo@example.org\neve@example.org\n", {("jo@example.org", "manual"),
                                                   ("eve@example.org", "manual")}),
            ("\ufeffAddress;\n", set()),
            ("address,source\r\njo@example.org,user\r\n\r\n", {("jo@example.org", "user")}),
            ("name,address\nJo,jo@example.org\n", {("jo@example.org", "manual")}),
            ("", set()),
        ],
    )  # fmt: skip
    def test_files(self, tmp_path: Path, text: str, found: set[tuple[str, str]]) -> None:
        file = tmp_path / "list.csv"
        file.write_text(text, encoding="utf-8", newline="")
        run("csv", file)
        assert rows() == found

    def test_lists_and_mistakes(self, tmp_path: Path) -> None:
        file = tmp_path / "list.csv"
        file.write_text("address,source,mailing_list\na@b.co,user,digest\nc@d.co,whim,\n")
        assert "the source 'whim'" in run("csv", file)
        assert Unsubscribe.objects.get().mailing_list == "digest"

    def test_what_is_no_file_of_addresses(self, tmp_path: Path) -> None:
        file = tmp_path / "list.csv"
        file.write_text("one,two\n1,2\n")
        with pytest.raises(CommandError, match="no column 'address'"):
            run("csv", file)
        with pytest.raises(CommandError, match="can't be read"):
            run("csv", tmp_path / "other.csv")
        with pytest.raises(CommandError, match="Name the file"):
            run("csv")


def test_a_table_that_is_not_there() -> None:
    with pytest.raises(CommandError, match="post_office_email"):
        run("post-office")
