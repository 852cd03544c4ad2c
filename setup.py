"""A shim for tools that still look for it: all is in pyproject.toml."""

from setuptools import setup

setup()
