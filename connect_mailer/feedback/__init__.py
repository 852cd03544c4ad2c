"""What SES says of mail that was sent, from SNS to ``Unsubscribe`` and the outbox."""

from __future__ import annotations

from typing import Final

# Of what listens to django-bouncy's ``feedback`` for this app.
DISPATCH_UID: Final = "connect_mailer.feedback.suppress"
