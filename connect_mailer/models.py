"""The tables: who is not written to, and the outbox."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connections, models, router, transaction
from django.db.models.functions import Greatest, Lower
from django.dispatch import Signal
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from connect_mailer import signals

# Recipients that one call to SES may have.
# Source: SES v2 API reference, SendEmail, "Destination" (50 recipients a message).
MAX_RECIPIENTS = 50

MAX_ADDRESS_LENGTH = 320
MAX_DETAIL_LENGTH = 500
MAX_ID_LENGTH = 100

# The message tag that carries a row's uuid through SES, so that SES's own events name it.
MESSAGE_ID_TAG = "connect-mailer-id"


if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from connect_mailer.statements import Statement

    CharField = models.CharField[str, str]
else:
    CharField = models.CharField


def _normalise(address: object) -> str:
    # Loaded with the first address: each process of a site imports the tables at its start.
    from connect_mailer.addresses import normalise

    return normalise(address)


class ExactField(CharField):
    """A text that names somebody or something: what differs in a letter is another one.

    MySQL and MariaDB compare as their server's collation says, most of which take ``é`` for
    ``e`` and capitals for small letters. So a stranger's address could stand for another
    person's, and an id for another id. ``db_collation`` would be an error on other databases,
    which compare character by character by themselves.

    Source: CVE-2019-19844; MySQL manual, "The binary Collation Compared to _bin Collations".
    """

    def db_parameters(self, connection: BaseDatabaseWrapper) -> dict[str, str | None]:
        parameters = super().db_parameters(connection)
        if connection.vendor == "mysql":
            parameters["collation"] = "utf8mb4_bin"
        return parameters


class AddressField(ExactField):
    """An address, stored in the form in which addresses are compared (``addresses``)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("max_length", MAX_ADDRESS_LENGTH)
        super().__init__(*args, **kwargs)

    def clean(self, value: Any, model_instance: models.Model | None) -> str:
        try:
            return _normalise(super().clean(value, model_instance))
        except ValueError as error:  # ``InvalidAddress`` is one
            raise ValidationError(str(error), code="invalid") from error

    def pre_save(self, model_instance: models.Model, add: bool) -> str:
        value = _normalise(getattr(model_instance, self.attname))
        setattr(model_instance, self.attname, value)
        return value


# What is unique of a row of ``Unsubscribe``: address, source, mailing list.
UnsubscribeKey: TypeAlias = tuple[str, str, str]


