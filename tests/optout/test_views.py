from __future__ import annotations

import base64
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client, override_settings
from django.test.client import BOUNDARY, MULTIPART_CONTENT, encode_multipart
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import translation
from django.utils.translation import gettext_lazy

from connect_mailer.conf import conf
from connect_mailer.models import Unsubscribe
from connect_mailer.optout.tokens import make_old_code, make_token
from tests.optout.arabic import ARABIC, write_catalog

pytestmark = pytest.mark.django_db

ADDRESS = "ada+news@example.com"


def _url(mailing_list="", address=ADDRESS):
    return reverse("unsubscribe", kwargs={"token": make_token(address, mailing_list)})


def _rows():
    return list(Unsubscribe.objects.values_list("address", "source", "mailing_list"))


def _title(response):
    return re.search("<title>(.*?)</title>", response.content.decode(), re.DOTALL)[1]


def _buttons(page):
    """Where each button of a page posts to, by what is written on it."""
    forms = re.findall(
        '<form method="post" action="(.*?)">\\s*<button[^>]*>(.*?)</button>\\s*</form>', page
    )
    assert len(forms) == page.count("<form") == page.count("<button")
    return {label: action for action, label in forms}


def _text(response):
    page = re.sub("</?bdi>", "", response.content.decode())
    return " ".join(re.sub(r"<style>.*</style>|<[^>]+>", " ", page, flags=re.DOTALL).split())


LISTS = {"digest": "Weekly digest", "news": gettext_lazy("Unsubscribe")}


@pytest.fixture
def lists(settings):
    settings.CONNECT_MAILER = {"MAILING_LISTS": LISTS}


# A scanner looks


@pytest.mark.parametrize("method", ["get", "head"])
@pytest.mark.parametrize("path", ["", "undo/"])
def test_looking_changes_nothing(path, method, client, django_assert_num_queries):
    Unsubscribe.objects.create(address=ADDRESS, source="user", mailing_list="other")
    with django_assert_num_queries(1) as queries:
        response = getattr(client, method)(_url() + path)
    assert response.status_code == 200
    assert queries.captured_queries[0]["sql"].startswith("SELECT")
    assert _rows() == [(ADDRESS, "user", "other")]


def test_the_page_asks_and_its_button_opts_out(client):
    page = client.get(_url()).content.decode()
    assert ADDRESS in page
    assert _buttons(page) == {"Unsubscribe": _url()}
    assert "<input" not in page
    client.post(_buttons(page)["Unsubscribe"])
    assert _rows() == [(ADDRESS, "user", "")]


# A mail provider posts


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", ""),
        (b"List-Unsubscribe=One-Click", "application/x-www-form-urlencoded"),
        (encode_multipart(BOUNDARY, {"List-Unsubscribe": "One-Click"}), MULTIPART_CONTENT),
        (b"scope=all&undo=1", "application/x-www-form-urlencoded"),
        (b"--x\r\nbroken", "multipart/form-data; boundary=x"),
        (b"\xff\xfe{", "application/json; charset=no-such"),
        (b"List-Unsubscribe=One-Click" * 200_000, "application/x-www-form-urlencoded"),
    ],
)
def test_one_click(body, content_type):
    client = Client(enforce_csrf_checks=True)
    response = client.generic("POST", _url(), body, content_type=content_type)
    assert response.status_code == 200
    assert _rows() == [(ADDRESS, "user", "")]


def test_neither_cookie_nor_login_nor_redirect(client):
    for response in (client.get(_url()), client.post(_url())):
        assert response.status_code == 200
        assert not response.cookies
        assert "Cookie" not in response.get("Vary", "")


def test_again_is_once(client):
    first = client.post(_url())
    second = client.post(_url())
    assert first.status_code == second.status_code == 200
    assert first.content == second.content
    assert _rows() == [(ADDRESS, "user", "")]


@pytest.mark.usefixtures("lists")
def test_the_opt_out_is_of_the_list_in_the_link(client):
    client.post(_url("digest"))
    assert _rows() == [(ADDRESS, "user", "digest")]


