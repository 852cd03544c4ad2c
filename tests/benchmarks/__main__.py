"""``python -m tests.benchmarks NAME [OPTIONS]``, on the database that ``TEST_DATABASE`` names."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def main(arguments: list[str]) -> int:
    """Run those that are named; each has a ``main()``, which finds options in ``sys.argv``."""
    names = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    if not names or not set(names) <= set(NAMES):
        print(f"usage: python -m tests.benchmarks {{{','.join(NAMES)}}} [OPTIONS]")  # noqa: T201
        return 2
    for name in names:
        sys.argv = [name, *arguments[len(names) :]]
        importlib.import_module(f"tests.benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
