"""The distributions: what is in them, and a site that has nothing but the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from connect_mailer import __version__

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.package

MANAGE = """
import sys
import django
from django.conf import settings
from django.core.management import execute_from_command_line

mail = {"EMAIL_BACKEND": "connect_mailer.backend.ConnectMailerBackend"}
if django.VERSION >= (6, 1):
    mail = {"MAILERS": {"default": {"BACKEND": mail["EMAIL_BACKEND"]}}}
settings.configure(
    SECRET_KEY="a key for tests only",
    ROOT_URLCONF="urls",
    DEFAULT_FROM_EMAIL="site@example.com",
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
        "connect_mailer",
        "connect_mailer.bouncy",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": "site.sqlite3",
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                "init_command": "PRAGMA journal_mode=WAL",
            },
        }
    },
    BOUNCY_TOPIC_ARN=["arn:aws:sns:us-east-1:123456789012:feedback"],
    CONNECT_MAILER={"UNSUBSCRIBE_BASE_URL": "https://www.example.com"},
    **mail,
)
execute_from_command_line(sys.argv)
"""
URLS = """
from django.contrib import admin
from django.urls import include, path

urlpatterns = [path("admin/", admin.site.urls), path("mail/", include("connect_mailer.urls"))]
"""


def run(*command: str | Path, cwd: Path) -> str:
    """What ``command`` prints, in an environment that knows nothing of this project."""
    hidden = ("COV_", "DJANGO_", "PYTEST_", "PYTHON", "TOX_", "VIRTUAL_ENV")
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if not name.startswith(hidden)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (path,) = distributions.glob("*.whl")
    return path


def files_of_the_package() -> set[str]:
    """What a site needs at run time: all that is in the source tree."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "connect_mailer").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_they_can_be_published(distributions: Path) -> None:
    """Their metadata, and the README as a package index shows it."""
    files = sorted(distributions.iterdir())
    assert [file.name for file in files] == [
        f"connect_mailer-{__version__}-py3-none-any.whl",
        f"connect_mailer-{__version__}.tar.gz",
    ]
    printed = run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=distributions)
    assert printed.count("PASSED") == 2


def test_the_wheel_has_the_whole_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    assert {PurePosixPath(name).parts[0] for name in names} == {
        "connect_mailer",
        f"connect_mailer-{wheel.name.split('-')[1]}.dist-info",
    }
    packaged = {name for name in names if name.startswith("connect_mailer/")}
    assert packaged == files_of_the_package()
    assert {
        "connect_mailer/migrations/0001_initial.py",
        "connect_mailer/py.typed",
        "connect_mailer/sending/gcra.lua",
    } <= packaged
    for folder in ("templates", "static", "locale", "management/commands", "templatetags"):
        assert any(name.startswith(f"connect_mailer/{folder}/") for name in packaged), folder


def test_the_sdist_has_what_the_tests_need(distributions: Path) -> None:
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {"/".join(PurePosixPath(name).parts[1:]) for name in archive.getnames()}
    assert files_of_the_package() <= names
    assert {"LICENSE", "README.rst", "pyproject.toml", "tox.ini", "tests/settings.py"} <= names
    assert {"docs/conf.py", "docs/index.rst", "docs/images/desk-health.png"} <= names
    assert not [name for name in names if name.endswith(".pyc") or name.startswith(".")]


def test_a_site_with_nothing_but_the_wheel_works(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    site = tmp_path / "site"
    site.mkdir()
    (site / "manage.py").write_text(MANAGE)
    (site / "urls.py").write_text(URLS)

    manage = (python, "-W", "error", "manage.py")
    assert "no issues" in run(*manage, "check", cwd=site)
    run(*manage, "migrate", cwd=site)
    assert "No changes" in run(*manage, "makemigrations", "--check", "--dry-run", cwd=site)
    templates = """
from importlib.resources import files
from django.template.loader import get_template
for template in (files("connect_mailer") / "templates" / "connect_mailer").iterdir():
    if template.is_file():
        print(get_template(f"connect_mailer/{template.name}").origin.name)
print(len((files("connect_mailer.sending") / "gcra.lua").read_text()))
"""
    printed = run(*manage, "shell", "--no-imports", "-c", templates, cwd=site).split()
    assert int(printed[-1]) > 0
    assert len(printed) > 1
    assert all(str(tmp_path / "env") in name for name in printed[:-1])