class UnsubscribeManager(models.Manager["Unsubscribe"]):
    """``Unsubscribe.objects``."""

    def address_exists(self, address: str) -> bool:
        """Whether there is a reason, of any source and list, not to write to ``address``.

        Raises:
            InvalidAddress: ``address`` is none.
        """
        return self.filter(address=_normalise(address)).exists()

    def suppress(
        self, address: str, source: str, mailing_list: str = "", **fields: Any
    ) -> tuple[Unsubscribe, bool]:
        """Add a row for ``address`` unless there is one; return it and whether it is new.

        A user of the site who has that e-mail address is linked to it. ``fields`` are those
        of a new row.

        Raises:
            InvalidAddress: ``address`` is none.
        """
        key = _normalise(address)
        return self.get_or_create(
            address=key,
            source=source,
            mailing_list=mailing_list,
            defaults={
                "user_id": lambda: find_user_ids([key]).get(key),  # type: ignore[misc]
                **fields,
            },
        )

    def find_keys(self, keys: Collection[str]) -> set[UnsubscribeKey]:
        """The rows that these normalised addresses have, in one query."""
        rows = self.using(router.db_for_write(self.model)).filter(address__in=keys)
        return set(rows.values_list("address", "source", "mailing_list"))

    def add_all(
        self,
        keys: Collection[UnsubscribeKey],
        *,
        details: Mapping[str, str] | None = None,
        expires_at: datetime | None = None,
    ) -> None:
        """Add these rows, in one insert; one that is there by now is left alone.

        Addresses are normalised ones; ``details`` are by address. Users of the site who have
        them are linked.
        """
        details = details or {}
        users = find_user_ids({address for address, _source, _list in keys})
        self.bulk_create(
            [
                self.model(
                    address=address,
                    source=source,
                    mailing_list=mailing_list,
                    user_id=users.get(address),
                    detail=details.get(address, "")[:MAX_DETAIL_LENGTH],
                    expires_at=expires_at,
                )
                # In one order for all, or two who add the same two could block each other.
                for address, source, mailing_list in sorted(keys)
            ],
            ignore_conflicts=True,
        )

    def opt_out(
        self,
        address: str,
        mailing_list: str = "",
        *,
        detail: str = "",
        at: datetime | None = None,
    ) -> bool:
        """Write down that a reader opted out, of one list or (blank) of all mail.

        One query and one insert, whoever else does the same at that moment. Sends
        ``unsubscribed`` where it is new, which is returned; else one update, of ``modified_at``.
        ``detail``: how it is known, where it was not told by a link; ``at``: when it happened, if
        not now (as the database has times).

        Raises:
            InvalidAddress: ``address`` is none.
        """
        key = _normalise(address)
        using = router.db_for_write(self.model)
        row = self.model(
            address=key,
            source=self.model.Source.USER,
            mailing_list=mailing_list,
            user_id=find_user_ids([key]).get(key),
            detail=detail[:MAX_DETAIL_LENGTH],
        )
        try:
            # In a transaction of its own, since the caller's has to survive the second time.
            with transaction.atomic(using=using):
                row.save(using=using, force_insert=True)
        except IntegrityError:
            rows = self.using(using).filter(address=key, source=row.source)
            # Said again, it is newer than whatever she chose before (`come_back`).
            moment = Greatest("modified_at", models.Value(at or timezone.now()))
            if not rows.filter(mailing_list=mailing_list).update(modified_at=moment):
                raise
            return False
        if at is not None:
            self.using(using).filter(pk=row.pk).update(modified_at=at)
        _announce(signals.unsubscribed, [row], using)
        return True

    def opt_out_all(self, details: Mapping[str, str], mailing_list: str = "") -> list[str]:
        """``opt_out`` of several addresses, which are normalised ones, each with its detail.

        As many queries for all as for one. Sends ``unsubscribed`` for each that is new, and
        returns those.
        """
        using = router.db_for_write(self.model)
        keys = {(address, self.model.Source.USER.value, mailing_list) for address in details}
        known = self.find_keys(details.keys()) & keys
        if known:  # said again, as in `opt_out`
            again = self.using(using).filter(
                address__in=[address for address, _source, _list in known],
                source=self.model.Source.USER,
                mailing_list=mailing_list,
            )
            again.update(modified_at=timezone.now())
        if new := keys - known:
            self.add_all(new, details=details)
            rows = [
                self.model(address=address, source=source, mailing_list=mailing_list)
                for address, source, _list in sorted(new)
            ]
            _announce(signals.unsubscribed, rows, using)
        return sorted(address for address, _source, _list in new)

    def come_back(
        self, address: str, mailing_list: str = "", *, before: datetime | None = None
    ) -> bool:
        """Take back what ``opt_out`` did with the same arguments; return whether there was any.

        Rows of other sources stay: who bounced or complained is not written to, whatever a
        link says. With ``before`` (as the database has times) an opt-out that happened, or was
        repeated, later than that stays too. Sends ``resubscribed``.

        Raises:
            InvalidAddress: ``address`` is none.
        """
        which: dict[str, Any] = {"mailing_list": mailing_list}
        if before is not None:
            # Not `created_at`, which an opt-out that was repeated keeps.
            which["modified_at__lte"] = before
        return self._lift(address, **which) > 0

    def welcome_back(self, address: str) -> int:
        """Forget every opt-out of a reader who registers again; return how many there were.

        Rows of other sources stay, as for ``come_back``. Sends ``resubscribed`` for each.

        Raises:
            InvalidAddress: ``address`` is none.
        """
        return self._lift(address)

    def _lift(self, address: str, **which: Any) -> int:
        using = router.db_for_write(self.model)
        rows = list(
            self.using(using).filter(
                address=_normalise(address), source=self.model.Source.USER, **which
            )
        )
        if rows:
            self.using(using).filter(pk__in=[row.pk for row in rows]).delete()
            _announce(signals.resubscribed, rows, using)
        return len(rows)


