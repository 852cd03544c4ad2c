"""AWS's side of the chain, as the doctor looks at it: credentials, account, senders, feedback."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from email.utils import parseaddr
from typing import Any, Final

from django.conf import settings

from connect_mailer import addresses
from connect_mailer.account import identities
from connect_mailer.account.aws import AWS, get_date
from connect_mailer.account.findings import Finding, error, note, ok, warning
from connect_mailer.account.site import compare_clocks, get_webhook_url, read_date
from connect_mailer.conf import conf
from connect_mailer.exceptions import AccountError, ConfigurationError, InvalidAddress

# What has to come back, and what lets the outbox settle calls that are in doubt.
FEEDBACK_EVENTS: Final = frozenset({"BOUNCE", "COMPLAINT"})
SETTLING_EVENTS: Final = frozenset({"SEND", "DELIVERY"})
# SNS tries for this long at most, and should. Source: Amazon SNS developer guide, "Amazon SNS
# message delivery retries", HTTP/S: total at most 3,600 s.
RETRY_SECONDS: Final = 3600.0

# What sending needs.
SENDING_ACTIONS: Final = ("ses:SendEmail", "ses:SendRawEmail", "ses:GetAccount")
# What the doctor needs beyond, to read; it goes without what it may not ask.
READING_ACTIONS: Final = (
    "ses:GetEmailIdentity",
    "ses:GetConfigurationSetEventDestinations",
    "ses:GetIdentityNotificationAttributes",
    "sns:GetTopicAttributes",
    "sns:ListSubscriptionsByTopic",
    "sns:GetSubscriptionAttributes",
)

# What to do about credentials that AWS refuses, by its code.
# Source: AWS, "Common error types"; IAM user guide, "Troubleshoot Signature Version 4 signing".
_UNKNOWN_KEY: Final = (
    "AWS knows no such key: see that AWS_ACCESS_KEY_ID is whole, and the key not deleted or "
    "inactive; a temporary one needs its AWS_SESSION_TOKEN, too."
)
_NO_MATCH: Final = (
    "See that AWS_SECRET_ACCESS_KEY is whole, and that of AWS_ACCESS_KEY_ID. A password for "
    "SES's SMTP is none. If it is right, look at this machine's clock."
)
_EXPIRED: Final = (
    "The time of AWS_SESSION_TOKEN is over. Give a new one, or let the role of this machine do: "
    "that is renewed by itself."
)
_MENDS: Final = {
    "InvalidClientTokenId": _UNKNOWN_KEY,
    "UnrecognizedClientException": _UNKNOWN_KEY,
    "InvalidSignatureException": _NO_MATCH,
    "SignatureDoesNotMatch": _NO_MATCH,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
}


def make_policy(*, reads: bool) -> str:
    """The smallest IAM policy, as JSON: to send, and with ``reads`` for the doctor, too."""
    actions = [*SENDING_ACTIONS, *(READING_ACTIONS if reads else ())]
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]}, indent=2)


def examine_aws(aws: AWS) -> Iterator[Finding]:
    """All of AWS's side. What the credentials don't allow is named, and the rest goes on."""
    try:
        account = aws.call("sesv2", "GetAccount")
    except AccountError as failure:
        if not failure.is_denied:
            yield error(
                "credentials",
                str(failure),
                _MENDS.get(
                    failure.code,
                    "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role of this "
                    "machine, and that it reaches AWS.",
                ),
            )
            return
        yield from _tell_denied(failure)
        yield note(
            "rate",
            f"The account's rate is unknown, so the site sends {_get_rate() or 1:g} recipients/s.",
            'Allow ses:GetAccount, or set CONNECT_MAILER["RATE"].',
        )
    else:
        yield ok("credentials", "SES takes the credentials.")
        yield from _examine_clock(account)
        yield from _examine_account(account)
    if conf.ses.region:
        yield ok("region", f"Mail is sent from {aws.region}.")
    else:
        yield note(
            "region",
            f"No region is set, and mail is sent from {aws.region}.",
            'Set CONNECT_MAILER["SES_REGION"], so that it can\'t change by itself.',
        )
    examinations: tuple[Callable[[AWS], Iterator[Finding]], ...] = (
        _examine_senders,
        _examine_publishing,
        _examine_topics,
    )
    for examine in examinations:
        try:
            yield from examine(aws)
        except AccountError as failure:
            if failure.is_denied:
                yield from _tell_denied(failure)
            else:
                yield error("aws", str(failure), "AWS's words say what is wrong.")


def _tell_denied(failure: AccountError) -> Iterator[Finding]:
    yield warning(
        "policy",
        f"The credentials don't allow {failure.action}.",
        "manage.py mailer_doctor --policy prints a policy that does.",
    )


def _examine_clock(answer: Mapping[str, Any]) -> Iterator[Finding]:
    seconds = read_date(get_date(answer))
    if seconds is not None:
        yield from compare_clocks("AWS's", seconds)


def _examine_account(account: Mapping[str, Any]) -> Iterator[Finding]:
    if account["ProductionAccessEnabled"]:
        yield ok("sandbox", "The account has production access.")
    else:
        yield error(
            "sandbox",
            "The account is in the sandbox: it may write to verified addresses only.",
            "Ask for production access in the SES console, in this region.",
        )
    standing = str(account.get("EnforcementStatus", "HEALTHY"))
    if not account["SendingEnabled"]:
        yield error(
            "sending",
            f"Sending is off for this account (its standing: {standing}).",
            "See the SES console's reputation page and the mail that AWS sent you.",
        )
    elif standing != "HEALTHY":
        yield warning(
            "sending",
            f"The account's standing is {standing}: AWS looks at its bounces and complaints.",
            "See the SES console's reputation page.",
        )
    else:
        yield ok("sending", "Sending is on, and the account is in good standing.")
    quota = account["SendQuota"]
    limit, sent = float(quota["Max24HourSend"]), float(quota["SentLast24Hours"])
    if 0 <= limit <= sent:
        yield error(
            "quota",
            f"The quota of {limit:,.0f} recipients in 24 hours is used up.",
            "Mail waits until some of it is free again; ask AWS for a higher one.",
        )
    allowed, wanted = float(quota["MaxSendRate"]), _get_rate()
    if wanted and wanted > allowed:
        yield note(
            "rate",
            f"RATE is {wanted:g}, and SES allows {allowed:g} recipients/s: it sends no faster.",
            'Leave RATE at "auto", or ask AWS for a higher one.',
        )
    else:
        yield ok("rate", f"It sends {wanted or allowed:g} of {allowed:g} recipients/s.")


def _get_rate() -> float | None:
    try:
        return None if conf.rate == "auto" else conf.rate
    except ConfigurationError:
        return None


def _examine_senders(aws: AWS) -> Iterator[Finding]:
    seen = set()
    for name in ("DEFAULT_FROM_EMAIL", "SERVER_EMAIL"):
        sender = parseaddr(str(getattr(settings, name, "")))[1]
        if name == "SERVER_EMAIL" and not settings.ADMINS:
            continue  # nothing is sent from it
        try:
            key = addresses.normalise(sender)
        except InvalidAddress as failure:
            yield error("sender", f"{name}: {failure}", f"Set {name} to an address of the site.")
            continue
        found = identities.find_for(aws, key)
        if found is None:
            yield error(
                "sender",
                f"{name} is {key}, and SES in {aws.region} knows neither it nor its domain.",
                f"manage.py ses_address verify {key.rpartition('@')[2]}",
            )
        elif not found[1].get("VerifiedForSendingStatus"):
            yield error(
                "sender",
                f"{name} is {key}, and {found[0]} is not verified yet.",
                f"manage.py ses_address verify {found[0]} shows again what to do.",
            )
        else:
            yield ok("sender", f"{name} is {key}, and {found[0]} is verified.")
            if found[0] not in seen:
                yield from _examine_authentication(*found)
            seen.add(found[0])


def _examine_authentication(name: str, identity: Mapping[str, Any]) -> Iterator[Finding]:
    dkim = identity.get("DkimAttributes", {})
    if dkim.get("SigningEnabled") and dkim.get("Status") == "SUCCESS":
        yield ok("dkim", f"Mail from {name} is signed (DKIM).")
    else:
        yield warning(
            "dkim",
            f"Mail from {name} is not signed: DKIM is {dkim.get('Status', 'off')}.",
            f"Add the DNS records that manage.py ses_address verify {name} prints. Gmail and "
            "Yahoo ask bulk senders for it.",
        )
    mail_from = identity.get("MailFromAttributes", {})
    if not mail_from.get("MailFromDomain"):
        yield note(
            "mail-from",
            f"{name} has no MAIL FROM domain of its own, so SPF is amazonses.com's.",
            "DKIM alone satisfies DMARC; a custom MAIL FROM domain adds SPF.",
        )
    elif mail_from.get("MailFromDomainStatus") != "SUCCESS":
        yield warning(
            "mail-from",
            f"The MAIL FROM domain {mail_from['MailFromDomain']} of {name} is "
            f"{mail_from.get('MailFromDomainStatus')}.",
            "Check its MX and TXT records as the SES console shows them.",
        )
    else:
        yield ok("mail-from", f"The MAIL FROM domain of {name} is set up.")


def _examine_publishing(aws: AWS) -> Iterator[Finding]:
    """Whether SES publishes feedback to a topic that this site listens to."""
    topics = set(conf.topic_arns)
    by_set = yield from _examine_configuration_set(aws, topics)
    by_identity = _find_notification_topics(aws)
    listened = by_identity & topics
    if by_set and listened:
        yield warning(
            "events",
            "SES publishes feedback both by the configuration set and by the identity, so each "
            "bounce comes twice.",
            "Take the notification topics off the identity.",
        )
    elif listened:
        yield note(
            "events",
            "SES publishes bounces and complaints by the identity's notification topics.",
            "A configuration set also settles calls that are in doubt: manage.py mailer_doctor "
            "--setup --topic NAME makes one.",
        )
    elif not by_set and not conf.ses.configuration_set:
        yield error(
            "events",
            "SES publishes no bounces and complaints to this site.",
            "manage.py mailer_doctor --setup --topic NAME sets it up.",
        )


def _examine_configuration_set(aws: AWS, topics: set[str]) -> Generator[Finding, None, bool]:
    """Findings; returns whether feedback comes by the configuration set."""
    name = conf.ses.configuration_set
    if not name:
        return False
    try:
        answer = aws.call(
            "sesv2", "GetConfigurationSetEventDestinations", ConfigurationSetName=name
        )
    except AccountError as failure:
        if not failure.is_missing:
            raise
        yield error(
            "configuration-set",
            f"There is no configuration set {name!r} in {aws.region}: SES refuses all mail.",
            "manage.py mailer_doctor --setup --topic NAME makes it; or mend "
            'CONNECT_MAILER["SES_CONFIGURATION_SET"].',
        )
        return False
    yield ok("configuration-set", f"The configuration set {name!r} exists.")
    published: set[str] = set()
    foreign: set[str] = set()
    for destination in answer.get("EventDestinations", ()):
        arn = destination.get("SnsDestination", {}).get("TopicArn")
        if arn in topics and destination.get("Enabled"):
            published.update(destination.get("MatchingEventTypes", ()))
        elif arn:
            foreign.add(arn)
    missing = FEEDBACK_EVENTS - published
    if missing:
        hint = f" It publishes to {', '.join(sorted(foreign))}, which is not in it." * bool(foreign)
        yield error(
            "events",
            f"The configuration set {name!r} publishes no {' and no '.join(sorted(missing))} to "
            f"a topic in BOUNCY_TOPIC_ARN.{hint}",
            "manage.py mailer_doctor --setup --topic NAME sets it up.",
        )
        return False
    if SETTLING_EVENTS & published:
        yield ok("events", "Feedback comes by the configuration set, and settles what is in doubt.")
    else:
        yield note(
            "events",
            "Feedback comes by the configuration set, without SEND or DELIVERY.",
            "With one of them, calls that got no answer settle by themselves.",
        )
    return True


def _find_notification_topics(aws: AWS) -> set[str]:
    """The topics to which the sender's identities publish bounces and complaints."""
    sender = parseaddr(str(settings.DEFAULT_FROM_EMAIL))[1]
    names = [name for name in (sender, sender.rpartition("@")[2]) if name]
    answer = aws.call("ses", "GetIdentityNotificationAttributes", Identities=names)
    return {
        arn
        for one in answer.get("NotificationAttributes", {}).values()
        for arn in (one.get("BounceTopic"), one.get("ComplaintTopic"))
        if arn
    }


