"""The old site can't run any more, so this makes what it left: a database and queued tasks."""

import sys
import uuid
from importlib.util import find_spec
from pathlib import Path

import base_settings
import django
from celery import Celery
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.utils import timezone

# Its last release is Python 2.
package = Path(find_spec("seacucumber").origin).parent
try:
    compile((package / "tasks.py").read_text(), "tasks.py", "exec")
except SyntaxError:
    pass
else:
    sys.exit("seacucumber runs, so the site should have been made with it.")

# django-bouncy's published migrations, which make the tables that they made there.
settings.configure(
    DATABASES=base_settings.DATABASES,
    INSTALLED_APPS=["connect_mailer.bouncy"],
    USE_TZ=True,
    SECRET_KEY="a key for tests only",
)
django.setup()

call_command("migrate", verbosity=0)
bounces, complaints = (
    apps.get_model("django_bouncy", name).objects for name in ("Bounce", "Complaint")
)
common = {"sns_topic": "t", "mail_timestamp": timezone.now(), "mail_from": "site@example.com"}
for address, hard in (("Hard@example.org", True), ("soft@example.org", False)):
    bounces.create(address=address, hard=hard, bounce_type="x", **common)
complaints.create(address="spam@example.org", feedback_type="abuse", **common)

# As Celery 3 wrote them, one of them twice, as a broker may.
celery = Celery(broker=base_settings.CELERY_BROKER_URL)
celery.conf.task_protocol = 1
mime = "Subject: No. {}\nFrom: site@example.com\nTo: u{}@example.org\n\nText\n"
for n in (0, 1, 2):
    arguments = ["site@example.com", [f"u{n}@example.org"], mime.format(n, n)]
    task_id = str(uuid.uuid4())
    for _ in range(2 if n == 0 else 1):
        celery.send_task(
            "seacucumber.tasks.SendEmailTask",
            arguments,
            task_id=task_id,
            queue="mail",
            serializer="pickle",
        )
