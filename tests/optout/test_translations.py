from __future__ import annotations

import ast
import gettext
import re
from pathlib import Path

import pytest
from django.utils.translation.template import templatize

import connect_mailer

PACKAGE = Path(connect_mailer.__file__).parent
LANGUAGES = sorted(path.name for path in (PACKAGE / "locale").iterdir())


def _open(language):
    with (PACKAGE / "locale" / language / "LC_MESSAGES" / "django.mo").open("rb") as compiled:
        return gettext.GNUTranslations(compiled)


def test_there_are_translations():
    assert {"de", "es", "fr"} <= set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_catalogs_are_complete_and_compiled(language):
    catalog = _open(language)
    folder = PACKAGE / "locale" / language / "LC_MESSAGES"
    for entry in (folder / "django.po").read_text().split("\n\n")[1:]:
        assert "fuzzy" not in entry
        msgid, msgstr = (
            ast.literal_eval(
                "("
                + re.search(rf'^{name} ((?:".*"\n?)+)', entry, re.MULTILINE)[1].replace("\n", " ")
                + ")"
            )
            for name in (r"msgid", r"msgstr(?:\[0\])?")
        )
        assert msgstr
        translated = (
            catalog.ngettext(msgid, "", 1) if "msgid_plural" in entry else catalog.gettext(msgid)
        )
        assert translated == msgstr


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_is_translated_whole(language):
    catalog = _open(language)
    texts = {
        text
        for template in (PACKAGE / "templates").rglob("*.html")
        for text in _find_in_template(template.read_text())
    }
    texts |= {text for module in PACKAGE.rglob("*.py") for text in _find_in_module(module)}
    assert len(texts) > 200
    # A word may be the same in two languages: that it is missing is told by the fallback.
    missing = object()
    catalog.add_fallback(_Fallback(missing))
    assert not [text for text in texts if catalog.gettext(text) is missing]


class _Fallback(gettext.NullTranslations):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def gettext(self, message):
        return self.answer


def _find_in_template(template):
    """What makemessages would find."""
    source = templatize(template)
    return [
        ast.literal_eval(text) for text in re.findall(r"gettext\((u(?:'.*?'|\".*?\"))\) ", source)
    ]


def _find_in_module(module):
    for node in ast.walk(ast.parse(module.read_text())):
        name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
        if name in {"_", "gettext", "gettext_lazy"}:
            yield ast.literal_eval(node.args[0])
