"""What an operator's commands ask of AWS, beside sending: the rest of the local SES.

Identities, configuration sets and the account's suppression list of the SES API v2, the
notification topics of v1, and as much of SNS, SQS and STS as it takes to see and to set up how
feedback comes back. It is state that a test may read and change:

    ses.account.identities["example.com"] = LocalIdentity(is_verified=False)
    ses.account.denied.add("sns:ListSubscriptionsByTopic")
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

from connect_mailer.testing.http import Answer, Request

ACCOUNT_ID: Final = "123456789012"
# The HTTP status of an error where it is not 400.
# Source: service model of sesv2, and "Common Error Types" of the SES API v2 reference.
_STATUS: Final = {
    "TooManyRequestsException": 429,
    "NotFound": 404,
    "NotFoundException": 404,
    "UnknownOperationException": 404,
    "InternalServiceErrorException": 500,
    "InternalFailure": 500,
    "ServiceUnavailable": 503,
    "AccessDeniedException": 403,
    "ExpiredTokenException": 403,
    "InvalidSignatureException": 403,
    "MissingAuthenticationTokenException": 403,
    "UnrecognizedClientException": 403,
}
# Source: "Authorization" header of Signature Version 4: Credential=key/date/region/service/…
_SCOPE: Final = re.compile(r"Credential=[^/]+/\d+/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request")


@dataclass(kw_only=True)
class LocalIdentity:
    """An address or a domain that may be a sender."""

    is_verified: bool = True
    dkim: str = "SUCCESS"
    mail_from: str = "SUCCESS"
    mail_from_domain: str = "mail.example.com"
    topics: dict[str, str] = field(default_factory=dict)
    """ARN by ``Bounce``, ``Complaint`` and ``Delivery``."""


@dataclass(kw_only=True)
class LocalTopic:
    """An SNS topic, its attributes and its subscriptions by their ARN."""

    attributes: dict[str, str] = field(default_factory=dict)
    subscriptions: dict[str, LocalSubscription] = field(default_factory=dict)


@dataclass(kw_only=True)
class LocalSubscription:
    """A subscription of an SNS topic."""

    protocol: str
    endpoint: str
    is_confirmed: bool = True
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class LocalSuppression:
    """An address on the account's suppression list."""

    reason: str
    since: datetime = field(default_factory=lambda: datetime.now(UTC))