@pytest.mark.parametrize("lists", [{}, {"weekly": "The digest's new name"}])
def test_a_list_that_the_site_does_not_name_is_all_mail(lists, client, settings):
    settings.CONNECT_MAILER = {"MAILING_LISTS": lists}
    for response in (client.get(_url("digest")), client.post(_url("digest"))):
        assert "testserver will send no more mail to" in _text(response)
        assert "digest”" not in _text(response)
    assert _rows() == [(ADDRESS, "user", "")]
    assert "testserver will send mail again" in _text(client.post(_url("digest") + "undo/"))
    assert not _rows()


def test_the_user_who_has_the_address_is_linked(client):
    ada = get_user_model().objects.create_user("ada", email="Ada+News@Example.com")
    client.post(_url())
    assert Unsubscribe.objects.get().user == ada


@pytest.mark.parametrize("mailing_list", ["", "digest"])
def test_it_costs_one_query_and_one_insert(mailing_list, client, settings):
    settings.CONNECT_MAILER = {"MAILING_LISTS": {"digest": "Weekly digest", "news": "News"}}
    for times_before in range(2):
        with CaptureQueriesContext(connection) as queries:
            response = client.post(_url(mailing_list))
        assert response.status_code == 200
        statements = [query["sql"].split()[0] for query in queries]
        assert "DELETE" not in statements
        assert statements.count("UPDATE") == times_before
        # PyMySQL forgets what failed, as an insert of what is there does.
        assert statements.count("INSERT") + statements.count("None") == 1
    with CaptureQueriesContext(connection) as queries:
        client.post(_url(mailing_list, "bob@example.com"))
    statements = [query["sql"].split()[0] for query in queries]
    assert [word for word in statements if word in ("SELECT", "INSERT")] == ["SELECT", "INSERT"]


@pytest.mark.parametrize("method", ["put", "patch", "delete", "options", "trace"])
@pytest.mark.parametrize("path", ["", "thanks/", "{token}/", "{token}/undo/"])
def test_other_methods_are_not_allowed(path, method, client):
    path = f"/mail/unsubscribe/{path.format(token=make_token(ADDRESS))}"
    response = getattr(client, method)(path)
    assert response.status_code == 405
    assert response["Allow"] == "GET, HEAD, POST"
    assert not _rows()


@pytest.mark.skipif(connection.vendor == "sqlite", reason="needs connections of its own")
@pytest.mark.django_db(transaction=True)
def test_many_at_once_are_one():
    def post(_):
        try:
            return Client().post(_url()).status_code
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as executor:
        assert set(executor.map(post, range(40))) == {200}
    assert _rows() == [(ADDRESS, "user", "")]


def test_a_site_behind_a_login_still_lets_readers_out(settings, client):
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    assert client.get(_url()).status_code == 200
    assert client.post(_url()).status_code == 200
    assert _rows()


# A broken link


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("token", ["nonsense", "a.b", "%2e%2e", "x" * 5000, "%ff%00"])
def test_a_broken_link_gets_a_page_that_helps(method, token, client):
    response = getattr(client, method)(f"/mail/unsubscribe/{token}/")
    assert response.status_code == 404
    assert "This link does not work" in _text(response)
    assert response["Referrer-Policy"] == "no-referrer"
    assert not _rows()


def test_an_altered_link_opts_nobody_out(client):
    response = client.post(_url().replace("/unsubscribe/W", "/unsubscribe/X"))
    assert response.status_code == 404
    assert not _rows()


# What the pages tell others


@pytest.mark.usefixtures("_secret")
@pytest.mark.parametrize("method", ["get", "head", "post", "put"])
@pytest.mark.parametrize(
    "path",
    ["{token}/", "{token}/undo/", "thanks/", "?email=test@test.com&code={code}", "a.b/"],
    ids=["token", "undo", "thanks", "old link", "bad token"],
)
def test_headers(path, method, client):
    path = path.format(token=make_token(ADDRESS), code=CODE)
    response = getattr(client, method)(f"/mail/unsubscribe/{path}")
    assert response.status_code == (405 if method == "put" else 404 if path == "a.b/" else 200)
    assert "no-store" in response["Cache-Control"]
    assert "private" in response["Cache-Control"]
    assert response["X-Robots-Tag"] == "noindex"
    assert response["Referrer-Policy"] == "no-referrer"
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Content-Security-Policy"].startswith("default-src 'none';")


