"""Every block of code of the documentation runs.

Python is run, a page after the other in one namespace, as a reader would; settings are loaded.
Of commands, the real parser takes the words; ``sh`` runs those of AWS, and boto3's description of
the API judges what they ask for. JSON parses, templates render, both sides of a diff compile.
"""

from __future__ import annotations

import ast
import configparser
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import unquote

import botocore.session
import celery.app.defaults
import click
import pytest
import yaml  # moto's, as prometheus_client is the tests'
from botocore import xform_name
from botocore.validate import ParamValidator
from celery import current_app
from celery.bin.celery import celery as celery_command
from django.core import checks
from django.core.mail import EmailMessage
from django.core.management import get_commands, load_command_class
from django.template import engines
from django.urls import include, path
from django.utils.module_loading import import_string
from django.utils.translation import gettext_lazy
from prometheus_client import REGISTRY, generate_latest

from connect_mailer import signals
from connect_mailer.metrics import OutboxCollector
from connect_mailer.models import OutgoingMessage, Unsubscribe
from connect_mailer.optout.tokens import make_token
from connect_mailer.testing import deliver_all
from docs.settings_entries import read_entries

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {file.name: file for file in (ROOT / "README.rst", *sorted(DOCS.glob("*.rst")))}

# What no test can run, and why.
NOT_RUN = {
    (
        "quickstart.rst",
        "python",
        "example/celery.py",
    ): "another app of Celery: tests/test_docs_projects.py runs it",
    ("quickstart.rst", "python", "example/__init__.py"): "as above",
    ("heroku.rst", "text", "Procfile"): "tests/test_heroku.py starts and stops it",
    ("moving.rst", "diff", ""): "tests/moving edits sites so, of which these are parts",
    ("performance.rst", "text", "CPython"): "what tests/benchmarks printed, on that day",
    ("performance.rst", "text", "Update"): "a plan of PostgreSQL, which tests/sending hold",
    ("performance.rst", "text", "Append"): "another one",
    ("testing.rst", "python", ""): "tests/test_docs_projects.py runs them, as files",
}


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block of code; ``line`` is its first."""

    page: str
    line: int
    language: str
    caption: str
    code: str


_BLOCK = re.compile(
    r"^(?P<indent> *)\.\. code-block:: (?P<language>\S+)\n"
    r"(?P<options>(?:(?P=indent)   :\S+:.*\n)*)\n"
    r"(?P<code>(?:(?P=indent)   .*\n|\n)+)",
    re.MULTILINE,
)


def read_blocks(page: str) -> list[Block]:
    text = PAGES[page].read_text("utf-8")
    found = list(_BLOCK.finditer(text))
    # Nothing that looks like one is overlooked.
    directives = re.findall(r"^ *\.\. (?:code|code-block|sourcecode)::", text, re.MULTILINE)
    assert len(found) == len(directives)
    assert not re.search(r"^(?! *\.\.).*::\n\n +\S", text, re.MULTILINE), "of no language"
    return [
        Block(
            page=page,
            line=text.count("\n", 0, match.start("code")) + 1,
            language=match["language"],
            caption="".join(re.findall(r":caption: (.+)", match["options"])),
            code=dedent(match["code"]),
        )
        for match in found
    ]


BLOCKS = [block for page in PAGES for block in read_blocks(page)]


def find_why_not(block: Block) -> str:
    first = block.code.split()[0]
    return "".join(
        why
        for (page, language, what), why in NOT_RUN.items()
        if (page, language) == (block.page, block.language) and what in ("", block.caption, first)
    )


def find(language: str) -> Callable[[Callable[[Block], None]], Callable[[Block], None]]:
    """Parametrize a test with each block of a language that it can run."""
    blocks = [block for block in BLOCKS if block.language == language and not find_why_not(block)]
    assert blocks
    return pytest.mark.parametrize(
        "block", blocks, ids=[f"{block.page}:{block.line}" for block in blocks]
    )


def find_files(page: str) -> dict[str, str]:
    return {block.caption: block.code for block in read_blocks(page) if block.caption}


def test_each_block_is_of_a_language_that_is_run() -> None:
    run = {"python", "console", "sh", "json", "yaml", "django", "diff"}
    others = [block for block in BLOCKS if block.language not in run and not find_why_not(block)]
    # Its own test below.
    [headers] = others
    assert (headers.page, headers.language) == ("unsubscribe.rst", "text")
    assert all(any(find_why_not(block) == why for block in BLOCKS) for why in NOT_RUN.values())


# Python

OWN = {name for entry in read_entries().values() for name in entry.names} | {
    "CONNECT_MAILER",
    "MAILERS",  # of Django >= 6.1
}


@pytest.fixture
def receivers() -> Iterator[None]:
    """Those of an example end with it."""
    from django_bouncy.signals import feedback

    before = [(signal, list(signal.receivers)) for signal in (feedback, signals.message_failed)]
    yield
    for signal, receivers in before:
        signal.receivers = receivers
        signal.sender_receivers_cache.clear()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, settings: Any) -> dict[str, Any]:
    """What a site has before a reader comes to a page, and what a sentence gives an example."""
    monkeypatch.setenv("REDIS_URL", "rediss://:secret@example.com:6380")
    backend = "connect_mailer.backend.ConnectMailerBackend"
    # Django's test runner has put another in its place.
    if hasattr(settings, "MAILERS"):
        settings.MAILERS = {"default": {"BACKEND": backend}}
    else:
        settings.EMAIL_BACKEND = backend
    return {
        "os": os,
        "path": path,
        "include": include,
        "_": gettext_lazy,
        "INSTALLED_APPS": [],
        "DATABASES": {"default": {}},
        "MAILERS": {},
        "urlpatterns": [],
        "subject": make_token("jane@example.com", "digest"),
    }


def run_page(page: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run the blocks of a page one after the other; return what they set."""
    set_here: set[str] = set()
    for block in read_blocks(page):
        if block.language == "python" and not find_why_not(block):
            file = str(PAGES[page])
            tree = ast.increment_lineno(ast.parse(block.code, file), block.line - 1)
            exec(compile(tree, file, "exec"), names)
            stored = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
            set_here |= {node.id for node in stored if isinstance(node.ctx, ast.Store)}
    return {name: names[name] for name in set_here if name in names}


