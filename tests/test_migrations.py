"""Migrations of tables that others are at: nothing is rewritten, and nobody waits for an index."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.db import connection, transaction
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader

from connect_mailer.backend import ConnectMailerBackend
from connect_mailer.models import OutgoingMessage, Unsubscribe
from tests.site.running import wait_for

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor == "sqlite", reason="it has one writer at a time"),
]

FIRST = "0001_initial"
FOUND = {
    name: migration
    for (app, name), migration in MigrationLoader(None).disk_migrations.items()
    if app == "connect_mailer" and name != FIRST
}
MIGRATIONS = sorted(FOUND)
BEFORE_EXACT, EXACT = "0008_desk", "0009_exact"
# Those of indexes are in no transaction.
ADD_INDEXES = [name for name in MIGRATIONS if not FOUND[name].atomic]


def migrate(name: str) -> None:
    MigrationExecutor(connection).migrate([("connect_mailer", name)])


@pytest.fixture(autouse=True)
def _latest() -> Iterator[None]:
    """Whatever happens, other tests find their tables."""
    yield
    migrate(MIGRATIONS[-1])


def queue(number: int) -> None:
    ConnectMailerBackend().send_messages(
        [EmailMessage("a", "b", "site@example.com", [f"u{n}@example.org"]) for n in range(number)]
    )


@pytest.mark.skipif(connection.vendor != "postgresql", reason="asks for the files of PostgreSQL")
def test_no_table_is_rewritten() -> None:
    queue(3)
    Unsubscribe.objects.suppress("u0@example.org", "user")
    tables = [OutgoingMessage._meta.db_table, Unsubscribe._meta.db_table]
    migrate(FIRST)

    def find_files() -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT relname, relfilenode FROM pg_class WHERE relname = ANY(%s) ORDER BY 1",
                [tables],
            )
            return cursor.fetchall()

    before = find_files()
    migrate(MIGRATIONS[-1])

    assert find_files() == before
    assert OutgoingMessage.objects.count() == 3
    assert Unsubscribe.objects.get().detail == ""


@pytest.mark.skipif(connection.vendor != "mysql", reason="asks MariaDB")
def test_mariadb_copies_no_table() -> None:
    if not connection.mysql_is_mariadb:  # type: ignore[attr-defined]
        pytest.skip("MySQL can't be told not to")
    queue(3)
    Unsubscribe.objects.suppress("u0@example.org", "user")
    migrate(FIRST)

    with connection.cursor() as cursor:
        # A statement that would have to copy the table is an error.
        cursor.execute("SET SESSION alter_algorithm = 'NOCOPY'")
        try:
            migrate(MIGRATIONS[-1])
        finally:
            cursor.execute("SET SESSION alter_algorithm = DEFAULT")

    assert OutgoingMessage.objects.count() == 3


@pytest.mark.skipif(connection.vendor != "mysql", reason="others tell letters apart")
def test_tables_of_before_tell_addresses_apart() -> None:
    queue(1)
    Unsubscribe.objects.suppress("e@example.org", "user")
    migrate(BEFORE_EXACT)
    tables = {operation.model_name for operation in FOUND[EXACT].operations}
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@collation_database")
        (collation,) = cursor.fetchone()
        for table in tables:
            cursor.execute(
                f"ALTER TABLE connect_mailer_{table} "
                f"CONVERT TO CHARACTER SET utf8mb4 COLLATE {collation}"
            )
    assert Unsubscribe.objects.address_exists("\xe9@example.org")

    with connection.cursor() as cursor:
        # A statement that would have to copy the table is an error on MariaDB.
        if connection.mysql_is_mariadb:  # type: ignore[attr-defined]
            cursor.execute("SET SESSION alter_algorithm = 'NOCOPY'")
        try:
            migrate(EXACT)
        finally:
            if connection.mysql_is_mariadb:  # type: ignore[attr-defined]
                cursor.execute("SET SESSION alter_algorithm = DEFAULT")

        assert not Unsubscribe.objects.address_exists("\xe9@example.org")
        assert Unsubscribe.objects.address_exists("e@example.org")
        for operation in FOUND[EXACT].operations:
            cursor.execute(
                "SELECT collation_name, is_nullable FROM information_schema.columns "
                "WHERE table_schema = DATABASE() AND table_name = %s AND column_name = %s",
                [f"connect_mailer_{operation.model_name}", operation.name],
            )
            assert cursor.fetchone() == ("utf8mb4_bin", "NO"), operation.name


@pytest.mark.skipif(connection.vendor != "postgresql", reason="asks who waits")
@pytest.mark.parametrize("name", ADD_INDEXES)
def test_who_queues_does_not_wait_for_an_index(name: str) -> None:
    migrate(MIGRATIONS[MIGRATIONS.index(name) - 1])
    tables = {f"connect_mailer_{operation.model_name}" for operation in FOUND[name].operations}
    failed: list[BaseException] = []

    def migrate_meanwhile() -> None:
        try:
            migrate(name)
        except BaseException as error:  # noqa: BLE001 - of a thread
            failed.append(error)
        finally:
            connection.close()

    def write() -> None:
        """What a site does with the tables, by columns that all versions of them have."""
        with connection.cursor() as cursor:
            for table in tables:
                cursor.execute(f"UPDATE {table} SET id = id WHERE id = 0")
                cursor.execute(f"SELECT count(*) FROM {table}")

    thread = threading.Thread(target=migrate_meanwhile)
    with transaction.atomic():
        write()  # a long transaction: the migration has to wait for its end
        thread.start()
        wait_for(lambda: is_waiting() or not thread.is_alive(), tell=lambda: failed)
        assert thread.is_alive(), failed
        other = threading.Thread(target=lambda: failed.extend(write_at_once(write)))
        other.start()
        other.join()
    thread.join()

    assert failed == []


def write_at_once(write: Any) -> list[BaseException]:
    """Write beside the others, without waiting for locks; return what went wrong."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '1s'")
        write()
    except BaseException as error:  # noqa: BLE001 - of a thread
        return [error]
    else:
        return []
    finally:
        connection.close()


def is_waiting() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(cursor.fetchone()[0])
