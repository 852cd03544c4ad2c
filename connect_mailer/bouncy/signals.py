"""The signals of django-bouncy, in the place of those that no longer import.

Import them as ``django_bouncy.signals``: a published release that works comes first there.

``notification``
    Any notification was received: ``notification``, ``request``.
``subscription``
    A subscription was confirmed: ``result``, ``notification``.
``feedback``
    A row was written: ``instance`` (of the sender, ``Bounce``, ``Complaint`` or
    ``Delivery``), ``message``, ``notification``.
"""

from __future__ import annotations

from django.dispatch import Signal

notification = Signal()
subscription = Signal()
feedback = Signal()
