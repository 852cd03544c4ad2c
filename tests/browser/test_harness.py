"""What a page is held to: each of these fails, so the other tests can."""

from __future__ import annotations

import pytest

from tests.browser import conftest

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("<p style='color: #bbb; background: #fff'>Pale", "color-contrast"),
        ("<input>", "label"),
        ("<p style='width: 500px'>Wide", "phone: the page is"),
    ],
)
def test_what_is_wrong_with_a_page_is_told(
    open_page, check_page, content, problem, monkeypatch, tmp_path
):
    monkeypatch.setattr(conftest, "SCREENSHOTS", tmp_path)
    page = open_page("/mail/unsubscribe/x/", bypass_csp=True)
    page.set_content(f"<html lang=en><title>Wrong</title><main><h1>Wrong</h1>{content}</main>")
    with pytest.raises(AssertionError, match=problem):
        check_page(page, "wrong")