@pytest.mark.parametrize(
    "page",
    sorted(
        {block.page for block in BLOCKS if block.language == "python" and not find_why_not(block)}
    ),
)
@pytest.mark.django_db
def test_python_runs(
    page: str, site: dict[str, Any], receivers: None, settings: Any, celery_tasks: set[str]
) -> None:
    for name, value in run_page(page, site).items():
        if name.startswith("CELERY_"):
            assert name.removeprefix("CELERY_").lower() in celery.app.defaults.SETTING_KEYS
        elif name == "CONNECT_MAILER":
            settings.CONNECT_MAILER = value
            assert not [found for found in checks.run_checks() if found.level >= checks.ERROR]
        elif name == "EMAIL_BACKEND":
            import_string(value)
        elif name.isupper():
            assert hasattr(settings, name) or name in OWN, f"{name} is a setting of nobody"
        if name == "CELERY_BEAT_SCHEDULE":
            assert {entry["task"] for entry in value.values()} <= celery_tasks


@pytest.fixture
def celery_tasks() -> set[str]:
    import connect_mailer.tasks  # noqa: F401

    return set(current_app.tasks)


@pytest.mark.django_db
def test_what_the_quickstart_says_of_a_message_is_stored(
    site: dict[str, Any], receivers: None
) -> None:
    run_page("quickstart.rst", site)

    row = OutgoingMessage.objects.get()
    assert (row.priority, row.mailing_list, row.stream) == (9, "digest", "default")
    assert row.tags == {"tag": "digest", "edition": "42"}
    assert row.send_after
    assert row.expires_at
    assert row.expires_at > row.send_after


@pytest.mark.django_db
def test_the_mailbox_of_opt_outs_is_read_as_shown(site: dict[str, Any], settings: Any) -> None:
    settings.CONNECT_MAILER = settings.CONNECT_MAILER | {"MAILING_LISTS": {"digest": "Digest"}}
    Unsubscribe.objects.opt_out("jane@example.com")
    left = run_page("unsubscribe.rst", site)

    assert left["optout"].mailing_list == "digest"
    # The last block welcomes her back, from that list and from all mail.
    assert not Unsubscribe.objects.address_exists("jane@example.com")