class Unsubscribe(models.Model):
    """An address that is not written to, and why."""

    class Source(models.TextChoices):
        USER = "user", _("opted out")
        BOUNCE = "bounce", _("hard bounce")
        COMPLAINT = "complaint", _("complaint")
        MANUAL = "manual", _("by an operator")

    address = AddressField(_("address"))
    source = models.CharField(
        _("source"), max_length=20, choices=Source.choices, default=Source.MANUAL
    )
    mailing_list = ExactField(
        _("mailing list"),
        max_length=100,
        blank=True,
        default="",
        help_text=_("Empty: all mail of the site."),
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("user"),
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
    )
    # Why, in the words of whoever said so: a server's diagnostic code, the type of a complaint.
    # The database knows the default too: code of the version before this one writes rows
    # while a site is being upgraded.
    detail = models.CharField(
        _("detail"), max_length=MAX_DETAIL_LENGTH, blank=True, default="", db_default=""
    )
    # When `purge` forgets it; empty: never.
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    modified_at = models.DateTimeField(_("modified"), auto_now=True)

    objects = UnsubscribeManager()

    class Meta:
        verbose_name = _("unsubscribe")
        verbose_name_plural = _("unsubscribes")
        constraints = [
            models.UniqueConstraint(
                fields=["address", "source", "mailing_list"],
                name="connect_mailer_unsubscribe_once",
            )
        ]
        indexes = [
            # For the admin: its dates, and the newest of a source.
            models.Index(fields=["created_at"], name="connect_mailer_since"),
            models.Index(fields=["source", "id"], name="connect_mailer_source"),
            # For `purge`: the few that end.
            models.Index(
                fields=["expires_at"],
                name="connect_mailer_ends",
                condition=models.Q(expires_at__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        of_list = f", {self.mailing_list}" if self.mailing_list else ""
        return f"{self.address} ({self.source}{of_list})"


class OutgoingContentManager(models.Manager["OutgoingContent"]):
    """``OutgoingContent.objects``."""

    def release(self, messages: models.QuerySet[OutgoingMessage]) -> None:
        """Forget the bodies of these rows, except where another row needs them."""
        # Those without are left out here: asked for a body, some planners go by the index of
        # all bodies rather than by the keys of a few rows.
        contents = set(messages.values_list("content_id", flat=True)) - {None}
        if not contents:
            return
        messages.update(content=None)
        # Asked first: within the DELETE, MySQL locks what it reads of the rows of others, and two
        # who do that wait for each other. Nothing that is unused is ever used again.
        others = OutgoingMessage.objects.using(messages.db).filter(content__in=contents)
        unused = contents - set(others.values_list("content_id", flat=True))
        # Nothing refers to them any more: no need to collect what would cascade.
        self.using(messages.db).filter(pk__in=unused)._raw_delete(messages.db)


class OutgoingContent(models.Model):
    """The frozen MIME bytes, shared by the rows of one split message."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    mime = models.BinaryField()

    objects = OutgoingContentManager()

    class Meta:
        verbose_name = _("outgoing content")
        verbose_name_plural = _("outgoing contents")

    def __str__(self) -> str:
        return str(self.id)


class OutgoingMessage(models.Model):
    """One row, one call to SES: an envelope on its way."""

    class Status(models.TextChoices):
        QUEUED = "queued", _("queued")
        SENDING = "sending", _("sending")
        SENT = "sent", _("sent")
        FAILED = "failed", _("failed")
        SUPPRESSED = "suppressed", _("suppressed")
        EXPIRED = "expired", _("expired")

    class Stream(models.TextChoices):
        DEFAULT = "default", _("default")
        TRANSACTIONAL = "transactional", _("transactional")

    OPEN = (Status.QUEUED, Status.SENDING)

    uuid = models.UUIDField(unique=True, default=uuid.uuid4, editable=False)
    status = models.CharField(
        _("status"), max_length=12, choices=Status.choices, default=Status.QUEUED
    )
    stream = models.CharField(
        _("stream"), max_length=20, choices=Stream.choices, default=Stream.DEFAULT
    )
    priority = models.PositiveSmallIntegerField(
        _("priority"), default=5, help_text=_("0 leaves first, 9 last.")
    )
    # The order in which rows leave: the transactional stream before all else, then priority.
    rank = models.PositiveSmallIntegerField(default=15, editable=False)
    send_after = models.DateTimeField(_("send after"), null=True, blank=True)
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)
    # When a queued row may be claimed; of a row that is being sent, when its lease ends.
    due_at = models.DateTimeField(_("due"))
    # The rank, while the row stands in line to be claimed; null while it waits for `due_at`
    # and when it is finished, so that who looks for the next row sees no other ones.
    lane = models.PositiveSmallIntegerField(null=True, editable=False)
    # Its place in the lane. It orders only: a row whose turn is in the future may be claimed.
    turn = models.DateTimeField(null=True, editable=False)
    claim = models.UUIDField(null=True, editable=False)
    in_doubt = models.BooleanField(_("in doubt"), default=False)
    attempts = models.PositiveIntegerField(_("attempts"), default=0)

    sender = models.CharField(_("sender"), max_length=MAX_ADDRESS_LENGTH)
    subject = models.CharField(_("subject"), max_length=255, blank=True, default="")
    mailing_list = models.CharField(_("mailing list"), max_length=100, blank=True, default="")
    tags = models.JSONField(_("tags"), default=dict, blank=True)
    content = models.ForeignKey(
        OutgoingContent,
        verbose_name=_("content"),
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="messages",
        db_index=False,
    )
    size = models.PositiveIntegerField(_("size in bytes"), default=0)
    # Recipients that this call would write to: what it costs of the account's rate.
    cost = models.PositiveSmallIntegerField(default=1, editable=False)

    ses_message_id = ExactField(
        _("SES message id"), max_length=MAX_ID_LENGTH, blank=True, default=""
    )
    last_error = models.TextField(_("last error"), blank=True, default="")
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    sent_at = models.DateTimeField(_("sent"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True)

    if TYPE_CHECKING:
        content_id: UUID | None

    class Meta:
        verbose_name = _("outgoing message")
        verbose_name_plural = _("outgoing messages")
        permissions = [
            ("cancel_outgoingmessage", "Can cancel queued messages"),
            ("preview_outgoingmessage", "Can read the body of messages"),
        ]
        # A row is written three times (queued, claimed, settled), and each time to every index
        # that it belongs in: so it belongs in few. SQLite uses one with a condition only where
        # the query says the same, or one of what is joined by OR.
        indexes = [
            models.Index(
                fields=["lane", "turn"],
                name="connect_mailer_in_line",
                condition=models.Q(lane__isnull=False),
            ),
            # What waits for its time; for the admin, what was not sent.
            models.Index(
                fields=["status", "lane", "due_at"],
                name="connect_mailer_unsent",
                condition=(
                    models.Q(status="queued")
                    | models.Q(status="sending")
                    | models.Q(status="failed")
                    | models.Q(status="suppressed")
                    | models.Q(status="expired")
                ),
            ),
            # For the admin: its dates, and all of a day.
            models.Index(fields=["created_at"], name="connect_mailer_created"),
            # For the admin: the few of which it is the answer to a question.
            models.Index(
                fields=["id"], name="connect_mailer_in_doubt", condition=models.Q(in_doubt=True)
            ),
            models.Index(
                fields=["id"],
                name="connect_mailer_urgent",
                condition=models.Q(stream="transactional"),
            ),
            models.Index(
                fields=["finished_at"],
                name="connect_mailer_finished",
                condition=models.Q(finished_at__isnull=False),
            ),
            models.Index(
                fields=["content"],
                name="connect_mailer_body",
                condition=models.Q(content__isnull=False),
            ),
            # Without the second one that Django makes of a text, on PostgreSQL, for LIKE.
            models.Index(
                fields=["ses_message_id"],
                name="connect_mailer_ses_id",
                condition=~models.Q(ses_message_id=""),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.subject or '(no subject)'} ({self.status})"

    @staticmethod
    def has_ses_id(ses_message_id: str) -> models.Q:
        """The condition that finds a row by its SES id, as the index of these has it."""
        return models.Q(ses_message_id=ses_message_id) & ~models.Q(ses_message_id="")


class OutgoingRecipient(models.Model):
    """One recipient of a row, written to or not."""

    class Kind(models.TextChoices):
        TO = "to", "To"
        CC = "cc", "Cc"
        BCC = "bcc", "Bcc"

    class Status(models.TextChoices):
        QUEUED = "queued", _("queued")
        SENT = "sent", _("sent")
        SUPPRESSED = "suppressed", _("suppressed")
        DELIVERED = "delivered", _("delivered")
        BOUNCED = "bounced", _("bounced")
        COMPLAINED = "complained", _("complained")

    message = models.ForeignKey(
        OutgoingMessage, on_delete=models.CASCADE, related_name="recipients"
    )
    # As it is compared; `envelope` is as it was written, and so as SES gets it.
    address = AddressField(_("address"))
    envelope = models.CharField(max_length=MAX_ADDRESS_LENGTH)
    kind = models.CharField(_("kind"), max_length=3, choices=Kind.choices, default=Kind.TO)
    status = models.CharField(
        _("status"), max_length=10, choices=Status.choices, default=Status.QUEUED
    )
    reason = models.TextField(_("reason"), blank=True, default="")

    if TYPE_CHECKING:
        message_id: int

    class Meta:
        verbose_name = _("recipient")
        verbose_name_plural = _("recipients")
        indexes = [models.Index(fields=["address"], name="connect_mailer_recipient")]

    def __str__(self) -> str:
        return f"{self.address} ({self.status})"


class MessageEvent(models.Model):
    """Something in the life of a message that its own row doesn't tell: an attempt that SES did
    not take, what came of it afterwards, what an operator did."""

    class Kind(models.TextChoices):
        POSTPONED = "postponed", _("tried, goes back")
        DOUBT = "doubt", _("no answer")
        FAILED = "failed", _("failed")
        DELIVERED = "delivered", _("delivered")
        DELAYED = "delayed", _("delayed")
        BOUNCED = "bounced", _("bounced")
        SOFT_BOUNCED = "soft", _("bounced, for now")
        COMPLAINED = "complained", _("complained")
        OPENED = "opened", _("opened")
        CLICKED = "clicked", _("clicked")
        OPERATOR = "operator", _("by an operator")

    # Without a constraint: what is written of a row that is being forgotten is no error.
    message = models.ForeignKey(
        OutgoingMessage, on_delete=models.CASCADE, related_name="events", db_constraint=False
    )
    kind = models.CharField(max_length=12, choices=Kind.choices)
    # Of the recipient that it is about; empty: the message.
    address = models.CharField(max_length=MAX_ADDRESS_LENGTH, blank=True, default="")
    at = models.DateTimeField()
    detail = models.TextField(blank=True, default="")

    if TYPE_CHECKING:
        message_id: int

    class Meta:
        verbose_name = _("message event")
        verbose_name_plural = _("message events")
        indexes = [
            # For the guard: how many people bounced or complained.
            models.Index(
                fields=["kind", "at"],
                name="connect_mailer_returned",
                condition=models.Q(kind__in=["bounced", "complained"]),
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} ({self.message_id})"


class Tally(models.Model):
    """How many of each, at a time: rows that are added up and never changed.

    Each settle and each notification inserts its own numbers, so nobody waits for anybody, and
    ``tallies.fold`` makes one row of many: see there. All but ``sent`` and ``failed``
    (messages) are recipients, which is what SES counts.
    """

    at = models.DateTimeField()
    # Seconds that the row stands for, from `at`; 0: a moment, and not folded yet.
    span = models.PositiveIntegerField(default=0)
    stream = models.CharField(max_length=20)
    # Of bounces and complaints by domain, which are counted without a domain as well.
    domain = models.CharField(max_length=255, blank=True, default="")
    sent = models.PositiveIntegerField(_("sent"), default=0)
    failed = models.PositiveIntegerField(_("failed"), default=0)
    written = models.PositiveIntegerField(_("recipients"), default=0)
    suppressed = models.PositiveIntegerField(_("suppressed"), default=0)
    delivered = models.PositiveIntegerField(_("delivered"), default=0)
    bounced = models.PositiveIntegerField(_("bounced"), default=0)
    soft_bounced = models.PositiveIntegerField(_("bounced, for now"), default=0)
    complained = models.PositiveIntegerField(_("complained"), default=0)

    class Meta:
        verbose_name = _("tally")
        verbose_name_plural = _("tallies")
        indexes = [models.Index(fields=["span", "at"], name="connect_mailer_tally_span")]

    def __str__(self) -> str:
        return f"{self.at} ({self.stream})"


class Health(Tally):
    """The health page of the admin: no table of its own, but a name and permissions."""

    class Meta:
        proxy = True
        default_permissions = ("view",)
        permissions = [("pause_health", "Can pause and resume sending")]
        verbose_name = _("mail health")
        verbose_name_plural = _("mail health")


class NotificationReceipt(models.Model):
    """An SNS notification (or a task of an older app) that was taken: a second delivery of it
    changes nothing."""

    message_id = ExactField(_("SNS message id"), max_length=100, unique=True)
    received_at = models.DateTimeField(_("received"), auto_now_add=True, db_index=True)

    class Meta:
        verbose_name = _("notification receipt")
        verbose_name_plural = _("notification receipts")

    def __str__(self) -> str:
        return self.message_id


class Lease(models.Model):
    """Something that one process of the site may do at a time, until ``expires_at``.

    The database's clock decides, and an expired lease is free: nothing has to be cleaned up
    after a process that died.
    """

    name = models.CharField(primary_key=True, max_length=50)
    holder = models.UUIDField()
    since = models.DateTimeField(null=True)
    expires_at = models.DateTimeField()
    note = models.TextField(blank=True, default="")

    class Meta:
        verbose_name = _("lease")
        verbose_name_plural = _("leases")

    def __str__(self) -> str:
        return self.name


class LimiterState(models.Model):
    """The shared limiter of a site without Redis: one row, locked for each reservation.

    Times are microseconds of the database's clock since 1970.
    """

    name = models.CharField(primary_key=True, max_length=50)
    arrival_us = models.BigIntegerField(default=0)
    slowdown = models.PositiveSmallIntegerField(default=0)
    slowdown_us = models.BigIntegerField(default=0)

    class Meta:
        verbose_name = _("limiter state")
        verbose_name_plural = _("limiter states")

    def __str__(self) -> str:
        return self.name


def find_user_ids(keys: Collection[str]) -> dict[str, Any]:
    """The keys of the site's users who have these normalised addresses, by address."""
    user_model = get_user_model()
    using = router.db_for_read(user_model)
    statement = look_for_users(keys, using)
    if statement is None:
        return read_user_ids(_ask_for_users(user_model, keys).using(using))
    with connections[using].cursor() as cursor:
        cursor.execute(*statement)
        return read_user_ids(cursor.fetchall())


def look_for_users(keys: Collection[str], using: str) -> Statement | None:
    """The statement that finds what ``read_user_ids`` reads.

    ``None`` where the site's manager shows some of its users only: then Django has to make the
    statement each time, which takes longer than all else that a notification needs.
    """
    from connect_mailer.statements import mark

    user_model = get_user_model()
    shown = user_model._default_manager.get_queryset().query
    if not keys or shown.where or shown.annotations or shown.extra or shown.is_sliced:
        return None
    sql = _write_look_for_users(user_model, using)
    if connections[using].vendor == "postgresql":
        return sql.replace("IN (%s)", "= ANY (%s)"), [[*keys]]
    return sql.replace("(%s)", f"({mark(keys)})"), [*keys]


@functools.cache
def _write_look_for_users(user_model: type[models.Model], using: str) -> str:
    query = _ask_for_users(user_model, ["one"]).query
    return str(query.get_compiler(using).as_sql()[0])


def _ask_for_users(
    user_model: type[Any], keys: Collection[str]
) -> models.QuerySet[Any, tuple[Any, str]]:
    field = user_model.get_email_field_name()
    users = user_model._default_manager.annotate(lower_email=Lower(field))
    found: models.QuerySet[Any, tuple[Any, str]] = (
        users.filter(lower_email__in=keys).order_by("-pk").values_list("pk", field)
    )
    return found


def read_user_ids(rows: Iterable[tuple[Any, str]]) -> dict[str, Any]:
    """Users' keys by normalised address, of their keys and addresses."""
    from connect_mailer.addresses import find_key

    found: dict[str, Any] = {}
    for pk, email in rows:
        # The database folds more than ASCII letters: compare as addresses are compared.
        key = find_key(email)
        if key is not None:
            found[key] = pk
    return found


def _announce(signal: Signal, rows: Collection[Unsubscribe], using: str) -> None:
    def send() -> None:
        for row in rows:
            signal.send_robust(
                sender=Unsubscribe, address=row.address, mailing_list=row.mailing_list
            )

    transaction.on_commit(send, using=using, robust=True)
