"""A language that is written from right to left, as a site adds one to ``LOCALE_PATHS``."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ARABIC: Final = {
    "Unsubscribe": "إلغاء الاشتراك",
    "Unsubscribe?": "هل تريد إلغاء الاشتراك؟",
    "Unsubscribed": "تم إلغاء الاشتراك",
    "Unsubscribe from this list": "إلغاء الاشتراك في هذه القائمة",
    "Unsubscribe from everything": "إلغاء جميع الاشتراكات",
    "Your subscriptions": "اشتراكاتك",
    "subscribed": "مشترك",
    "not subscribed": "غير مشترك",
    "The list “%(mailing_list)s” of %(site_name)s will no longer be sent to": (
        "لن تُرسل القائمة «%(mailing_list)s» من %(site_name)s بعد الآن إلى"
    ),
    "You are unsubscribed": "تم إلغاء اشتراكك",
    "Undo": "تراجع",
    "Choose which mail you get": "اختر الرسائل التي تريد تلقيها",
    "Mail that is on its way already may still arrive. You can close this page.": (
        "قد تصلك رسائل أُرسلت من قبل. يمكنك إغلاق هذه الصفحة."
    ),
    "Subscribed again": "تم تجديد الاشتراك",
    "Welcome back": "مرحبًا بعودتك",
    "The list “%(mailing_list)s” of %(site_name)s will be sent again to": (
        "ستُرسل القائمة «%(mailing_list)s» من %(site_name)s مجددًا إلى"
    ),
    "What belongs to no list goes on until you unsubscribe from everything.": (
        "تستمر الرسائل التي لا تنتمي إلى أي قائمة حتى تلغي جميع الاشتراكات."
    ),
}


def write_catalog(folder: Path, language: str, texts: Mapping[str, str]) -> None:
    """Write ``django.mo`` of a language below a folder of ``LOCALE_PATHS``.

    Source: GNU gettext manual, "The Format of GNU MO Files".
    """
    entries = sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **texts}.items())
    tables, strings = [b"", b""], b""
    start = 28 + 16 * len(entries)
    for pair in entries:
        for number, text in enumerate(pair):
            data = text.encode()
            tables[number] += struct.pack("<II", len(data), start + len(strings))
            strings += data + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, len(entries), 28, 28 + 8 * len(entries), 0, start)
    path = folder / language / "LC_MESSAGES" / "django.mo"
    path.parent.mkdir(parents=True)
    path.write_bytes(header + b"".join(tables) + strings)
