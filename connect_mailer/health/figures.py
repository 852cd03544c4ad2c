"""The numbers of the health page: sums of small tables, never a look through the outbox."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, cast

from django.db.models import Case, Count, Min, Q, Sum, Value, When
from django.utils import timezone

from connect_mailer import tallies
from connect_mailer.models import OutgoingMessage, Tally
from connect_mailer.sending.outbox import FIRST_DEFAULT_LANE

Stream = OutgoingMessage.Stream

DAYS: Final = 30
# SES looks at a "representative volume"; where it is as large as this, so do we.
LAST_RECIPIENTS: Final = 10_000
# Fewer recipients say nothing: one bounce of three is a third.
MIN_RECIPIENTS: Final = 1000
# Mail that is due for longer, while none is sent, stands still.
STILL_SECONDS: Final = 900
# What waits is counted up to here.
MAX_WAITING: Final = 1_000_000
MAX_DOMAINS: Final = 10


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Shares of the recipients at which AWS acts: above them, for long enough."""

    bounces: float
    complaints: float


# Source: SES developer guide, "Sending review process FAQs" (bounce and complaint rates).
REVIEW: Final = Limits(bounces=0.05, complaints=0.001)
SUSPENSION: Final = Limits(bounces=0.10, complaints=0.005)


class Standing(StrEnum):
    """What a rate is against ``REVIEW`` and ``SUSPENSION``."""

    UNKNOWN = "unknown"
    GOOD = "good"
    REVIEW = "review"
    SUSPENSION = "suspension"


@dataclass(frozen=True, kw_only=True)
class Window:
    """What came back of the mail of some time. Numbers are recipients; rates shares of them."""

    written: int
    bounced: int
    complained: int
    since: datetime | None = None

    @property
    def bounce_rate(self) -> float:
        """Hard bounces for each recipient written to."""
        return self.bounced / self.written if self.written else 0.0

    @property
    def complaint_rate(self) -> float:
        """Complaints for each recipient written to."""
        return self.complained / self.written if self.written else 0.0

    @property
    def bounce_standing(self) -> Standing:
        """Of the bounce rate."""
        return self._judge(self.bounce_rate, REVIEW.bounces, SUSPENSION.bounces)

    @property
    def complaint_standing(self) -> Standing:
        """Of the complaint rate."""
        return self._judge(self.complaint_rate, REVIEW.complaints, SUSPENSION.complaints)

    def _judge(self, rate: float, review: float, suspension: float) -> Standing:
        if self.written < MIN_RECIPIENTS:
            return Standing.UNKNOWN
        if rate >= suspension:
            return Standing.SUSPENSION
        return Standing.REVIEW if rate >= review else Standing.GOOD


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """The open rows of one stream: those that could be sent now, and those that couldn't."""

    stream: str
    ready: int
    later: int
    oldest: datetime | None

    @property
    def is_more(self) -> bool:
        """Whether there are more than were counted."""
        return max(self.ready, self.later) >= MAX_WAITING


