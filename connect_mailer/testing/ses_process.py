"""The local SES in a process of its own: ``python -m connect_mailer.testing.ses``.

It prints one line of JSON with its URL once it answers, and stops at SIGTERM, SIGINT or the
end of its standard input (whoever started it is gone).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from connect_mailer.testing.feedback import FeedbackPublisher
from connect_mailer.testing.ses import Fault, LocalSES, Mail, Stats, mail_from_json
from connect_mailer.testing.sns import TOPIC_ARN, SNSSigner


class RemoteLocalSES:
    """A local SES in another process; a context manager that starts and stops it.

    Keyword arguments are those of ``Settings``. With ``webhook`` (the URL of a site's
    ``/mail/bouncy/``) it publishes feedback there, signed by ``signer``: see
    ``FeedbackPublisher``, also for ``events`` and ``delay_seconds``.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        webhook: str = "",
        signer: SNSSigner | None = None,
        events: bool = False,
        delay_seconds: float = 0.0,
        **settings: Any,
    ) -> None:
        command = ["--port", str(port), "--settings", json.dumps(settings)]
        environment = dict(os.environ)
        if webhook:
            signer = signer or SNSSigner.generate()
            command += ["--webhook", webhook, "--topic", signer.topic_arn]
            command += ["--delay", str(delay_seconds)]
            environment["LOCAL_SES_SIGNER"] = signer.to_pem()
        if events:
            command.append("--events")
        self._command = [sys.executable, "-m", "connect_mailer.testing.ses", *command]
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> Self:
        """Start the process, and wait until it answers."""
        self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
            self._command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C is for whoever started it, who then stops it in good order.
            start_new_session=True,
        )
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError(f"The local SES ended with {self._process.wait()}.")
        self.url = json.loads(line)["url"]
        return self

    def close(self) -> None:
        """Stop the process."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def mailbox(self, *, since: int = 0) -> list[Mail]:
        """Accepted messages in order, without the first ``since``."""
        return [mail_from_json(value) for value in self._ask("GET", f"mailbox?since={since}")]

    def stats(self) -> Stats:
        """What came so far."""
        return Stats(**self._ask("GET", "stats"))

    def configure(self, **settings: Any) -> None:
        """Change settings from now on."""
        self._ask("POST", "settings", settings)

    def inject(self, fault: Fault) -> None:
        """Let a fault happen."""
        self._ask("POST", "faults", asdict(fault))

    def clear_faults(self) -> None:
        """Let no injected fault happen any more."""
        self._ask("DELETE", "faults")

    def clear(self) -> None:
        """Forget mailbox, counters, faults and what was spent."""
        self._ask("POST", "clear")

    def close_connections(self) -> None:
        """Close every open connection, as SES does with idle ones."""
        self._ask("POST", "close_connections")

    def _ask(self, method: str, name: str, values: Any = None) -> Any:
        body = None if values is None else json.dumps(values).encode()
        request = urllib.request.Request(  # noqa: S310 - the process that was started here
            f"{self.url}/_local/{name}", body, method=method
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as response:
            return json.load(response)


def main(argv: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        prog="python -m connect_mailer.testing.ses", description="A local Amazon SES, for tests."
    )
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--settings", type=json.loads, default={}, help='JSON: {"rate": 14}')
    parser.add_argument("--webhook", default="", help="URL to publish feedback to")
    parser.add_argument("--topic", default=TOPIC_ARN, help="ARN of the topic of the feedback")
    parser.add_argument("--events", action="store_true", help="publish all events")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds from mail to feedback")
    parser.add_argument(
        "--signer",
        type=Path,
        help="PEM file of the key and certificate that sign (or in LOCAL_SES_SIGNER)",
    )
    options = parser.parse_args(argv)
    publisher = None
    if options.webhook:
        pem = options.signer.read_text() if options.signer else os.environ.get("LOCAL_SES_SIGNER")
        if not pem:
            parser.error("--webhook needs --signer, or the PEM in LOCAL_SES_SIGNER")
        signer = SNSSigner.from_pem(pem, topic_arn=options.topic)
        publisher = FeedbackPublisher(
            signer, options.webhook, events=options.events, delay_seconds=options.delay
        )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with LocalSES(port=options.port, on_accepted=publisher, **options.settings) as server:
        sys.stdout.write(json.dumps({"url": server.url}) + "\n")
        sys.stdout.flush()
        threading.Thread(target=_wait_for_end, args=[stop], daemon=True).start()
        stop.wait()


def _wait_for_end(stop: threading.Event) -> None:
    if not sys.stdin.isatty():
        while sys.stdin.read(4096):
            pass
        stop.set()
