"""For a site's own tests: deliver the outbox, a local SES, signed SNS notifications.

``deliver_all()`` (``testing.outbox``), ``LocalSES`` and ``RemoteLocalSES`` (``testing.ses``,
``testing.ses_process``), ``SNSSigner`` (``testing.sns``), ``FeedbackPublisher``
(``testing.feedback``). Nothing of it is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from connect_mailer.testing.feedback import FeedbackPublisher
    from connect_mailer.testing.outbox import deliver_all
    from connect_mailer.testing.ses import Fault, LocalSES
    from connect_mailer.testing.ses_process import RemoteLocalSES
    from connect_mailer.testing.sns import SNSSigner

__all__ = [
    "Fault",
    "FeedbackPublisher",
    "LocalSES",
    "RemoteLocalSES",
    "SNSSigner",
    "deliver_all",
]

_MODULES = {
    "Fault": "ses",
    "FeedbackPublisher": "feedback",
    "LocalSES": "ses",
    "RemoteLocalSES": "ses_process",
    "SNSSigner": "sns",
    "deliver_all": "outbox",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
