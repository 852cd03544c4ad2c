"""What a process loads: boto3 and Redis are for those that send."""

from __future__ import annotations

import subprocess
import sys

from tests.servers import make_environment

QUEUE = """
import sys
import django
from celery import Celery
Celery(broker="memory://").set_default()
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from django.core.mail import EmailMessage
from connect_mailer.backend import ConnectMailerBackend
ConnectMailerBackend().send_messages([EmailMessage("Hi", "", None, ["jo@example.org"])])
print(sorted({"boto3", "botocore", "redis"} & set(sys.modules)))
"""


def test_a_web_process_that_queues_loads_neither_boto3_nor_redis() -> None:
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", QUEUE],
        env=make_environment(TEST_DATABASE="sqlite"),
        capture_output=True,
        text=True,
        check=False,
    )

    assert output.returncode == 0, output.stderr
    assert output.stdout == "[]\n"
