"""Old dotted paths. Each test runs a process of its own: an import happens once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SET_UP = """
import sys
from importlib import import_module

import django
from django.conf import settings

if django.VERSION >= (6, 1):
    mail = {"MAILERS": {"default": {"BACKEND": "seacucumber.backend.SESBackend"}}}
else:
    mail = {"EMAIL_BACKEND": "seacucumber.backend.SESBackend"}
settings.configure(
    SECRET_KEY="a key for tests only",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "connect_mailer",
        "connect_mailer.bouncy",
    ],
    **mail,
)
django.setup()
"""


# Such code is told so: see the test of that. Django's own include() is the code's, too.
_DEPRECATED = [
    option
    for module in ("__main__", "django.urls.conf")
    for option in ("-W", f"ignore::DeprecationWarning:{module}")
]


def run(folder: Path, code: str) -> str:
    """What ``code`` prints in a site's process, with ``folder`` on the path."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *_DEPRECATED, "-c", SET_UP + code],
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_old_backend_queues(tmp_path: Path) -> None:
    code = """
from connect_mailer.backend import ConnectMailerBackend
from django.utils.module_loading import import_string
print(import_string("seacucumber.backend.SESBackend") is ConnectMailerBackend)
"""
    assert run(tmp_path, code) == "True"


def test_mail_of_a_site_that_still_names_it_is_queued(tmp_path: Path) -> None:
    code = """
from celery import current_app
from django.core.mail import send_mail
from django.core.management import call_command
from connect_mailer.models import OutgoingMessage
current_app.conf.broker_url = "memory://"
call_command("migrate", verbosity=0)
print(send_mail("News", "Text", "site@example.com", ["reader@example.org"]))
print(OutgoingMessage.objects.get().status)
"""
    assert run(tmp_path, code).split() == ["1", "queued"]


def test_nothing_is_imported_before_it_is_asked_for(tmp_path: Path) -> None:
    code = """
print("connect_mailer.backend" in sys.modules, "seacucumber" in sys.modules)
import seacucumber.backend
import django_bouncy.views
from django_bouncy import views
print("connect_mailer.backend" in sys.modules, "connect_mailer.feedback.webhook" in sys.modules)
"""
    assert run(tmp_path, code).split() == ["False"] * 4


def test_urls_and_views_are_ours(tmp_path: Path) -> None:
    code = """
from connect_mailer.feedback.webhook import endpoint
from django.urls import include
from django_bouncy import views
(pattern,) = include("django_bouncy.urls")[0].urlpatterns
print(views.endpoint is endpoint, pattern.callback is endpoint)
"""
    assert run(tmp_path, code) == "True True"


def test_signals_are_those_of_the_app(tmp_path: Path) -> None:
    code = """
from connect_mailer.bouncy import signals as ours
from django_bouncy.signals import *
print(notification is ours.notification, subscription is ours.subscription)
print(feedback is ours.feedback)
"""
    assert run(tmp_path, code).split() == ["True"] * 3


@pytest.mark.parametrize(
    "name", ["seacucumber", "seacucumber.backend", "django_bouncy.signals", "django_bouncy.views"]
)
def test_what_a_module_never_had_is_missing_as_usual(tmp_path: Path, name: str) -> None:
    code = f"""
try:
    import_module({name!r}).something
except AttributeError as error:
    print(error)
"""
    assert run(tmp_path, code) == f"module {name!r} has no attribute 'something'"


def publish(folder: Path, **modules: str) -> None:
    """Put a published package ``seacucumber`` on the path."""
    package = folder / "seacucumber"
    package.mkdir()
    for name, source in modules.items():
        (package / f"{name}.py").write_text(source)


def test_a_published_release_that_imports_comes_first(tmp_path: Path) -> None:
    publish(
        tmp_path,
        __init__="VERSION = '2.0'",
        backend="from seacucumber import VERSION, other\nclass SESBackend: pass\n",
        other="",
    )
    code = """
import seacucumber.other
from seacucumber.backend import SESBackend, VERSION
print(SESBackend.__module__, SESBackend.__qualname__, VERSION, seacucumber.backend.__file__)
"""
    assert run(tmp_path, code) == (
        f"seacucumber.backend SESBackend 2.0 {tmp_path / 'seacucumber' / 'backend.py'}"
    )


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    pass\nexcept IOError, error:\n    raise\n",
        "import a_module_that_nobody_has",
        "class SESBackend: pass\nimport a_module_that_nobody_has",
        "unicode",
    ],
)
def test_a_published_release_that_does_not_import_is_replaced(tmp_path: Path, source: str) -> None:
    publish(tmp_path, __init__="VERSION = '1.5.2'", backend=source)
    code = """
from seacucumber import VERSION
from seacucumber.backend import SESBackend
print(VERSION, SESBackend.__qualname__)
"""
    assert run(tmp_path, code) == "1.5.2 ConnectMailerBackend"


def test_another_error_of_a_published_release_is_not_hidden(tmp_path: Path) -> None:
    publish(tmp_path, __init__="", backend="raise RuntimeError('no such region')")
    code = """
try:
    import seacucumber.backend
except RuntimeError as error:
    print(error)
"""
    assert run(tmp_path, code) == "no such region"


def test_registering_again_changes_nothing(tmp_path: Path) -> None:
    code = """
from connect_mailer import legacy
before = list(sys.meta_path)
legacy.register()
print(sys.meta_path == before)
"""
    assert run(tmp_path, code) == "True"


@pytest.mark.parametrize(
    ("code", "new"),
    [
        ("from seacucumber.backend import SESBackend", "connect_mailer.backend"),
        (
            "from seacucumber.util import get_boto_ses_connection",
            "connect_mailer.account.aws.get_ses_client",
        ),
        (
            "from django_bouncy.views import endpoint",
            "connect_mailer.feedback.webhook.endpoint",
        ),
        ("from django_bouncy import urls; urls.urlpatterns", "connect_mailer.bouncy.urls"),
        ("from django_bouncy.utils import verify_notification", "connect_mailer.bouncy.utils"),
        ("from django_bouncy.utils import approve_subscription", "connect_mailer.bouncy.utils"),
        ("from django_bouncy.utils import clean_time", "connect_mailer.bouncy.utils"),
    ],
)
def test_code_that_uses_an_old_path_is_told_the_new_one(
    tmp_path: Path, code: str, new: str
) -> None:
    warned = f"""
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    exec({code!r})
[warning] = caught
assert warning.category is DeprecationWarning
print(warning.message)
"""
    assert f" is now {new}" in run(tmp_path, warned)


def test_the_client_of_ses_has_the_sites_credentials(tmp_path: Path) -> None:
    code = """
import warnings
warnings.simplefilter("ignore")
settings.AWS_ACCESS_KEY_ID, settings.AWS_SECRET_ACCESS_KEY = "AKIA", "secret"
settings.CUCUMBER_SES_REGION_NAME = "eu-west-1"
from seacucumber.util import get_boto_ses_connection
client = get_boto_ses_connection()
print(client.meta.service_model.service_name, client.meta.region_name)
print(client._request_signer._credentials.access_key)
"""
    assert run(tmp_path, code).split() == ["ses", "eu-west-1", "AKIA"]
