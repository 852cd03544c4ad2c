"""``python -m tests.benchmarks NAME``, on the database that ``TEST_DATABASE`` names."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def main(arguments: list[str]) -> int:
    """Run those that are named, each of which has a ``main()``."""
    if not arguments or not set(arguments) <= set(NAMES):
        print(f"usage: python -m tests.benchmarks {{{','.join(NAMES)}}}")  # noqa: T201
        return 2
    for name in arguments:
        importlib.import_module(f"tests.benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
