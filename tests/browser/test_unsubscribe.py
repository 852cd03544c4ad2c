"""The pages behind an unsubscribe link, as a reader sees them."""

from __future__ import annotations

import pytest

from connect_mailer.models import Unsubscribe
from connect_mailer.optout.tokens import make_old_code, make_token
from tests.optout.arabic import ARABIC, write_catalog

pytestmark = pytest.mark.browser

ADDRESS = "ada.lovelace+news@example.com"


def _path(mailing_list="", address=ADDRESS):
    return f"/mail/unsubscribe/{make_token(address, mailing_list)}/"


def _rows():
    return set(Unsubscribe.objects.values_list("source", "mailing_list"))


def _press(page, button, heading):
    page.get_by_role("button", name=button, exact=True).click()
    page.get_by_role("heading", name=heading, exact=True).wait_for()


@pytest.fixture
def lists(settings):
    settings.CONNECT_MAILER = {
        "MAILING_LISTS": {
            "digest": "Weekly digest",
            "events": "Events near you",
            "product": "What is new in the product, and how others use it",
        }
    }


@pytest.mark.parametrize("with_script", [True, False])
def test_out_and_back(open_page, check_page, with_script):
    page = open_page(_path(), java_script_enabled=with_script)
    assert not _rows()
    if with_script:  # which axe-core needs, and the pages don't
        check_page(page, "unsubscribe-confirm")
    _press(page, "Unsubscribe", "You are unsubscribed")
    assert _rows() == {("user", "")}
    if with_script:
        check_page(page, "unsubscribe-done")
    _press(page, "Undo", "Welcome back")
    assert not _rows()
    if with_script:
        check_page(page, "unsubscribe-back")


@pytest.mark.usefixtures("lists")
def test_this_list_or_everything(open_page, check_page):
    page = open_page(_path("digest"))
    check_page(page, "unsubscribe-list")
    _press(page, "Unsubscribe from this list", "You are unsubscribed")
    assert _rows() == {("user", "digest")}
    check_page(page, "unsubscribe-list-done")
    page.get_by_role("link", name="Choose which mail you get").click()
    page.get_by_role("heading", name="Your subscriptions").wait_for()
    check_page(page, "unsubscribe-list-left")

    events = page.get_by_role("listitem").filter(has_text="Events near you")
    assert "not subscribed" not in events.inner_text()
    events.get_by_role("button", name="Unsubscribe").click()
    page.get_by_role("link", name="Choose which mail you get").click()
    events = page.get_by_role("listitem").filter(has_text="Events near you")
    assert "not subscribed" in events.inner_text()
    assert _rows() == {("user", "digest"), ("user", "events")}
    events.get_by_role("button", name="Subscribe again").click()
    page.get_by_role("heading", name="Welcome back").wait_for()
    assert _rows() == {("user", "digest")}

    page.goto(_path("digest"))
    _press(page, "Unsubscribe from everything", "You are unsubscribed")
    assert _rows() == {("user", "digest"), ("user", "")}
    page.goto(_path("digest"))
    check_page(page, "unsubscribe-everything-left")
    page.goto(_path("digest") + "undo/")
    _press(page, "Subscribe again", "Welcome back")
    assert _rows() == {("user", "digest")}


@pytest.mark.usefixtures("lists")
def test_back_to_a_list_while_everything_is_left(open_page, check_page):
    page = open_page(_path("digest"))
    _press(page, "Unsubscribe from this list", "You are unsubscribed")
    Unsubscribe.objects.opt_out(ADDRESS)
    _press(page, "Undo", "You are still unsubscribed from everything")
    assert _rows() == {("user", "")}
    check_page(page, "unsubscribe-still-out")
    _press(page, "Subscribe again", "Welcome back")
    assert not _rows()


@pytest.mark.usefixtures("lists")
def test_a_reader_who_complained(open_page, check_page):
    Unsubscribe.objects.suppress(ADDRESS, "complaint")
    page = open_page(_path("digest"))
    check_page(page, "unsubscribe-blocked")
    page.get_by_role("button", name="Unsubscribe from this list").click()
    _press(page, "Undo", "Mail is still stopped")
    check_page(page, "unsubscribe-blocked-back")
    assert _rows() == {("complaint", "")}


def test_a_link_that_was_cut_off(open_page, check_page):
    page = open_page(_path()[:-9] + "/")
    assert page.get_by_role("heading", name="This link does not work").is_visible()
    check_page(page, "unsubscribe-invalid")


def test_thanks(open_page, check_page):
    check_page(open_page("/mail/unsubscribe/thanks/"), "unsubscribe-thanks")


def test_a_link_of_connect(open_page, settings):
    settings.EMAIL_SECRET_KEY = "abcd"
    code = make_old_code(ADDRESS, "abcd")
    page = open_page(f"/mail/unsubscribe/?email={ADDRESS}&code={code}")
    _press(page, "Unsubscribe", "You are unsubscribed")
    assert "ada" not in page.url
    assert _rows() == {("user", "")}


@pytest.mark.usefixtures("lists")
@pytest.mark.parametrize(
    ("locale", "button", "heading", "undo", "back"),
    [
        (
            "de-AT",
            "Von diesem Verteiler abmelden",
            "Sie sind abgemeldet",
            "Rückgängig machen",
            "Willkommen zurück",
        ),
        (
            "es-MX",
            "Cancelar la suscripción a esta lista",
            "Su suscripción está cancelada",
            "Deshacer",
            "Nos alegra verle de nuevo",
        ),
        (
            "fr-CA",
            "Se désabonner de cette liste",
            "Vous êtes désabonné",
            "Annuler",
            "Bon retour",
        ),
    ],
)
def test_in_the_readers_language(open_page, check_page, locale, button, heading, undo, back):
    page = open_page(_path("digest"), locale=locale)
    check_page(page, f"unsubscribe-{locale[:2]}")
    _press(page, button, heading)
    check_page(page, f"unsubscribe-{locale[:2]}-done")
    _press(page, undo, back)
    check_page(page, f"unsubscribe-{locale[:2]}-back")


@pytest.mark.usefixtures("lists")
def test_right_to_left(open_page, check_page, settings, tmp_path):
    write_catalog(tmp_path, "ar", ARABIC)
    settings.LOCALE_PATHS = [tmp_path]
    page = open_page(_path("digest"), locale="ar")
    assert page.locator("html").get_attribute("dir") == "rtl"
    check_page(page, "unsubscribe-rtl")
    # The list is mirrored: what is written begins at the right, its button ends at the left.
    item = page.get_by_role("listitem").first
    title, button = item.locator("bdi").bounding_box(), item.get_by_role("button").bounding_box()
    assert button["x"] < title["x"]
    _press(page, ARABIC["Unsubscribe from this list"], ARABIC["You are unsubscribed"])
    check_page(page, "unsubscribe-rtl-done")
    _press(page, ARABIC["Undo"], ARABIC["Welcome back"])
    check_page(page, "unsubscribe-rtl-back")


@pytest.mark.usefixtures("lists")
def test_by_keyboard_alone(open_page):
    page = open_page(_path("digest"))
    for name in ("Unsubscribe from this list", "Unsubscribe from everything", "Unsubscribe"):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        assert focused.inner_text() == name
        assert focused.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="You are unsubscribed").wait_for()
    assert _rows() == {("user", "")}
