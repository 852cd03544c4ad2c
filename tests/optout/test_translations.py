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


def test_there_are_translations():
    assert {"de", "es", "fr"} <= set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_catalogs_are_complete_and_compiled(language):
    folder = PACKAGE / "locale" / language / "LC_MESSAGES"
    with (folder / "django.mo").open("rb") as compiled:
        catalog = gettext.GNUTranslations(compiled)
    for entry in (folder / "django.po").read_text().split("\n\n")[1:]:
        assert "fuzzy" not in entry
        msgid, msgstr = (
            "".join(
                re.findall('"(.*)"', re.search(rf'^{name} ((?:".*"\n?)+)', entry, re.MULTILINE)[1])
            )
            for name in (r"msgid", r"msgstr(?:\[0\])?")
        )
        assert msgstr
        translated = (
            catalog.ngettext(msgid, "", 1) if "msgid_plural" in entry else catalog.gettext(msgid)
        )
        assert translated == msgstr


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_pages_of_readers_are_translated_whole(language):
    with (PACKAGE / "locale" / language / "LC_MESSAGES" / "django.mo").open("rb") as compiled:
        catalog = gettext.GNUTranslations(compiled)
    texts = {
        text
        for template in (PACKAGE / "templates" / "connect_mailer").glob("*.html")
        for text in _find_texts(template.read_text())
    }
    assert len(texts) > 20
    assert not [text for text in texts if catalog.gettext(text) == text]


def _find_texts(template):
    """What makemessages would find."""
    source = templatize(template)
    return [
        ast.literal_eval(text) for text in re.findall(r"gettext\((u(?:'.*?'|\".*?\"))\) ", source)
    ]
