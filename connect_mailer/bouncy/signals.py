"""The signals of django-bouncy, in the place of those that no longer import.

Import them as ``django_bouncy.signals``.
"""

from __future__ import annotations

from django.dispatch import Signal

notification = Signal()
"""A genuine notification was received. It has ``notification`` and ``request``."""

subscription = Signal()
"""A subscription was confirmed. It has ``result`` and ``notification``."""

feedback = Signal()
"""A row was written, of the sender ``Bounce``, ``Complaint`` or ``Delivery``. It has ``instance``,
the row; ``message`` and ``notification``, the JSON of SES and of SNS."""