def _examine_topics(aws: AWS) -> Iterator[Finding]:
    try:
        url = get_webhook_url()
    except ConfigurationError:
        return
    for arn in conf.topic_arns:
        try:
            aws.call("sns", "GetTopicAttributes", TopicArn=arn)
        except AccountError as failure:
            if failure.is_denied:
                yield from _tell_denied(failure)
            else:
                yield error(
                    "topic",
                    f"The topic {arn} of BOUNCY_TOPIC_ARN can't be had: {failure}",
                    "Mend BOUNCY_TOPIC_ARN; mind region and account.",
                )
                continue
        else:
            yield ok("topic", f"The topic {arn} exists.")
        if url:
            yield from _examine_subscription(aws, arn, url)


def _examine_subscription(aws: AWS, topic: str, url: str) -> Iterator[Finding]:
    found = [
        subscription
        for page in aws.pages("sns", "ListSubscriptionsByTopic", TopicArn=topic)
        for subscription in page.get("Subscriptions", ())
        if subscription.get("Endpoint") == url
    ]
    if not found:
        yield error(
            "subscription",
            f"{topic} has no subscription of {url}: feedback doesn't come in.",
            "manage.py mailer_doctor --setup --topic NAME subscribes it, with "
            "BOUNCY_AUTO_SUBSCRIBE = True for as long as it takes.",
        )
        return
    arn = str(found[0]["SubscriptionArn"])
    if not arn.startswith("arn:"):
        yield error(
            "subscription",
            f"The subscription of {url} waits to be confirmed.",
            "Set BOUNCY_AUTO_SUBSCRIBE = True, and subscribe once more.",
        )
        return
    attributes = aws.call("sns", "GetSubscriptionAttributes", SubscriptionArn=arn)["Attributes"]
    if attributes.get("RawMessageDelivery") == "true":
        yield error(
            "subscription",
            f"The subscription of {url} delivers raw messages, without a signature, and the site "
            "refuses what it can't verify.",
            "Set its RawMessageDelivery to false.",
        )
    else:
        yield ok("subscription", f"{url} is subscribed.")
    seconds = get_retry_seconds(
        attributes.get("DeliveryPolicy") or attributes.get("EffectiveDeliveryPolicy") or "{}"
    )
    if seconds < RETRY_SECONDS / 2:
        yield warning(
            "delivery-policy",
            f"SNS gives up after {seconds:.0f} s: a deployment at the wrong moment would lose "
            "a complaint.",
            "manage.py mailer_doctor --setup sets a delivery policy of an hour.",
        )
    else:
        yield ok("delivery-policy", f"SNS tries for {seconds / 60:.0f} minutes.")
    if attributes.get("RedrivePolicy"):
        yield ok("dead-letter-queue", "What SNS gives up is kept in a dead-letter queue.")
    else:
        yield warning(
            "dead-letter-queue",
            "What SNS gives up is lost: the subscription has no dead-letter queue.",
            "manage.py mailer_doctor --setup makes one.",
        )


def get_retry_seconds(policy: str) -> float:
    """For how long SNS tries by a delivery policy (JSON).

    The steps between the shortest and the longest delay are counted as their mean.
    Source: Amazon SNS developer guide, "Creating an HTTP/S delivery policy".
    """
    try:
        data = json.loads(policy)
    except ValueError:
        return 0.0
    http = data.get("http", {})
    retry = (
        data.get("healthyRetryPolicy")
        or http.get("defaultHealthyRetryPolicy")
        or http.get("healthyRetryPolicy")
        or {}
    )
    shortest = float(retry.get("minDelayTarget", 20))
    longest = float(retry.get("maxDelayTarget", 20))
    total = int(retry.get("numRetries", 3))
    at_shortest = int(retry.get("numMinDelayRetries") or 0)
    at_longest = int(retry.get("numMaxDelayRetries") or 0)
    at_once = int(retry.get("numNoDelayRetries") or 0)
    between = max(total - at_shortest - at_longest - at_once, 0)
    return at_shortest * shortest + at_longest * longest + between * (shortest + longest) / 2