@pytest.mark.parametrize("method", ["get", "post"])
def test_the_policy_allows_the_style_of_the_page_and_no_script(method, client):
    response = getattr(client, method)(_url())
    policy = dict(
        directive.split(None, 1) for directive in response["Content-Security-Policy"].split("; ")
    )
    page = response.content.decode()
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy["style-src"]
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in response["Content-Security-Policy"]
    assert not re.search(r"<script|<link|<img|\sstyle=|\son\w+=|https?:", page)


@pytest.mark.usefixtures("lists")
def test_no_address_in_title_and_log(client, caplog):
    caplog.set_level("DEBUG")
    for response in (client.get(_url()), client.post(_url("digest")), client.put(_url())):
        assert response.status_code in (200, 405)
        if response.status_code == 200:
            assert "ada" not in _title(response)
    assert conf.hash_address(ADDRESS) in caplog.text
    assert "opted out of 'digest'" in caplog.text
    assert "ada" not in caplog.text
    ours = [record for record in caplog.records if record.name.startswith("connect_mailer")]
    assert ours
    assert not [record for record in ours if make_token(ADDRESS, "digest") in record.getMessage()]


def test_what_a_link_carries_is_escaped(client, settings):
    name = "<script>alert(1)</script>"
    settings.CONNECT_MAILER = {"MAILING_LISTS": {name: name}}
    page = client.get(_url(name)).content.decode()
    assert "&lt;script&gt;" in page
    assert "<script" not in page


# Undo, and what one is subscribed to


def test_undo_at_once(client):
    done = client.post(_url()).content.decode()
    assert _buttons(done) == {"Undo": _url() + "undo/"}
    back = client.post(_buttons(done)["Undo"])
    assert "Welcome back" in _text(back)
    assert not _rows()
    assert client.post(_url() + "undo/").status_code == 200  # twice is once


@pytest.mark.parametrize("source", ["bounce", "complaint", "manual"])
def test_only_an_opt_out_can_be_taken_back(source, client):
    Unsubscribe.objects.create(address=ADDRESS, source=source)
    client.post(_url())
    back = client.post(_url() + "undo/")
    assert _rows() == [(ADDRESS, source, "")]
    assert "Mail is still stopped" in _text(back)
    assert "Only the site can change that" in _text(client.get(_url()))


class _Replica:
    """A router that reads opt-outs from where they come too late; there is no such database."""

    def db_for_read(self, model, **hints):
        return "replica" if model is Unsubscribe else None


def test_what_was_done_a_moment_ago_is_shown(client, settings):
    settings.DATABASE_ROUTERS = [_Replica()]
    client.post(_url())
    assert "You are unsubscribed" in _text(client.get(_url()))
    assert "Welcome back" in _text(client.post(_url() + "undo/"))
    assert "Unsubscribe?" in _text(client.get(_url()))


def test_undo_needs_a_link_of_this_site(client):
    Unsubscribe.objects.create(address=ADDRESS, source="user")
    assert client.post("/mail/unsubscribe/a.b/undo/").status_code == 404
    assert _rows()


def test_who_is_out_may_come_back(client):
    client.post(_url())
    page = client.get(_url()).content.decode()
    assert _buttons(page) == {"Subscribe again": _url() + "undo/"}


@pytest.mark.usefixtures("lists")
def test_this_list_or_everything(client):
    page = client.get(_url("digest")).content.decode()
    buttons = _buttons(page)
    assert buttons["Unsubscribe from this list"] == _url("digest")
    assert buttons["Unsubscribe from everything"] == _url()
    client.post(buttons["Unsubscribe from everything"])
    assert _rows() == [(ADDRESS, "user", "")]
    # All is left: there is nothing to choose but to come back.
    page = client.get(_url("digest")).content.decode()
    assert _buttons(page) == {"Subscribe again": _url() + "undo/"}


@pytest.mark.usefixtures("lists")
def test_what_one_is_subscribed_to(client):
    client.post(_url("digest"))
    for link in (_url("digest"), _url()):
        page = client.get(link, headers={"accept-language": "de"})
        assert "Weekly digest nicht angemeldet Wieder anmelden" in _text(page)
        assert "Abmelden angemeldet Abmelden" in _text(page)  # a title that is translated
        assert _url("digest") + "undo/" in _buttons(page.content.decode()).values()
        assert _url("news") in _buttons(page.content.decode()).values()