class SESError(Exception):
    """An answer that is an error, in the form in which SES gives it."""

    def __init__(self, code: str, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status or _STATUS.get(code, 400)


def not_allowed(action: str) -> SESError:
    """What AWS answers where the credentials don't allow an action."""
    return SESError(
        "AccessDeniedException",
        f"User: arn:aws:iam::{ACCOUNT_ID}:user/site is not authorized to perform: {action} "
        "because no identity-based policy allows the action",
    )


class LocalAccount:
    """The state, and the operations on it by their names in the AWS documentation."""

    def __init__(self) -> None:
        self.identities: dict[str, LocalIdentity] = {}
        self.configuration_sets: dict[str, dict[str, Any]] = {}
        """Event destinations by name, as ``EventDestinationDefinition`` of SES."""
        self.suppressed: dict[str, LocalSuppression] = {}
        self.topics: dict[str, LocalTopic] = {}
        self.queues: dict[str, dict[str, str]] = {}
        self.denied: set[str] = set()
        """Actions that the credentials don't allow, such as ``ses:GetEmailIdentity``."""
        self.are_credentials_valid = True
        self.statistics: list[dict[str, Any]] = []
        """``SendDataPoint`` of SES's API v1."""
        self.page_size = 1000

    def answer(self, request: Request) -> Answer:
        """Answer a request that isn't about sending."""
        scope = _SCOPE.search(request.headers.get("authorization", ""))
        region, service = scope.groups() if scope else ("us-east-1", "ses")
        if target := request.headers.get("x-amz-target"):
            return self._answer_json(service, target.rpartition(".")[2], request.body)
        if request.path.startswith("/v2/"):
            return self._answer_rest(request)
        return self._answer_query(service, region, request.body)

    def check_allowed(self, action: str) -> None:
        """Refuse an action that the credentials don't allow.

        Raises:
            SESError: with SES's words.
        """
        if not self.are_credentials_valid:
            raise SESError(
                "UnrecognizedClientException",
                "The security token included in the request is invalid.",
            )
        if action in self.denied:
            raise not_allowed(action)

    # SES, API v2: REST with JSON

    def _answer_rest(self, request: Request) -> Answer:
        parts = urlsplit(request.path)
        query = dict(parse_qsl(parts.query))
        try:
            for method, pattern, name, operate in self._routes:
                if method == request.method and (match := pattern.fullmatch(parts.path)):
                    self.check_allowed(f"ses:{name}")
                    values = {**query, **json.loads(request.body or b"{}")}
                    values["name"] = "".join(unquote(group) for group in match.groups())
                    return _json(operate(self, values) or {})
        except SESError as error:
            return _refuse_json(error)
        return _refuse_json(SESError("UnknownOperationException", ""))

    def _list_identities(self, values: Mapping[str, Any]) -> dict[str, Any]:
        names, token = self._page(sorted(self.identities), values)
        return {
            "EmailIdentities": [
                {
                    "IdentityName": name,
                    "IdentityType": "EMAIL_ADDRESS" if "@" in name else "DOMAIN",
                    "SendingEnabled": self.identities[name].is_verified,
                    "VerificationStatus": (
                        "SUCCESS" if self.identities[name].is_verified else "PENDING"
                    ),
                }
                for name in names
            ],
            **token,
        }

    def _create_identity(self, values: Mapping[str, Any]) -> dict[str, Any]:
        name = values["EmailIdentity"]
        if name in self.identities:
            raise SESError("AlreadyExistsException", f"{name} already exists.")
        self.identities[name] = LocalIdentity(is_verified=False, dkim="PENDING")
        return self._get_identity({"name": name})

    def _get_identity(self, values: Mapping[str, Any]) -> dict[str, Any]:
        name = values["name"]
        identity = self.identities.get(name)
        if identity is None:
            raise SESError("NotFoundException", f"Email identity {name} does not exist.")
        is_domain = "@" not in name
        return {
            "IdentityType": "DOMAIN" if is_domain else "EMAIL_ADDRESS",
            "VerifiedForSendingStatus": identity.is_verified,
            "DkimAttributes": {
                "SigningEnabled": True,
                "Status": identity.dkim,
                "Tokens": ["token-1", "token-2", "token-3"] if is_domain else [],
            },
            "MailFromAttributes": (
                {
                    "MailFromDomain": identity.mail_from_domain,
                    "MailFromDomainStatus": identity.mail_from,
                    "BehaviorOnMxFailure": "USE_DEFAULT_VALUE",
                }
                if identity.mail_from_domain
                else {}
            ),
            "FeedbackForwardingStatus": True,
        }

    def _delete_identity(self, values: Mapping[str, Any]) -> None:
        self._get_identity(values)
        del self.identities[values["name"]]

    def _create_set(self, values: Mapping[str, Any]) -> None:
        name = values["ConfigurationSetName"]
        if name in self.configuration_sets:
            raise SESError("AlreadyExistsException", f"{name} already exists.")
        self.configuration_sets[name] = {}

    def _get_destinations(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "EventDestinations": [
                {"Name": destination, **definition}
                for destination, definition in self._find_set(values["name"]).items()
            ]
        }

    def _create_destination(self, values: Mapping[str, Any]) -> None:
        destinations = self._find_set(values["name"])
        name = values["EventDestinationName"]
        if name in destinations:
            raise SESError("AlreadyExistsException", f"{name} already exists.")
        destinations[name] = dict(values["EventDestination"])

    def _find_set(self, name: str) -> dict[str, Any]:
        if name not in self.configuration_sets:
            raise SESError("NotFoundException", f"Configuration set <{name}> does not exist.")
        found: dict[str, Any] = self.configuration_sets[name]
        return found

    def _list_suppressed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        names, token = self._page(sorted(self.suppressed), values)
        return {
            "SuppressedDestinationSummaries": [
                {
                    "EmailAddress": name,
                    "Reason": self.suppressed[name].reason,
                    "LastUpdateTime": self.suppressed[name].since.timestamp(),
                }
                for name in names
            ],
            **token,
        }

    def _put_suppressed(self, values: Mapping[str, Any]) -> None:
        self.suppressed[values["EmailAddress"]] = LocalSuppression(reason=values["Reason"])

    def _delete_suppressed(self, values: Mapping[str, Any]) -> None:
        if self.suppressed.pop(values["name"], None) is None:
            raise SESError("NotFoundException", f"{values['name']} does not exist.")

    def _page(
        self, names: list[str], values: Mapping[str, Any]
    ) -> tuple[list[str], dict[str, str]]:
        start = int(values.get("NextToken") or 0)
        end = start + self.page_size
        return names[start:end], {"NextToken": str(end)} if end < len(names) else {}

    _routes: Final[list[tuple[str, re.Pattern[str], str, Callable[..., Any]]]] = [
        (method, re.compile("/v2/email/" + path.replace("{}", "([^/]+)")), name, operate)
        for method, path, name, operate in (
            ("POST", "list-identities", "ListEmailIdentities", _list_identities),
            ("GET", "identities", "ListEmailIdentities", _list_identities),
            ("POST", "identities", "CreateEmailIdentity", _create_identity),
            ("GET", "identities/{}", "GetEmailIdentity", _get_identity),
            ("DELETE", "identities/{}", "DeleteEmailIdentity", _delete_identity),
            ("POST", "configuration-sets", "CreateConfigurationSet", _create_set),
            (
                "GET",
                "configuration-sets/{}/event-destinations",
                "GetConfigurationSetEventDestinations",
                _get_destinations,
            ),
            (
                "POST",
                "configuration-sets/{}/event-destinations",
                "CreateConfigurationSetEventDestination",
                _create_destination,
            ),
            ("GET", "suppression/addresses", "ListSuppressedDestinations", _list_suppressed),
            ("PUT", "suppression/addresses", "PutSuppressedDestination", _put_suppressed),
            (
                "DELETE",
                "suppression/addresses/{}",
                "DeleteSuppressedDestination",
                _delete_suppressed,
            ),
        )
    ]

    # SQS: JSON

    def _answer_json(self, service: str, operation: str, body: bytes) -> Answer:
        try:
            self.check_allowed(f"{service}:{operation}")
            values = json.loads(body or b"{}")
            if operation == "CreateQueue":
                name = values["QueueName"]
                self.queues.setdefault(name, {}).update(values.get("Attributes", {}))
                return _json({"QueueUrl": f"https://sqs.example.com/{ACCOUNT_ID}/{name}"})
        except SESError as error:
            return _refuse_json(error)
        return _refuse_json(SESError("UnknownOperationException", operation))

    # SNS, STS, SES v1: forms and XML

    def _answer_query(self, service: str, region: str, body: bytes) -> Answer:
        values = dict(parse_qsl(body.decode("latin-1"), keep_blank_values=True))
        action = values.get("Action", "")
        operate = {
            "GetCallerIdentity": self._get_caller,
            "GetSendStatistics": self._get_statistics,
            "GetIdentityNotificationAttributes": self._get_notification_topics,
            "CreateTopic": lambda values: self._create_topic(values, region),
            "GetTopicAttributes": self._get_topic,
            "SetTopicAttributes": self._set_topic,
            "Subscribe": self._subscribe,
            "ListSubscriptionsByTopic": self._list_subscriptions,
            "GetSubscriptionAttributes": self._get_subscription,
            "SetSubscriptionAttributes": self._set_subscription,
        }.get(action)
        try:
            if operate is None:
                raise SESError("InvalidAction", f"Could not find operation {action}")
            self.check_allowed(f"{service}:{action}")
            return xml(f"<{action}Result>{operate(values)}</{action}Result>", f"{action}Response")
        except SESError as error:
            return refuse_xml(error.code.removesuffix("Exception"), error.message, error.status)

    def _get_caller(self, values: Mapping[str, str]) -> str:
        return _tags(Arn=f"arn:aws:iam::{ACCOUNT_ID}:user/site", UserId="AIDA", Account=ACCOUNT_ID)

    def _get_statistics(self, values: Mapping[str, str]) -> str:
        members = "".join(
            "<member>" + _tags(**{name: str(value) for name, value in one.items()}) + "</member>"
            for one in self.statistics
        )
        return f"<SendDataPoints>{members}</SendDataPoints>"

    def _get_notification_topics(self, values: Mapping[str, str]) -> str:
        entries = []
        for name in _members(values, "Identities"):
            topics = self.identities[name].topics if name in self.identities else {}
            inner = _tags(**{f"{kind}Topic": arn for kind, arn in topics.items()})
            entries.append(f"<entry>{_tags(key=name)}<value>{inner}</value></entry>")
        return f"<NotificationAttributes>{''.join(entries)}</NotificationAttributes>"

    def _create_topic(self, values: Mapping[str, str], region: str) -> str:
        arn = f"arn:aws:sns:{region}:{ACCOUNT_ID}:{values['Name']}"
        topic = self.topics.setdefault(arn, LocalTopic())
        topic.attributes.update(_attributes(values))
        return _tags(TopicArn=arn)

    def _get_topic(self, values: Mapping[str, str]) -> str:
        topic = self._find_topic(values["TopicArn"])
        return _entries({"TopicArn": values["TopicArn"], **topic.attributes})

    def _set_topic(self, values: Mapping[str, str]) -> str:
        topic = self._find_topic(values["TopicArn"])
        topic.attributes[values["AttributeName"]] = values["AttributeValue"]
        return ""

    def _subscribe(self, values: Mapping[str, str]) -> str:
        topic = self._find_topic(values["TopicArn"])
        for arn, subscription in topic.subscriptions.items():
            if subscription.endpoint == values["Endpoint"]:
                return _tags(SubscriptionArn=arn)
        arn = f"{values['TopicArn']}:{len(topic.subscriptions)}"
        topic.subscriptions[arn] = LocalSubscription(
            protocol=values["Protocol"],
            endpoint=values["Endpoint"],
            is_confirmed=False,
            attributes=_attributes(values),
        )
        return _tags(SubscriptionArn=arn)

    def _list_subscriptions(self, values: Mapping[str, str]) -> str:
        topic = self._find_topic(values["TopicArn"])
        members = "".join(
            "<member>"
            + _tags(
                TopicArn=values["TopicArn"],
                SubscriptionArn=arn if one.is_confirmed else "PendingConfirmation",
                Protocol=one.protocol,
                Endpoint=one.endpoint,
                Owner=ACCOUNT_ID,
            )
            + "</member>"
            for arn, one in topic.subscriptions.items()
        )
        return f"<Subscriptions>{members}</Subscriptions>"

    def _get_subscription(self, values: Mapping[str, str]) -> str:
        return _entries(self._find_subscription(values).attributes)

    def _set_subscription(self, values: Mapping[str, str]) -> str:
        attributes = self._find_subscription(values).attributes
        attributes[values["AttributeName"]] = values["AttributeValue"]
        return ""

    def _find_topic(self, arn: str) -> LocalTopic:
        if arn not in self.topics:
            raise SESError("NotFound", "Topic does not exist")
        return self.topics[arn]

    def _find_subscription(self, values: Mapping[str, str]) -> LocalSubscription:
        for topic in self.topics.values():
            if found := topic.subscriptions.get(values["SubscriptionArn"]):
                return found
        raise SESError("NotFound", "Subscription does not exist")


def xml(inner: str, name: str, *, status: int = 200) -> Answer:
    """An answer of the APIs that speak XML."""
    return Answer(
        status=status,
        body=(
            f"<{name}>{inner}<ResponseMetadata><RequestId>local</RequestId></ResponseMetadata>"
            f"</{name}>"
        ).encode(),
        headers={"Content-Type": "text/xml"},
    )


def refuse_xml(code: str, message: str, status: int) -> Answer:
    """An error of the APIs that speak XML."""
    inner = _tags(Type="Sender", Code=code, Message=message)
    return xml(f"<Error>{inner}</Error>", "ErrorResponse", status=status)


def _json(value: object, *, status: int = 200, error: str = "") -> Answer:
    headers = {"Content-Type": "application/json", "Date": _now()}
    if error:
        headers["x-amzn-ErrorType"] = error
    return Answer(status=status, body=json.dumps(value).encode(), headers=headers)


def _refuse_json(error: SESError) -> Answer:
    return _json({"message": error.message}, status=error.status, error=error.code)


def _now() -> str:
    from email.utils import format_datetime

    return format_datetime(datetime.now(UTC), usegmt=True)


def _tags(**values: str) -> str:
    return "".join(f"<{name}>{escape(value)}</{name}>" for name, value in values.items())


def _entries(values: Mapping[str, str]) -> str:
    entries = (f"<entry>{_tags(key=key, value=value)}</entry>" for key, value in values.items())
    return f"<Attributes>{''.join(entries)}</Attributes>"


def _members(values: Mapping[str, str], name: str) -> list[str]:
    return [value for key, value in values.items() if key.startswith(f"{name}.member.")]


def _attributes(values: Mapping[str, str]) -> dict[str, str]:
    """The map that the query protocol spreads over ``Attributes.entry.N.key`` and ``.value``."""
    return {
        value: values[key.removesuffix("key") + "value"]
        for key, value in values.items()
        if key.startswith("Attributes.entry.") and key.endswith(".key")
    }
