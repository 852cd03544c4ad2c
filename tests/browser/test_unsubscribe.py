"""The pages behind an unsubscribe link, as a reader sees them."""

from __future__ import annotations

import pytest

from connect_mailer.models import Unsubscribe
from connect_mailer.optout.tokens import make_token

pytestmark = pytest.mark.browser

ADDRESS = "ada.lovelace+news@example.com"


def _path(mailing_list="", address=ADDRESS):
    return f"/mail/unsubscribe/{make_token(address, mailing_list)}/"


def test_a_reader_opts_out(open_page, check_page):
    page = open_page(_path())
    assert not Unsubscribe.objects.exists()
    check_page(page, "unsubscribe-confirm")
    page.get_by_role("button", name="Unsubscribe").click()
    page.get_by_role("heading", name="You are unsubscribed").wait_for()
    check_page(page, "unsubscribe-done")
    row = Unsubscribe.objects.get()
    assert (row.address, row.source, row.mailing_list) == (ADDRESS, "user", "")


def test_a_link_that_was_cut_off(open_page, check_page):
    page = open_page(_path()[:-9] + "/")
    assert page.get_by_role("heading", name="This link does not work").is_visible()
    check_page(page, "unsubscribe-invalid")