@pytest.mark.usefixtures("lists")
def test_to_come_back_to_a_list_is_not_to_everything(client):
    client.post(_url("digest"))
    client.post(_url())
    back = client.post(_url("digest") + "undo/")
    assert _rows() == [(ADDRESS, "user", "")]
    assert "still unsubscribed from everything" in _text(back)
    assert "Welcome back" in _text(client.post(_url() + "undo/"))


def test_thanks(client):
    for response in (client.get(reverse("unsubscribe_thanks")), client.post("/mail/unsubscribe/")):
        assert response["Referrer-Policy"] == "no-referrer"
    assert "You are unsubscribed" in _text(client.get(reverse("unsubscribe_thanks")))


# The links of Connect

CODE = "rZcuhUQRHhFRmadUpEA8IFvSQuo0MSmJwQ9HzkNF03I"  # of abcd and test@test.com


@pytest.fixture
def _secret(settings):
    settings.EMAIL_SECRET_KEY = "abcd"


@pytest.mark.usefixtures("_secret")
@pytest.mark.parametrize("email", ["test@test.com", "Test@Test.com"])
def test_an_old_link(email, client):
    link = f"{reverse('unsubscribe')}?{urlencode({'email': email, 'code': CODE})}"
    asked = client.get(link)
    assert asked.status_code == client.head(link).status_code == 200
    assert not _rows()
    # From here on the address is in no URL any more.
    assert _buttons(asked.content.decode()) == {"Unsubscribe": _url(address="test@test.com")}
    assert client.post(link).status_code == 200
    assert _rows() == [("test@test.com", "user", "")]


@pytest.mark.usefixtures("_secret")
def test_an_old_link_is_not_in_title_and_log(client, caplog):
    caplog.set_level("DEBUG")
    for code in (CODE, "wrong"):
        link = f"/mail/unsubscribe/?email=test@test.com&code={code}"
        for response in (client.get(link), client.post(link)):
            assert "test@" not in _title(response)
            assert response["Referrer-Policy"] == "no-referrer"
        client.put(link)
    assert "opted out of all mail" in caplog.text
    assert "test@" not in caplog.text


@pytest.mark.usefixtures("_secret")
def test_an_old_link_from_before_the_plus_was_escaped(client):
    code = make_old_code("Ada+News@example.com", "abcd")
    for written in ("Ada+News@example.com", "Ada%2BNews@example.com"):
        assert client.get(f"/mail/unsubscribe/?email={written}&code={code}").status_code == 200
    client.post(f"/mail/unsubscribe/?email=Ada+News@example.com&code={code}")
    assert _rows() == [(ADDRESS, "user", "")]


@pytest.mark.usefixtures("_secret")
@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize(
    "query",
    [
        "",
        "?email=test@test.com",
        f"?code={CODE}",
        f"?email=other@test.com&code={CODE}",
        f"?email=test@test.com&code={CODE[:-1]}",
        f"?email=test@test.com&code={CODE}%C3%A9",
        f"?email=not+an+address&code={make_old_code('not an address', 'abcd')}",
    ],
)
def test_a_wrong_or_missing_code(query, method, client):
    response = getattr(client, method)(f"/mail/unsubscribe/{query}")
    assert response.status_code == 404
    assert "This link does not work" in _text(response)
    assert not _rows()


def test_no_old_link_without_the_key(client, settings, monkeypatch):
    monkeypatch.delenv("EMAIL_SECRET_KEY", raising=False)
    code = make_old_code("test@test.com", "")
    assert client.get(f"/mail/unsubscribe/?email=test@test.com&code={code}").status_code == 404
    monkeypatch.setenv("EMAIL_SECRET_KEY", "abcd")
    assert client.get(f"/mail/unsubscribe/?email=test@test.com&code={CODE}").status_code == 200


# For readers


@pytest.mark.usefixtures("lists")
def test_what_a_reader_is_told(client):
    assert "www.example.org will send no more mail to ada+news@example.com" in _text(
        client.get(_url(), headers={"host": "www.example.org"})
    )
    assert "The list “Weekly digest” of testserver will no longer be sent to" in _text(
        client.post(_url("digest"))
    )


