"""Readers who opt out through SES's own subscription management."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from connect_mailer import signals
from connect_mailer.models import Unsubscribe
from connect_mailer.testing.sns import make_event, make_mail

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def contact_list(settings):
    settings.CONNECT_MAILER = {"SES_CONTACT_LIST": "readers"}


def _choices(*left, every=False):
    return {
        "unsubscribeAll": every,
        "topicSubscriptionStatus": [
            {"topicName": name, "subscriptionStatus": "OptOut" if name in left else "OptIn"}
            for name in ("digest", "news")
        ],
    }


@pytest.fixture
def tell(post, signer):
    def tell(new, old, *, to=("Ada@Example.com",), contact_list="readers", hours=1):
        at = None
        if hours is not None:
            at = (datetime.now(UTC) + timedelta(hours=hours)).isoformat(timespec="milliseconds")
        event = make_event(
            "Subscription",
            {
                "contactList": contact_list,
                "timestamp": at,
                "source": "UnsubscribeHeader",
                "newTopicPreferences": new,
                "oldTopicPreferences": old,
            },
            mail=make_mail(to),
        )
        assert post(signer.notification(event)).status_code == 200
        return set(Unsubscribe.objects.values_list("address", "source", "mailing_list"))

    return tell


def test_out_of_a_topic_and_back(tell):
    assert tell(_choices("digest"), _choices()) == {("ada@example.com", "user", "digest")}
    # The same again, as SNS may.
    assert tell(_choices("digest"), _choices()) == {("ada@example.com", "user", "digest")}
    assert tell(_choices(), _choices("digest")) == set()


def test_out_of_everything_and_back(tell):
    assert tell(_choices(every=True), _choices()) == {("ada@example.com", "user", "")}
    assert tell(_choices("news"), _choices(every=True)) == {("ada@example.com", "user", "news")}


# SNS keeps no order.


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
@pytest.mark.parametrize("use_tz", [True, False])
def test_an_older_event_takes_no_newer_opt_out_back(tell, settings, use_tz, zone):
    settings.USE_TZ, settings.TIME_ZONE = use_tz, zone
    Unsubscribe.objects.opt_out("ada@example.com", "digest")
    out = {("ada@example.com", "user", "digest")}
    assert tell(_choices(), _choices("digest"), hours=-1) == out
    assert tell(_choices(), _choices("digest"), hours=1) == set()


@pytest.mark.parametrize("use_tz", [True, False])
def test_late_events_are_judged_by_when_they_happened(tell, settings, use_tz):
    settings.USE_TZ, settings.TIME_ZONE = use_tz, "Asia/Tokyo"
    out = {("ada@example.com", "user", "digest")}
    assert tell(_choices("digest"), _choices(), hours=-48) == out
    assert tell(_choices(), _choices("digest"), hours=-49) == out
    assert tell(_choices("digest"), _choices(), hours=-50) == out  # older than what is known
    assert tell(_choices(), _choices("digest"), hours=-49) == out
    assert tell(_choices(), _choices("digest"), hours=-47) == set()


def test_an_event_without_a_time_takes_nothing_back(tell):
    out = {("ada@example.com", "user", "digest")}
    assert tell(_choices("digest"), _choices(), hours=None) == out
    assert tell(_choices(), _choices("digest"), hours=None) == out


def test_who_opts_out_again_is_out_from_then_on(tell):
    Unsubscribe.objects.opt_out("ada@example.com", "digest")
    two_days_ago = datetime.now(UTC) - timedelta(days=2)
    Unsubscribe.objects.update(created_at=two_days_ago, modified_at=two_days_ago)
    assert not Unsubscribe.objects.opt_out("ada@example.com", "digest")
    out = {("ada@example.com", "user", "digest")}
    assert tell(_choices(), _choices("digest"), hours=-24) == out
    assert tell(_choices(), _choices("digest"), hours=1) == set()


def test_what_was_left_elsewhere_stays_left(tell):
    Unsubscribe.objects.opt_out("ada@example.com")
    Unsubscribe.objects.suppress("ada@example.com", "complaint")
    left = {("ada@example.com", "user", ""), ("ada@example.com", "complaint", "")}
    assert tell(_choices(), _choices("digest")) == left


@pytest.mark.parametrize(
    "changes",
    [{"contact_list": "of another site"}, {"to": ["a@example.com", "b@example.com"]}, {"to": []}],
)
def test_what_is_not_about_a_reader_of_this_site(tell, changes):
    assert tell(_choices(every=True), _choices(), **changes) == set()


@pytest.mark.parametrize(
    "new", [None, "all", {"topicSubscriptionStatus": [None, {}, {"subscriptionStatus": "OptOut"}]}]
)
def test_what_can_not_be_understood_changes_nothing(tell, new):
    assert tell(new, new) == set()


def test_more_topics_than_a_list_has(tell):
    topics = [{"topicName": str(n), "subscriptionStatus": "OptOut"} for n in range(1000)]
    assert len(tell({"topicSubscriptionStatus": topics}, None)) == 100


def test_only_where_the_option_is_on(tell, settings):
    settings.CONNECT_MAILER = {}
    assert tell(_choices(every=True), _choices()) == set()


def test_the_site_is_told(tell, django_capture_on_commit_callbacks):
    heard = []

    def hear(address, mailing_list, **kwargs):
        heard.append((address, mailing_list))

    signals.unsubscribed.connect(hear)
    with django_capture_on_commit_callbacks(execute=True):
        tell(_choices("news"), _choices())
    assert heard == [("ada@example.com", "news")]
