"""What the local SES, in its own process, accepted: read over HTTP."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from connect_mailer.testing.ses import Mail, Stats, mail_from_json


class Mailbox:
    """The mailbox and the counters of the local SES at ``url``."""

    def __init__(self, url: str) -> None:
        self._url = url

    def stats(self) -> Stats:
        """Counters so far."""
        return Stats(**self._get("stats"))

    def mails(self, *, since: int = 0) -> list[Mail]:
        """Accepted messages in order, without the first ``since``."""
        return [mail_from_json(value) for value in self._get(f"mailbox?since={since}")]

    def last(self, number: int) -> list[Mail]:
        """The last messages, the newest first."""
        return self.mails(since=max(0, self.stats().accepted - number))[::-1]

    def _get(self, path: str) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self._url}/_local/{path}", timeout=10) as response:
            return json.load(response)
