"""A site of the shape of OFA Connect, moved over: ``python -m tests.connect``."""
