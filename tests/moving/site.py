"""A site with an interpreter of its own, where the blocks of the page are followed."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import site
import subprocess
import sys
import venv
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

from tests.servers import make_environment

ROOT = Path(__file__).parent.parent.parent
SITES = Path(__file__).parent / "sites"
_PAGE = (ROOT / "docs" / "moving.rst").read_text("utf-8")


class Block(NamedTuple):
    """A block of the page: a ``diff`` of the file in its caption, or what a ``console`` shows."""

    language: str
    caption: str
    text: str

    @property
    def file(self) -> str:
        return self.caption.partition(",")[0]

    @property
    def commands(self) -> list[str]:
        return [line.removeprefix("$ ") for line in self.text.splitlines()]


def read_section(title: str) -> list[Block]:
    """The diffs and the commands of a section, in order."""
    [section] = re.findall(
        rf"^{title}\n-+\n(.*?)(?=^\S+\n-+\n|\Z)", _PAGE, re.DOTALL | re.MULTILINE
    )
    return [
        Block(language, caption or "", dedent(text).strip("\n"))
        for language, caption, text in re.findall(
            r"^\.\. code-block:: (diff|console)\n(?:   :caption: (.+)\n)?\n((?:   .*\n|\n)+)",
            section,
            re.MULTILINE,
        )
    ]


def patch(text: str, diff: str) -> str:
    """A file with the edits of a diff. Hunks end at empty lines; each has one place."""
    for hunk in re.split(r"\n\s*\n", diff):
        lines = hunk.splitlines()
        assert all(line[0] in " +-" for line in lines), hunk
        old = "".join(f"{line[1:]}\n" for line in lines if line[0] != "+")
        new = "".join(f"{line[1:]}\n" for line in lines if line[0] != "-")
        assert text.count(old) == 1, f"{old}\n is {text.count(old)} times in\n{text}"
        text = text.replace(old, new)
    return text


class MovingSite:
    """One of ``sites/``, in a folder of its own.

    Its interpreter has what this one has, and can have more, and lose it again.
    """

    def __init__(self, folder: Path, name: str, env: dict[str, str]) -> None:
        self.folder = folder
        shutil.copytree(SITES / "common", folder, dirs_exist_ok=True)
        shutil.copytree(SITES / name, folder, dirs_exist_ok=True)
        venv.create(folder / "venv", symlinks=True)
        self._bin = folder / "venv" / "bin"
        [packages] = folder.glob("venv/lib/python*/site-packages")
        shared = [*site.getsitepackages(), str(ROOT)]
        (packages / "shared.pth").write_text("".join(f"{path}\n" for path in shared))
        kept = make_environment(PYTHONDONTWRITEBYTECODE="1", **env)
        kept.pop("DJANGO_SETTINGS_MODULE", None)
        self._env = {**kept, "PATH": f"{self._bin}{os.pathsep}{kept['PATH']}"}
        self._workers: list[subprocess.Popen[bytes]] = []

    def install(self, *packages: str) -> None:
        """As a person would, if what they depend on is here already."""
        self._run([*_PIP, "--python", str(self._bin / "python"), "install", "--quiet", *packages])

    def follow(self, block: Block) -> str:
        """Do what a block of the page says; return what its commands print."""
        if block.language == "diff":
            path = self.folder / block.file
            path.write_text(patch(path.read_text("utf-8"), block.text), "utf-8")
            return ""
        return "".join(map(self.run, block.commands))

    def run(self, command: str) -> str:
        """A command of the page, with the site's own interpreter."""
        words = shlex.split(command)
        if words[0] == "celery":
            self._workers.append(
                subprocess.Popen(
                    [str(self._bin / "python"), "-m", *words],
                    cwd=self.folder,
                    env=self._env,
                    start_new_session=True,
                )
            )
            return ""
        if words[0] == "pip":
            words = [*_PIP, "--python", str(self._bin / "python"), *words[1:], "--yes"]
        else:
            assert words[0] == "python", command
            words[0] = str(self._bin / "python")
        return self._run(words)

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}"
        return done.stdout

    def stop_workers(self) -> None:
        """Let them end what they do."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.wait(60)

    def close(self) -> None:
        """Leave no process behind, however it is."""
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait(60)


_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
