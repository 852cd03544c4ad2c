"""How the documentation is built: ``sphinx-build -W -n docs docs/_build/html``."""

import sys
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.db.models import Field, Manager, Model
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent.parent))

from connect_mailer import __version__

project = "connect_mailer"
project_copyright = "The connect_mailer developers"
release = version = __version__

# The models can be looked at in a site only.
settings.configure(
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "connect_mailer",
        "connect_mailer.bouncy",
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3"}},
)
django.setup()

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docs.settings_reference",
]
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
# Of one project no reference may be missing; those of others are not looked up on the network.
nitpick_ignore_regex = [(r"py:.*", r"(?!connect_mailer\.).*")]
exclude_patterns = ["_build"]
templates_path = []
default_role = "literal"
highlight_language = "python"
nitpicky = True

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_title = f"connect_mailer {release}"
html_copy_source = False
html_show_sphinx = False


def add_columns(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Name the columns of a model below its docstring."""
    if what == "class" and issubclass(obj, Model):
        lines += ["", *map(describe_column, obj._meta.fields), ""]


def describe_column(field: "Field[Any, Any]") -> str:
    """One column, as an item of a list: its kind, what it may hold, what the admin says of it."""
    values = " or ".join(f"``{value}``" for value, _label in field.flatchoices)
    parts = [type(field).__name__, values, str(field.help_text)]
    return f"* ``{field.attname}``: {'; '.join(part for part in parts if part)}"


def keep_colons(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Napoleon takes what stands before a colon in the first line for the type of a value."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # a comment that is empty


def hide_arguments(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Nobody calls a model or a manager by what autodoc finds: ``(*args, **kwargs)``."""
    return ("", "") if what == "class" and issubclass(obj, (Model, Manager)) else None


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", add_columns)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", hide_arguments)
