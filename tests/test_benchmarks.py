"""The benchmarks run: none of what they say is looked at, two noisy cores."""

from __future__ import annotations

import configparser
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


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