@pytest.mark.django_db
def test_the_headers_are_those_of_a_message(mailoutbox: list[EmailMessage], settings: Any) -> None:
    [block] = [block for block in read_blocks("unsubscribe.rst") if block.language == "text"]
    settings.CONNECT_MAILER = {
        "UNSUBSCRIBE_BASE_URL": "https://www.example.com",
        "TRANSPORT": "django.core.mail.backends.locmem.EmailBackend",
    }
    from connect_mailer.backend import ConnectMailerBackend

    ConnectMailerBackend().send_messages(
        [EmailMessage("Digest", "News", "site@example.com", ["jane@example.com"])]
    )
    assert deliver_all() == 1
    mime = mailoutbox[0].message().as_bytes().decode().replace("\r\n", "\n")
    shown = re.escape(block.code.strip()).replace(r"\.\.\.", r"\S+")
    assert re.search(f"^{shown}$", mime, re.MULTILINE)


# Commands


def read_commands(block: Block) -> list[list[str]]:
    text = re.sub(r"\\\n\s*", " ", block.code)
    lines = text.splitlines()
    assert all(line.startswith("$ ") for line in lines if line), lines
    return [shlex.split(line[2:], comments=True) for line in lines if line]


def parse_manage(words: list[str]) -> None:
    """Let a management command's own parser take its arguments."""
    name, *arguments = words
    app = get_commands()[name]
    command = load_command_class(app, name) if isinstance(app, str) else app
    examples = {"SOURCE": "connect", "FILE": "leavers.csv", "NAME": "mail-feedback"}
    command.create_parser("manage.py", name).parse_args(
        [examples.get(word, word) for word in arguments]
    )


def parse_celery(words: list[str]) -> None:
    app, name, *arguments = words
    assert app.startswith("-A"), words
    if app == "-A":
        name, *arguments = arguments
    command = celery_command.commands[name]
    _, left, _ = command.make_parser(click.Context(command)).parse_args(arguments)
    assert not left, words


def parse_pip(words: list[str]) -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    if words[0] == "uninstall":
        return  # of an app that is left
    assert words[0] == "install"
    for word in words[1:]:
        if f'"{word}"' in project:
            continue  # as what depends on it here has it
        name, _, extra = word.partition("[")
        assert f'name = "{name}"' in project, word
        assert not extra or f"\n{extra.rstrip(']')} = [" in project, word


def parse_tox(words: list[str]) -> None:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini")
    factors = set(re.findall(r"\w+(?=:)", "\n".join(config["testenv"].values())))
    for names in re.findall(r"-e (\S+)", " ".join(words)):
        for name in names.split(","):
            assert f"testenv:{name}" in config or all(
                factor in factors or re.fullmatch(r"py3\d\d", factor) for factor in name.split("-")
            ), name
    for file in words:
        assert not file.startswith("tests/") or (ROOT / file).exists(), file


def parse_heroku(words: list[str]) -> None:
    """Nothing of Heroku is here: what is set there has to be a name that is read."""
    assert words[0] == "config:set"
    for word in words[1:]:
        name = word.partition("=")[0]
        assert name in OWN or name == "REMAP_SIGTERM", name


def parse_command(words: list[str]) -> None:
    if words[:1] == ["pipx"]:
        words = words[2:]
    match words:
        case ["python", "manage.py", *rest]:
            parse_manage(rest)
        case ["python", "-m", "pip", *rest] | ["pip", *rest]:
            parse_pip(rest)
        case ["celery", *rest]:
            parse_celery(rest)
        case ["heroku", *rest]:
            parse_heroku(rest)
        case ["tox", *rest]:
            parse_tox(rest)
        case ["export" | "mkdir", *_]:
            pass  # nothing of ours: the shell's syntax is looked at
        case _:
            pytest.fail(f"no test knows the command {words}")


@find("console")
def test_commands_exist_with_these_options(block: Block) -> None:
    commands = read_commands(block)
    assert commands
    shell = re.sub(r"^\$ ", "", block.code, flags=re.MULTILINE)
    subprocess.run(["sh", "-n"], input=shell, text=True, check=True)
    for words in commands:
        parse_command(words)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_a_sentence_exist_with_these_options(page: str) -> None:
    for text in re.findall(r"``([^`]+)``", PAGES[page].read_text("utf-8")):
        text = " ".join(text.split())
        if text.startswith("manage.py "):
            words = shlex.split(text.removeprefix("manage.py "))
            # On that page there are commands of the apps that are left, too.
            if page != "moving.rst" or words[0] in get_commands():
                parse_manage(words)
        elif text.startswith("tox "):
            parse_tox(shlex.split(text.removeprefix("tox ")))
        elif text.startswith("pip install "):
            if "connect-mailer" in text:
                parse_pip(shlex.split(text.removeprefix("pip ")))
        elif module := re.match(r"python -m (tests\.[a-z.]+)", text):
            name = module[1].replace(".", "/")
            assert (ROOT / f"{name}.py").exists() or (ROOT / name / "__main__.py").exists(), text


