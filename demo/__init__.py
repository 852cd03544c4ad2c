"""A Django site that shows the whole of connect_mailer: ``tox -e demo``, ``python -m demo``."""

from demo.celery import app as celery_app

__all__ = ["celery_app"]
