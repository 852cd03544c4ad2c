"""The reference of the settings: the docstrings of ``connect_mailer.conf.Conf``.

``.. settings::`` lists names, one a line, in the order in which they are to be read; each
becomes a ``confval`` with its type, its default and its text. A name that ``conf`` doesn't have
is an error of the build; one that the page doesn't have fails a test.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from docs.settings_entries import read_entries


class Settings(SphinxDirective):
    """``.. settings::``"""

    has_content = True

    def run(self) -> list[nodes.Node]:
        entries = read_entries()
        lines = StringList()
        for name in self.content:
            if name not in entries:
                raise self.error(f"connect_mailer.conf documents no setting {name!r}.")
            entry = entries[name]
            for line in entry.as_rst().splitlines():
                lines.append(line, f"connect_mailer.conf.Conf.{entry.attribute}")
            lines.append("", "")
        return self.parse_text_to_nodes(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("settings", Settings)
    return {"parallel_read_safe": True}