@dataclass(frozen=True, kw_only=True)
class Point:
    """The counts of one day, or of five minutes (``seconds`` long)."""

    at: datetime | date
    seconds: int
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def window(self) -> Window:
        """Its rates."""
        return _make_window(self.counts)

    @property
    def rate(self) -> float:
        """Recipients a second."""
        return self.counts["written"] / self.seconds


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was counted in the last ``DAYS`` days."""

    day: dict[str, Counter[str]]  # the last 24 hours, by stream
    moving: frozenset[str]  # streams of which some was sent within ``STILL_SECONDS``
    last_day: Window
    last_week: Window
    last_recipients: Window
    days: Sequence[Point]
    hour: Sequence[Point]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(any(day.counts.values()) for day in self.days)

    @property
    def is_hour_empty(self) -> bool:
        """Whether nothing was written in the last hour."""
        return not any(point.counts["written"] for point in self.hour)


def load(*, using: str) -> Figures:
    """Read the tallies of the last ``DAYS`` days, about a row an hour and stream."""
    now = timezone.now()
    today = _to_date(now)
    days = {
        day: Point(at=day, seconds=tallies.DAY)
        for day in (today - timedelta(days=DAYS - 1 - number) for number in range(DAYS))
    }
    hour = _make_hour(now)
    by_stream: dict[str, Counter[str]] = {stream.value: Counter() for stream in Stream}
    day, week, last = Counter[str](), Counter[str](), Counter[str]()
    moving: set[str] = set()
    since = None
    for at, stream, counts in _read(now, using):
        # What was counted by five minutes is told by their beginning.
        if counts["written"] and at >= now - timedelta(seconds=STILL_SECONDS + tallies.MINUTES):
            moving.add(stream)
        if at >= now - timedelta(days=1):
            day.update(counts)
            by_stream.setdefault(stream, Counter()).update(counts)
        if at >= now - timedelta(days=7):
            week.update(counts)
        if last["written"] < LAST_RECIPIENTS:
            last.update(counts)
            since = at
        if (date := _to_date(at)) in days:
            days[date].counts.update(counts)
        _count_hour(hour, at, counts)
    return Figures(
        day=by_stream,
        moving=frozenset(moving),
        last_day=_make_window(day, now - timedelta(days=1)),
        last_week=_make_window(week, now - timedelta(days=7)),
        last_recipients=_make_window(last, since),
        days=list(days.values()),
        hour=hour,
    )


def load_hour(*, using: str) -> list[Point]:
    """The last hour alone, as of ``load``."""
    now = timezone.now()
    hour = _make_hour(now)
    for at, _stream, counts in _read(now, using, since=cast(datetime, hour[0].at)):
        _count_hour(hour, at, counts)
    return hour


def _make_hour(now: datetime) -> list[Point]:
    starts = _list_minutes(now)
    # The last one is going on. At its beginning a few recipients would be a great rate.
    elapsed = max(int((now - starts[-1]).total_seconds()), 60)
    return [
        *(Point(at=start, seconds=tallies.MINUTES) for start in starts[:-1]),
        Point(at=starts[-1], seconds=elapsed),
    ]


def _count_hour(hour: Sequence[Point], at: datetime, counts: dict[str, int]) -> None:
    start = cast(datetime, hour[0].at)
    if at >= start:
        hour[(at - start) // timedelta(minutes=5)].counts.update(counts)


def load_last_recipients(*, using: str) -> Window:
    """The last ``LAST_RECIPIENTS``, or those of ``DAYS`` days where it were fewer."""
    last = Counter[str]()
    since = None
    for at, _stream, counts in _read(timezone.now(), using):
        if last["written"] >= LAST_RECIPIENTS:
            break
        last.update(counts)
        since = at
    return _make_window(last, since)


def find_waiting(*, using: str) -> list[Waiting]:
    """What each stream has to send, told by indexes alone."""
    rows = OutgoingMessage.objects.using(using)
    by_stream = Counter[str]()
    for status in OutgoingMessage.OPEN:  # one range of the index for each
        later = rows.filter(status=status, lane=None).order_by().values("stream")[:MAX_WAITING]
        by_stream.update(
            later.aggregate(
                **{stream.value: Count("stream", filter=Q(stream=stream)) for stream in Stream}
            )
        )
    found = []
    for stream, lanes in (
        (Stream.TRANSACTIONAL, {"lane__gte": 0, "lane__lt": FIRST_DEFAULT_LANE}),
        (Stream.DEFAULT, {"lane__gte": FIRST_DEFAULT_LANE}),
    ):
        line = rows.filter(**lanes).values("turn")[:MAX_WAITING]
        ready = line.aggregate(number=Count("turn"), oldest=Min("turn"))
        found.append(
            Waiting(
                stream=stream,
                ready=ready["number"],
                later=by_stream[stream],
                oldest=ready["oldest"],
            )
        )
    return found


def find_bouncing_domains(*, using: str) -> list[Any]:
    """The domains with most hard bounces and complaints in the last ``DAYS`` days."""
    return list(
        Tally.objects.using(using)
        .filter(at__gte=timezone.now() - timedelta(days=DAYS))
        .exclude(domain="")
        .values("domain")
        .annotate(
            bounces=Sum("bounced"), soft_bounces=Sum("soft_bounced"), complaints=Sum("complained")
        )
        .order_by("-bounces", "-complaints", "domain")[:MAX_DOMAINS]
    )


def _read(
    now: datetime, using: str, *, since: datetime | None = None
) -> Iterator[tuple[datetime, str, dict[str, int]]]:
    """When, of which stream, and how many of each; newest first, of ``DAYS`` days."""
    rows = Tally.objects.using(using).filter(domain="").order_by()
    sums = {name: Sum(name) for name in tallies.COUNTS}
    starts = _list_minutes(now)
    # There may be many of the last minutes: the database adds them up.
    minutes = (
        rows.filter(span=tallies.MOMENT)
        .annotate(
            place=Case(
                *(
                    When(at__gte=start, then=Value(place))
                    for place, start in reversed(list(enumerate(starts)))
                ),
                default=Value(-1),
            )
        )
        .values("place", "stream")
        .annotate(first=Min("at"), **sums)
    )
    folded = (
        rows.exclude(span=tallies.MOMENT)
        .filter(at__gte=since or now - timedelta(days=DAYS))
        .values("at", "stream")
        .annotate(**sums)
    )
    found: list[tuple[datetime, Any]] = [
        (starts[row["place"]] if row["place"] >= 0 else row["first"], row) for row in minutes
    ] + [(row["at"], row) for row in folded]
    for at, row in sorted(found, key=lambda pair: pair[0], reverse=True):
        yield at, row["stream"], {name: row[name] for name in tallies.COUNTS}


def _list_minutes(now: datetime) -> list[datetime]:
    """Where the spans of the last hour begin, and the one that is going on."""
    last = tallies.floor(now, tallies.MINUTES)
    return [last - timedelta(minutes=5 * number) for number in range(12, -1, -1)]


def _to_date(at: datetime) -> date:
    return timezone.localtime(at).date() if timezone.is_aware(at) else at.date()


def _make_window(counts: Counter[str], since: datetime | None = None) -> Window:
    return Window(
        written=counts["written"],
        bounced=counts["bounced"],
        complained=counts["complained"],
        since=since,
    )
