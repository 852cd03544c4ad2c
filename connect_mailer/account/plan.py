"""Set up how feedback comes back: topic, configuration set, subscription, dead-letter queue.

A plan is made by looking, and carried out step by step; what is there already is no step, so
a plan that broke off is made anew and goes on.

Source: SES developer guide, "Setting up Amazon SNS notifications"; Amazon SNS developer guide,
"Amazon SNS dead-letter queues" and "Creating an HTTP/S delivery policy".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from connect_mailer.account.aws import AWS
from connect_mailer.account.ses_chain import RETRY_SECONDS, get_retry_seconds
from connect_mailer.exceptions import AccountError

EVENT_TYPES: Final = ("SEND", "DELIVERY", "BOUNCE", "COMPLAINT", "REJECT", "RENDERING_FAILURE")
DESTINATION: Final = "connect-mailer"
QUEUE_SUFFIX: Final = "-undelivered"
# 14 days, the longest. Source: Amazon SQS API reference, MessageRetentionPeriod.
RETENTION_SECONDS: Final = 1_209_600
# An hour in all, the longest that SNS allows.
DELIVERY_POLICY: Final = json.dumps(
    {"healthyRetryPolicy": {"minDelayTarget": 60, "maxDelayTarget": 60, "numRetries": 59}}
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One change: what it is in words, and the doing of it."""

    text: str
    do: Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps, and the settings that belong to them."""

    steps: list[Step]
    topic_arn: str
    configuration_set: str


def make_plan(aws: AWS, *, topic: str, configuration_set: str, webhook_url: str) -> Plan:
    """Look at what there is, and plan what is missing.

    Raises:
        AccountError: something may not be looked at.
    """
    account = str(aws.call("sts", "GetCallerIdentity")["Account"])
    partition = _get_partition(aws.region)
    topic_arn = f"arn:{partition}:sns:{aws.region}:{account}:{topic}"
    queue_arn = f"arn:{partition}:sqs:{aws.region}:{account}:{topic}{QUEUE_SUFFIX}"
    steps = [
        *_plan_topic(aws, topic, topic_arn, account),
        *_plan_configuration_set(aws, configuration_set, topic_arn),
        *_plan_subscription(aws, topic_arn, queue_arn, webhook_url),
    ]
    return Plan(steps=steps, topic_arn=topic_arn, configuration_set=configuration_set)


def _get_partition(region: str) -> str:
    if region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"


def _find(aws: AWS, service: str, operation: str, **arguments: Any) -> dict[str, Any] | None:
    try:
        return aws.call(service, operation, **arguments)
    except AccountError as error:
        if error.is_missing:
            return None
        raise


def _plan_topic(aws: AWS, name: str, arn: str, account: str) -> Iterator[Step]:
    policy = _allow("ses.amazonaws.com", "sns:Publish", arn, "StringEquals", "AWS:SourceAccount")
    attributes = {"SignatureVersion": "2", "Policy": policy(account)}
    if _find(aws, "sns", "GetTopicAttributes", TopicArn=arn) is None:
        yield Step(
            text=f"Make the SNS topic {arn}, to which SES of this account may publish",
            do=partial(aws.call, "sns", "CreateTopic", Name=name, Attributes=attributes),
        )


def _plan_configuration_set(aws: AWS, name: str, topic_arn: str) -> Iterator[Step]:
    found = _find(aws, "sesv2", "GetConfigurationSetEventDestinations", ConfigurationSetName=name)
    if found is None:
        yield Step(
            text=f"Make the SES configuration set {name!r}",
            do=partial(aws.call, "sesv2", "CreateConfigurationSet", ConfigurationSetName=name),
        )
    destinations = (found or {}).get("EventDestinations", ())
    if not any(one.get("SnsDestination", {}).get("TopicArn") == topic_arn for one in destinations):
        yield Step(
            text=f"Let it publish {', '.join(EVENT_TYPES)} to the topic",
            do=partial(
                aws.call,
                "sesv2",
                "CreateConfigurationSetEventDestination",
                ConfigurationSetName=name,
                EventDestinationName=DESTINATION,
                EventDestination={
                    "Enabled": True,
                    "MatchingEventTypes": list(EVENT_TYPES),
                    "SnsDestination": {"TopicArn": topic_arn},
                },
            ),
        )


def _plan_subscription(aws: AWS, topic_arn: str, queue_arn: str, url: str) -> Iterator[Step]:
    arn = _find_subscription(aws, topic_arn, url)
    attributes = (
        aws.call("sns", "GetSubscriptionAttributes", SubscriptionArn=arn)["Attributes"]
        if arn.startswith("arn:")
        else {}
    )
    has_queue = "RedrivePolicy" in attributes
    if not has_queue:
        name = queue_arn.rpartition(":")[2]
        policy = _allow("sns.amazonaws.com", "sqs:SendMessage", queue_arn, "ArnEquals")
        yield Step(
            text=f"Make the SQS queue {name}, for what can't be delivered within an hour",
            do=partial(
                aws.call,
                "sqs",
                "CreateQueue",
                QueueName=name,
                Attributes={
                    "MessageRetentionPeriod": str(RETENTION_SECONDS),
                    "Policy": policy(topic_arn),
                },
            ),
        )
    redrive = json.dumps({"deadLetterTargetArn": queue_arn})
    if not arn.startswith("arn:"):
        # A subscription that still waits is asked for again: SNS then posts a new token.
        yield Step(
            text=f"Subscribe {url}, with a delivery policy of an hour and that queue",
            do=partial(
                aws.call,
                "sns",
                "Subscribe",
                TopicArn=topic_arn,
                Protocol=url.partition(":")[0],
                Endpoint=url,
                Attributes={"DeliveryPolicy": DELIVERY_POLICY, "RedrivePolicy": redrive},
                ReturnSubscriptionArn=True,
            ),
        )
        return
    change = partial(aws.call, "sns", "SetSubscriptionAttributes", SubscriptionArn=arn)
    if not has_queue:
        yield Step(
            text="Keep in that queue what SNS gives up",
            do=partial(change, AttributeName="RedrivePolicy", AttributeValue=redrive),
        )
    if get_retry_seconds(attributes.get("DeliveryPolicy", "{}")) < RETRY_SECONDS / 2:
        yield Step(
            text="Let SNS try for an hour",
            do=partial(change, AttributeName="DeliveryPolicy", AttributeValue=DELIVERY_POLICY),
        )


def _find_subscription(aws: AWS, topic_arn: str, url: str) -> str:
    try:
        for page in aws.pages("sns", "ListSubscriptionsByTopic", TopicArn=topic_arn):
            for one in page.get("Subscriptions", ()):
                if one.get("Endpoint") == url:
                    return str(one["SubscriptionArn"])
    except AccountError as error:
        if not error.is_missing:
            raise
    return ""


def _allow(
    service: str, action: str, resource: str, test: str, key: str = "aws:SourceArn"
) -> Callable[[str], str]:
    """A resource policy, as JSON, that lets a service of AWS act for ``key`` only."""

    def write(value: str) -> str:
        statement = {
            "Effect": "Allow",
            "Principal": {"Service": service},
            "Action": action,
            "Resource": resource,
            "Condition": {test: {key: value}},
        }
        return json.dumps({"Version": "2012-10-17", "Statement": [statement]})

    return write