# AWS

_AWS = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["AWS_CALLS"], "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
"""


def read_aws_value(text: str) -> Any:
    """A value as AWS's command line reads it: JSON, its shorthand, or a text."""
    if text.startswith(("{", "[")):
        return json.loads(text)
    if re.fullmatch(r"\w+=[^\s]+", text):
        return dict([text.split("=", 1)])
    return text


def judge_aws(words: list[str]) -> None:
    """The operation exists and takes these values, as botocore describes it."""
    service, name, *arguments = words
    model = botocore.session.get_session().get_service_model(service)
    [operation] = [
        model.operation_model(each)
        for each in model.operation_names
        if xform_name(each, "-") == name
    ]
    members = operation.input_shape.members
    names = {xform_name(member, "-"): member for member in members}
    # Source: awscli's customization of ``sns subscribe``.
    names["notification-endpoint"] = "Endpoint"
    parameters = {}
    for option, text in zip(arguments[::2], arguments[1::2], strict=True):
        member = names[option.removeprefix("--")]
        value = read_aws_value(text)
        if members[member].type_name == "string" and not isinstance(value, str):
            assert json.loads(text)  # such as a policy
            value = text
        parameters[member] = value
    report = ParamValidator().validate(parameters, operation.input_shape)
    assert not report.has_errors(), report.generate_report()
    for value in parameters.get("Attributes", {}).values():
        if value.startswith("{"):
            json.loads(value)


def test_commands_of_aws_ask_for_what_there_is(tmp_path: Path) -> None:
    fake = tmp_path / "aws"
    fake.write_text(_AWS)
    fake.chmod(0o755)
    blocks = [block.code for block in BLOCKS if block.language == "sh"]
    calls = tmp_path / "calls"
    subprocess.run(
        ["sh", "-eu"],
        input="\n".join(blocks),
        text=True,
        check=True,
        env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "AWS_CALLS": str(calls)},
    )
    asked = [json.loads(line) for line in calls.read_text().splitlines()]
    assert len(asked) >= len(blocks)
    for words in asked:
        judge_aws(words)


# Other languages


@find("json")
def test_json_parses(block: Block) -> None:
    assert json.loads(block.code)


@find("yaml")
def test_alerts_are_about_metrics_that_there_are(block: Block) -> None:
    known = set(re.findall(r"^# HELP (\w+)", generate_latest(REGISTRY).decode(), re.MULTILINE))
    known |= {family.name for family in OutboxCollector().describe()}
    for alert in yaml.safe_load(block.code):
        assert set(alert) >= {"alert", "expr"}
        names = set(re.findall(r"connect_mailer_\w+", alert["expr"]))
        assert names
        assert names <= known, alert


@find("django")
def test_templates_render(block: Block) -> None:
    class User:
        email = "jane@example.com"

    lines = engines["django"].from_string(block.code).render({"user": User()}).split()
    assert lines
    assert all(line.startswith("https://www.example.com/mail/unsubscribe/") for line in lines)
    assert len(set(map(unquote, lines))) == len(lines)


def resolve(path: str) -> None:
    """Import what a dotted path leads to, be it a module or something in one."""
    try:
        importlib.import_module(path)
    except ModuleNotFoundError:
        import_string(path)


@find("diff")
def test_diffs_lead_from_python_to_python_that_imports(block: Block) -> None:
    before = "".join(line[1:] + "\n" for line in block.code.splitlines() if line[:1] in " -")
    after = "".join(line[1:] + "\n" for line in block.code.splitlines() if line[:1] in " +")
    assert before != after
    compile(dedent(before), "before", "exec")
    tree = ast.parse(dedent(after), "after")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("connect_mailer"):
            for alias in node.names:
                import_string(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Constant) and str(node.value).startswith("connect_mailer"):
            resolve(str(node.value))