@pytest.mark.usefixtures("lists")
def test_names_do_not_turn_a_sentence_around(client):
    site, title = "<bdi>testserver</bdi>", "<bdi>Weekly digest</bdi>"
    for response in (client.get(_url("digest")), client.post(_url("digest"))):
        assert f"“{title}” of {site} will no longer" in response.content.decode()
    back = client.post(_url("digest") + "undo/").content.decode()
    assert f"“{title}” of {site} will be sent again" in back
    assert f"{site} will send no more mail" in client.post(_url()).content.decode()
    assert f"another mail from {site}," in client.get("/mail/unsubscribe/a.b/").content.decode()
    assert "bdi" not in _title(client.get(_url()))  # where no element can stand


@pytest.mark.parametrize(
    ("language", "title"),
    [
        ("es-MX,es;q=0.9", "Cancelar la suscripción"),
        ("fr", "Se désabonner"),
        ("de-AT", "Abmelden"),
        ("en", "Unsubscribe"),
        ("tlh", "Unsubscribe"),
    ],
)
def test_pages_speak_the_language_of_the_reader(language, title, client):
    before = translation.get_language()
    response = client.get(_url(), headers={"accept-language": language})
    assert _title(response).startswith(title)
    assert f'<html lang="{language[:2] if language != "tlh" else "en"}' in response.content.decode()
    assert translation.get_language() == before


def test_a_language_without_a_catalog_is_not_claimed(client):
    page = client.get(_url(), headers={"accept-language": "ar"}).content.decode()
    assert 'lang="en" dir="ltr"' in page


@pytest.mark.parametrize("own", ["de", "fr", "es"])
def test_a_language_without_a_catalog_is_the_sites_own(own, client, settings):
    settings.LANGUAGE_CODE = own
    settings.LANGUAGES = list(settings.LANGUAGES)  # so that no catalog is left of before
    site = client.get(_url(), headers={"accept-language": own}).content.decode()
    assert f'<html lang="{own}" dir="ltr">' in site
    assert client.get(_url(), headers={"accept-language": "ar"}).content.decode() == site
    for language in ("de", "en-gb", "es-mx", "fr"):
        page = client.get(_url(), headers={"accept-language": language}).content.decode()
        assert f'<html lang="{language}" dir="ltr">' in page


@pytest.mark.parametrize("own", ["de", "ar"])
def test_without_translations_it_is_english(own, client, settings, monkeypatch):
    settings.USE_I18N = False
    settings.LANGUAGE_CODE = own
    # Which Django decides on once in a process.
    monkeypatch.setattr(translation, "_trans", type(translation._trans)())
    response = client.get(_url(), headers={"accept-language": "fr"})
    assert '<html lang="en" dir="ltr">' in response.content.decode()
    assert _title(response).startswith("Unsubscribe")


def test_right_to_left_with_a_catalog_of_the_site(client, settings, tmp_path):
    write_catalog(tmp_path, "ar", ARABIC)
    settings.LOCALE_PATHS = [tmp_path]
    response = client.get(_url(), headers={"accept-language": "ar"})
    assert 'lang="ar" dir="rtl"' in response.content.decode()
    assert _buttons(response.content.decode()) == {ARABIC["Unsubscribe"]: _url()}


def test_the_language_that_the_site_decided_on_wins(settings, client):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.middleware.locale.LocaleMiddleware"]
    client.cookies["django_language"] = "de"
    with translation.override(None):  # the middleware leaves its language behind
        response = client.get(_url(), headers={"accept-language": "fr"})
    assert _title(response).startswith("Abmelden")


def test_a_site_replaces_the_frame_and_the_style(client, tmp_path, settings):
    folder = tmp_path / "connect_mailer"
    folder.mkdir()
    (folder / "base.html").write_text(
        "<style>{{ style }}</style><title>Ours: {% block title %}{% endblock %}</title>"
        "{% block content %}{% endblock %}"
    )
    (folder / "pages.css").write_text("body { color: red }")
    engine = settings.TEMPLATES[0]
    with override_settings(TEMPLATES=[{**engine, "DIRS": [tmp_path]}]):
        response = client.get(_url())
    assert _title(response) == "Ours: Unsubscribe"
    digest = base64.b64encode(hashlib.sha256(b"body { color: red }").digest()).decode()
    assert f"'sha256-{digest}'" in response["Content-Security-Policy"]
