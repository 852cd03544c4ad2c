"""The site, as a web server has it."""

from __future__ import annotations

from django.core.wsgi import get_wsgi_application

from tests.site.celery import app

app.set_default()
application = get_wsgi_application()
