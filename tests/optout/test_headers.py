from __future__ import annotations

from types import ModuleType

import pytest
from django.test import override_settings
from django.urls import include, path, reverse, set_urlconf

from connect_mailer.backend import ConnectMailerBackend
from connect_mailer.conf import conf
from connect_mailer.exceptions import ConfigurationError, InvalidAddress, InvalidMessage
from connect_mailer.optout import unsubscribe_url
from connect_mailer.optout.headers import for_recipient
from connect_mailer.optout.tokens import OptOut, make_token, read_token


def _elsewhere(request, token):
    raise AssertionError("another app's page")


def _urlconf(*patterns):
    module = ModuleType("urls")
    module.urlpatterns = list(patterns)
    return module


# A site with pages of its own that have our name, before and after ours.
_CLASH = _urlconf(
    path("news/<token>/", _elsewhere, name="unsubscribe"),
    path("any/prefix/", include("connect_mailer.urls")),
    path("more/news/<token>/", _elsewhere, name="unsubscribe"),
)
_WITHOUT = _urlconf()


def test_both_headers_of_one_click():
    token = make_token("ada@example.com")
    assert for_recipient("ada@example.com") == {
        "List-Unsubscribe": f"<https://www.example.com/mail/unsubscribe/{token}/>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
    }


def test_a_link_names_the_reader_and_the_list():
    url = unsubscribe_url("Ada <ADA+x@example.com>", "digest")
    token = url.removeprefix("https://www.example.com/mail/unsubscribe/").removesuffix("/")
    assert read_token(token) == OptOut(address="ada+x@example.com", mailing_list="digest")
    assert url.endswith(reverse("unsubscribe", kwargs={"token": token}))
    assert f"<{url}>" == for_recipient("ada+x@example.com", "digest")["List-Unsubscribe"]


LONGEST = [
    "x" * 64 + "@" + ".".join(["y" * 61] * 3) + ".ee",
    # Of characters that the token's JSON escapes.
    '"' + '\\"' * 31 + '"@' + ".".join(["y" * 61] * 3) + ".ee",
]


@pytest.mark.parametrize("mailing_list", ["a" * 100, "日" * 40, "\N{BEAR FACE}" * 20, '"' * 100])
@pytest.mark.parametrize("longest", LONGEST)
@pytest.mark.parametrize("mailto", ["", "leave@example.com", "leave@" + "y" * 240 + ".example"])
def test_the_longest_address_and_list_fit_a_line(longest, mailing_list, mailto, settings):
    base = "https://" + "z" * 120 + ".example"
    settings.CONNECT_MAILER = {
        "UNSUBSCRIBE_BASE_URL": base,
        "UNSUBSCRIBE_MAILTO": mailto,
        "MAILING_LISTS": {mailing_list: "Title"},
    }
    headers = for_recipient(longest, mailing_list)
    assert f"<{unsubscribe_url(longest, mailing_list)}>" in headers["List-Unsubscribe"]
    assert "List-Unsubscribe-Post" in headers
    # RFC 5322, section 2.1.1
    assert len(f"List-Unsubscribe: {headers['List-Unsubscribe']}") <= 998


@pytest.mark.parametrize("mailing_list", ["日" * 41, "\N{BEAR FACE}" * 21, "a" * 101])
def test_a_list_whose_link_could_be_too_long_is_refused(mailing_list, settings):
    settings.CONNECT_MAILER = {"MAILING_LISTS": {mailing_list: "Title"}}
    with pytest.raises(ConfigurationError, match=r"MAILING_LISTS.*at most 100 characters"):
        _ = conf.mailing_lists
    settings.CONNECT_MAILER = {}
    with pytest.raises(InvalidMessage, match="at most 100 characters"):
        ConnectMailerBackend(mailing_list=mailing_list)
    with pytest.raises(InvalidMessage, match="at most 100 characters"):
        unsubscribe_url("ada@example.com", mailing_list)


def test_a_link_is_of_a_list_that_the_site_names(settings):
    settings.CONNECT_MAILER = {"MAILING_LISTS": {"digest": "Weekly digest"}}
    with pytest.raises(InvalidMessage, match=r"'dygest'.*'digest'"):
        unsubscribe_url("ada@example.com", "dygest")


@override_settings(CONNECT_MAILER={"UNSUBSCRIBE_BASE_URL": ""})
def test_nothing_without_a_base_url():
    assert for_recipient("ada@example.com") == {}
    assert unsubscribe_url("ada@example.com") == ""


MAILTO = {"UNSUBSCRIBE_MAILTO": "leave+us@example.com"}


@override_settings(CONNECT_MAILER={"UNSUBSCRIBE_BASE_URL": "https://www.example.com", **MAILTO})
def test_by_mail_too():
    headers = for_recipient("ada@example.com", "digest")
    url, mailto = headers["List-Unsubscribe"].split(", ")
    assert url == f"<{unsubscribe_url('ada@example.com', 'digest')}>"
    token = make_token("ada@example.com", "digest")
    assert mailto == f"<mailto:leave+us@example.com?subject={token}>"
    assert headers["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    # The best comes first, and the second only where there is room.
    longest = for_recipient("x" * 64 + "@" + ".".join(["y" * 61] * 3) + ".ee", "a" * 100)
    assert longest["List-Unsubscribe"].startswith("<https:")
    assert len(f"List-Unsubscribe: {longest['List-Unsubscribe']}") <= 998


@override_settings(CONNECT_MAILER={"UNSUBSCRIBE_BASE_URL": "", **MAILTO})
def test_one_click_needs_a_page():
    headers = for_recipient("ada@example.com")
    assert list(headers) == ["List-Unsubscribe"]
    assert headers["List-Unsubscribe"].startswith("<mailto:")


@override_settings(CONNECT_MAILER={"UNSUBSCRIBE_MAILTO": "Leave <leave@example.com>"})
def test_an_address_that_is_no_address():
    with pytest.raises(ConfigurationError, match="UNSUBSCRIBE_MAILTO"):
        for_recipient("ada@example.com")


@override_settings(CONNECT_MAILER={"UNSUBSCRIBE_BASE_URL": "https://other.example/"})
def test_the_base_url_is_the_settings():
    assert unsubscribe_url("ada@example.com").startswith("https://other.example/mail/unsub")


@override_settings(ROOT_URLCONF=_CLASH)
def test_a_page_of_the_site_with_the_same_name_is_not_linked():
    assert unsubscribe_url("a@example.com").startswith("https://www.example.com/any/prefix/unsub")


def test_a_link_does_not_depend_on_the_request_in_which_the_mail_is_written():
    link = unsubscribe_url("ada@example.com")
    set_urlconf(_WITHOUT)
    try:
        assert unsubscribe_url("ada@example.com") == link
    finally:
        set_urlconf(None)


@override_settings(ROOT_URLCONF=_WITHOUT)
def test_a_site_without_the_pages_is_told_what_to_add():
    with pytest.raises(ConfigurationError, match=r"include\('connect_mailer.urls'\)"):
        for_recipient("ada@example.com")


def test_no_headers_for_what_is_no_address():
    with pytest.raises(InvalidAddress):
        for_recipient("not an address")
