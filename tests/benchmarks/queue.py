"""Queueing: messages a second in one ``send_messages()``, and one ``send_mail()`` after the other.

On PostgreSQL and Valkey, beside what others do with the same messages, and Django's serialisation
alone: the floor of whatever stores a message as it will be sent. Those that store it otherwise
(rows, dicts, pickles) have that still before them. ``--html`` adds a second body to each.
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

from tests.benchmarks._site import compare, describe, say, servers


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks queue")
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--singles", type=int, default=200, help="of those that go one by one")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--html", action="store_true")
    options = parser.parse_args()
    with servers(peers=True):
        from django.utils.module_loading import import_string

        from tests.benchmarks import _peers

        logging.disable(logging.CRITICAL)
        _peers.prepare()
        number, singly = options.messages, options.singles

        def make(messages: int) -> list[Any]:
            return make_messages(messages, has_html=options.html)

        backends = {"connect_mailer": "connect_mailer.backend.ConnectMailerBackend"}
        backends |= _peers.find_queues()
        batches = {
            name: (lambda path=path: import_string(path)().send_messages(make(number)), number)
            for name, path in backends.items()
        }
        singles = {
            name: (
                lambda path=path: [
                    import_string(path)().send_messages(make(1)) for _ in range(singly)
                ],
                singly,
            )
            for name, path in backends.items()
        }

        def serialise(messages: int) -> tuple[Any, int]:
            return lambda: [one.message().as_bytes() for one in make(messages)], messages

        floor = "message().as_bytes() alone"
        say(describe(f"median of {options.rounds} interleaved rounds"))
        compare(f"{number:,} in one call", {floor: serialise(number), **batches}, options.rounds)
        compare("one by one", {floor: serialise(singly), **singles}, options.rounds)


def make_messages(number: int, *, has_html: bool = False) -> list[Any]:
    """Small messages, as a site would make them."""
    from django.core.mail import EmailMultiAlternatives

    messages = []
    for n in range(number):
        message = EmailMultiAlternatives(
            f"Your order {n}",
            f"Dear customer {n},\n\nyour order is on its way.\n\nThe shop\n",
            "The shop <shop@example.com>",
            [f"customer{n}@example.org"],
        )
        if has_html:
            message.attach_alternative(f"<p>Dear customer {n}</p>\n<p>The shop</p>\n", "text/html")
        messages.append(message)
    return messages
