"""Addresses: what is one, and which two are the same person's."""

from __future__ import annotations

from email.utils import parseaddr
from types import SimpleNamespace

import pytest
from django.utils.functional import lazystr
from hypothesis import given
from hypothesis import strategies as st

from connect_mailer import addresses
from connect_mailer.exceptions import InvalidAddress


@pytest.mark.parametrize(
    ("text", "spec", "display_name"),
    [
        ("jo@example.com", "jo@example.com", ""),
        ("Jo.Doe+x@EXAMPLE.com", "Jo.Doe+x@example.com", ""),
        ("Jo <jo@example.com>", "jo@example.com", "Jo"),
        ('"Doe, Jo" <jo@example.com>', "jo@example.com", "Doe, Jo"),
        ('"eve@evil.example" <jo@example.com>', "jo@example.com", "eve@evil.example"),
        ("=?utf-8?q?J=C3=B6?= <jo@example.com>", "jo@example.com", "Jö"),
        # RFC 2047, section 5: an encoded word is one in a display name only.
        ("=?utf-8?q?J=C3=B6?= <=?utf-8?q?a?=@example.com>", "=?utf-8?q?a?=@example.com", "Jö"),
        ('=?utf-8?q?J=C3=B6?= <"=?utf-8?q?a?="@example.com>', "=?utf-8?q?a?=@example.com", "Jö"),
        ('"=?utf-8?q?a?="@example.com', "=?utf-8?q?a?=@example.com", ""),
        ('"=?utf-8?q?=e9?="@example.com', "=?utf-8?q?=e9?=@example.com", ""),
        ('"=?utf-8?q?=00x?="@e.com', "=?utf-8?q?=00x?=@e.com", ""),
        ('"=?utf-8?q?a=0d=0ab?="@e.com', "=?utf-8?q?a=0d=0ab?=@e.com", ""),
        ('"=?utf-8?q?a b?="@e.com', '"=?utf-8?q?a b?="@e.com', ""),
        ("  <jo@example.com> ", "jo@example.com", ""),
        ('"jo doe"@example.com', '"jo doe"@example.com', ""),
        ("jo@bücher.example", "jo@xn--bcher-kva.example", ""),
        ("jo@BÜCHER.example", "jo@xn--bcher-kva.example", ""),
        ("jo@straße.example", "jo@xn--strae-oqa.example", ""),
        ("jö@example.com", "jö@example.com", ""),
        ("jo@localhost", "jo@localhost", ""),
        ("a" * 64 + "@example.com", "a" * 64 + "@example.com", ""),
        (lazystr("jo@example.com"), "jo@example.com", ""),
    ],
)
def test_parses_one_mailbox(text: object, spec: str, display_name: str) -> None:
    address = addresses.parse(text)

    assert address.spec == spec
    assert address.display_name == display_name


@given(
    st.lists(st.sampled_from(["Jo", "O'Neil", "&", "3", "_x", "-"]), min_size=1, max_size=4),
    st.lists(st.text("aZ09_+-", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_reads_names_as_python_does(names: list[str], parts: list[str]) -> None:
    text = f"{' '.join(names)} <{'.'.join(parts)}@example.org>"

    address = addresses.parse(text)

    assert (address.display_name, address.spec) == parseaddr(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "jo",
        "@example.com",
        "jo@",
        "jo@example.com, eve@example.com",
        "jo@example.com eve@example.com",
        "undisclosed-recipients:;",
        "a b@example.com",
        ".jo@example.com",
        "j..o@example.com",
        "jo@example..com",
        "jo@-example.com",
        "jo@example.com.",
        "jo@[192.0.2.1]",
        '<"',
        "jo@exa mple.com",
        "jo@example.com\nBcc: eve@example.com",
        "jo\x00@example.com",
        "a" * 65 + "@example.com",
        "jo@" + "a." * 130 + "com",
        "jo@\u212aing.example",  # the Kelvin sign
        "jo@fran\u0131k.example\u2044x",
        "jo@example\u3002com",
        "jo@example\uff0ecom",
        "jo@b\u00fccher\uff61example",
        "jo@=?utf-8?q?example.com?=",
        "jo@=?utf-8?q?=e9?=.com",
        '"jo"@=?utf-8?q?=00?=.com',
        'jo@example.com "=?utf-8?q?=00?="',
        "j\udce9@example.com",
        "jo@ex\udce9mple.com",
        None,
    ],
)
def test_refuses_what_is_not_one_mailbox(text: object) -> None:
    with pytest.raises(InvalidAddress) as caught:
        addresses.parse(text)

    assert isinstance(caught.value, ValueError)
    assert repr(str(text).strip()) in str(caught.value)


def test_refuses_what_no_database_takes_whatever_the_parser_makes_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for local, domain in (("j\0", "e.com"), ("j\r\n", "e.com"), ("j\udce9", "e.com"), ("j", "\0")):
        mailbox = SimpleNamespace(display_name=None, local_part=local, domain=domain)
        answer = mailbox, ""
        monkeypatch.setattr(addresses.parser, "get_mailbox", lambda _text, answer=answer: answer)
        with pytest.raises(InvalidAddress, match="a character that none has"):
            addresses.parse('"j"@e.com')


# Of what makes and hides encoded words.
_PIECES = [
    "a",
    "@e.com",
    '"',
    "=?utf-8?q?",
    "=?x?q?",
    "=e9",
    "=00",
    "=0d=0a",
    "v",
    "?=",
    "(",
    ")",
    "<",
    ">",
    "@",
    ".",
    "=?utf-8?b?/w==?=",
    "=?utf-8?q?v?=",
]


@given(st.lists(st.sampled_from([*_PIECES, " "]), min_size=2, max_size=10).map("".join))
def test_no_encoded_word_is_somebody(text: str) -> None:
    key = addresses.find_key(text)

    if key is not None:
        assert addresses.normalise(key) == key
        assert key.isascii()
        assert key.isprintable()
        written = text.translate(dict.fromkeys(map(ord, '" ()<>')))
        assert key.translate(dict.fromkeys(map(ord, '" ()<>'))) in written


@pytest.mark.parametrize("text", ["(" * 900, "(" * 100_000, '"' * 998, "x" * 100_000 + "@x.y"])
def test_what_strangers_write_neither_ends_the_recursion_nor_the_day(text: str) -> None:
    with pytest.raises(InvalidAddress) as caught:
        addresses.parse(text)

    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("JO@example.com", "jo@EXAMPLE.COM"),
        ("Jo <jo@example.com>", "jo@example.com"),
        ("jo@bücher.example", "jo@xn--bcher-kva.example"),
    ],
)
def test_two_spellings_of_one_address(one: str, other: str) -> None:
    assert addresses.normalise(one) == addresses.normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("jo+x@example.com", "jo@example.com"),
        ("j.o@example.com", "jo@example.com"),
        ("jo@straße.example", "jo@strasse.example"),
        ("stra\u00dfe@example.com", "strasse@example.com"),
        ("\u212aing@example.com", "king@example.com"),
        ("\ufb01@example.com", "fi@example.com"),
        ("J\u00d6@example.com", "j\u00f6@example.com"),
        ("\u0130@example.com", "i@example.com"),
    ],
)
def test_two_addresses_that_only_look_alike(one: str, other: str) -> None:
    assert addresses.normalise(one) != addresses.normalise(other)
