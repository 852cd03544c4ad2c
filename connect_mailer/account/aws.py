"""The site's AWS account, asked by an operator's commands and never while mail is sent.

The clients have the credentials and the region that mail is sent with. Where another service
than SES is asked (SNS, SQS, STS), ``AWS_ENDPOINT_URL`` and its like in the environment lead
boto3 elsewhere, as always.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Final

from connect_mailer.conf import CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS, conf
from connect_mailer.exceptions import AccountError
from connect_mailer.sending.ses import LEGACY_REGION

# Names of the services in boto3, and the prefix of their actions in IAM where it differs.
_PREFIXES: Final = {"sesv2": "ses"}


class AWS:
    """One operator's conversation with AWS.

    Every method that asks raises ``AccountError``: the text names the action and says what
    AWS said; ``is_denied`` tells whether the credentials may not do that.
    """

    def __init__(self) -> None:
        self._clients: dict[str, Any] = {}

    @cached_property
    def region(self) -> str:
        """The region that mail is sent from."""
        return conf.ses.region or self._session.region_name or LEGACY_REGION

    def call(self, service: str, operation: str, **arguments: Any) -> dict[str, Any]:
        """Call ``operation``, named as in the AWS documentation, of ``service`` in boto3."""
        from botocore import xform_name
        from botocore.exceptions import BotoCoreError, ClientError

        action = f"{_PREFIXES.get(service, service)}:{operation}"
        try:
            method = getattr(self.get_client(service), xform_name(operation))
            answer: dict[str, Any] = method(**arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            words = str(error.response.get("Error", {}).get("Message", ""))
            raise AccountError(action=action, code=code, words=words) from error
        except (BotoCoreError, ValueError) as error:
            raise AccountError(action=action, code="", words=str(error)) from error
        return answer

    def pages(
        self, service: str, operation: str, *, token: str = "", **arguments: Any
    ) -> Iterator[dict[str, Any]]:
        """Call ``operation`` for one page after the other, from the one that ``token`` names."""
        while True:
            page = self.call(
                service, operation, **arguments, **({"NextToken": token} if token else {})
            )
            yield page
            token = page.get("NextToken") or ""
            if not token:
                return

    @cached_property
    def _session(self) -> Any:
        import boto3

        options = conf.ses
        return boto3.session.Session(
            aws_access_key_id=options.access_key_id,
            aws_secret_access_key=options.secret_access_key,
            aws_session_token=options.session_token,
        )

    def get_client(self, service: str) -> Any:
        """The client of boto3 for a service, made once."""
        from botocore.config import Config

        if service not in self._clients:
            self._clients[service] = self._session.client(
                service,
                region_name=self.region,
                endpoint_url=conf.ses.endpoint_url if service in ("ses", "sesv2") else None,
                config=Config(
                    # Several of these operations allow one call a second.
                    retries={"total_max_attempts": 8, "mode": "adaptive"},
                    connect_timeout=CONNECT_TIMEOUT_SECONDS,
                    read_timeout=READ_TIMEOUT_SECONDS,
                ),
            )
        return self._clients[service]


def get_ses_client() -> Any:
    """A client of boto3 for the SES API v1, with the site's credentials and region.

    What ``seacucumber.util.get_boto_ses_connection`` gave, in boto3's names: for a site's own
    calls, such as ``get_send_quota()``.
    """
    return AWS().get_client("ses")


def get_date(answer: Mapping[str, Any]) -> str:
    """The time at AWS when it answered, as its ``Date`` header says; or nothing."""
    return str(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", ""))
