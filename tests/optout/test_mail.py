"""The way out in a message, as SES gets it."""

from __future__ import annotations

import re
import sys
from email import message_from_bytes, policy
from urllib.parse import urlsplit

import django
import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.template import Context, Template
from django.test import Client

from connect_mailer.backend import ConnectMailerBackend, TransactionalBackend
from connect_mailer.exceptions import ConfigurationError, MessagesRefused
from connect_mailer.models import OutgoingContent, OutgoingMessage, Unsubscribe
from connect_mailer.optout import unsubscribe_url
from connect_mailer.optout.tokens import read_token
from connect_mailer.testing import deliver_all
from connect_mailer.testing.ses import LocalSES

pytestmark = pytest.mark.django_db

BASE = "https://www.example.com"


@pytest.fixture
def ses(settings):
    settings.AWS_ACCESS_KEY_ID = settings.AWS_SECRET_ACCESS_KEY = "test"
    with LocalSES() as server:
        settings.CONNECT_MAILER = {
            "UNSUBSCRIBE_BASE_URL": BASE,
            "SES_ENDPOINT_URL": server.url,
            "SES_REGION": "us-east-1",
        }
        yield server


def _message(*to, **kwargs):
    return EmailMessage("Héllo", "Bödy", "Site <site@example.com>", list(to), **kwargs)


def _send(ses, *messages, backend=ConnectMailerBackend, **options):
    """What SES gets, in order."""
    backend(**options).send_messages(messages)
    deliver_all()
    return ses.mailbox()


def _read_link(mail):
    """Who opts out, and of what, by a click on the header of a mail."""
    link = re.fullmatch(rf"<{BASE}/mail/unsubscribe/(.*)/>", mail.message["List-Unsubscribe"])
    return read_token(link[1])


# The headers


@pytest.mark.parametrize("address", ["jo@example.org", "x" * 64 + "@" + "y" * 60 + ".example"])
def test_plain_and_on_one_line(address, ses):
    (mail,) = _send(ses, _message(address))
    lines = mail.mime.partition(b"\r\n\r\n")[0].decode("ascii").split("\r\n")
    assert f"List-Unsubscribe: <{unsubscribe_url(address)}>" in lines
    # Some look for the second only after the first.
    after = lines[lines.index(f"List-Unsubscribe: <{unsubscribe_url(address)}>") + 1]
    assert after == "List-Unsubscribe-Post: List-Unsubscribe=One-Click"


@pytest.mark.parametrize("name", ["list-unsubscribe", "List-Unsubscribe-Post"])
def test_what_the_caller_wrote_stays(name, ses):
    (mail,) = _send(ses, _message("jo@example.org", headers={name: "<https://a.example/>"}))
    headers = {key.lower(): value for key, value in mail.message.items()}
    written = [key for key in headers if key.startswith("list-")]
    assert written == [name.lower()]
    assert headers[name.lower()] == "<https://a.example/>"


class _Newsletter(EmailMessage):
    """One that writes its way out when it is written itself."""

    own: str | None = None

    def message(self, **kwargs):
        message = super().message(**kwargs)
        if self.own:
            message[self.own] = "<https://a.example/>"
        return message


@pytest.mark.parametrize("name", ["list-unsubscribe", "List-Unsubscribe-Post"])
def test_what_a_class_of_the_site_wrote_stays(name, ses):
    arguments = ("Héllo", "\nList-Unsubscribe: in the text", "site@example.com")
    own, none = (_Newsletter(*arguments, [f"{who}@example.org"]) for who in ("own", "none"))
    own.own = name
    own, none = sorted(_send(ses, own, none), key=lambda mail: mail.recipients, reverse=True)
    written = [(key, value) for key, value in own.message.items() if key.lower()[:5] == "list-"]
    assert written == [(name, "<https://a.example/>")]
    assert _read_link(none).address == "none@example.org"


def test_none_in_account_mail(ses, settings):
    settings.CONNECT_MAILER["UNSUBSCRIBE_SPLIT"] = True
    message = _message("jo@example.org", "eve@example.org")
    for mail in _send(ses, message, backend=TransactionalBackend):
        assert "List-Unsubscribe" not in mail.message
        assert len(mail.recipients) == 2


# A link for each reader


def test_split(ses, settings):
    settings.CONNECT_MAILER["UNSUBSCRIBE_SPLIT"] = True
    settings.CONNECT_MAILER["MAILING_LISTS"] = {"digest": "Digest"}
    Unsubscribe.objects.suppress("gone@example.org", "bounce")
    message = _message(
        "Jo <Jo@example.org>",
        "eve@example.org",
        "gone@example.org",
        cc=["cc@example.org"],
        bcc=["bcc@example.org"],
    )
    message.mailing_list = "digest"
    assert ConnectMailerBackend().send_messages([message]) == 1
    deliver_all()
    mails = ses.mailbox()
    assert {mail.recipients for mail in mails} == {
        ("Jo@example.org",),
        ("eve@example.org",),
        ("cc@example.org",),
        ("bcc@example.org",),
    }
    for mail in mails:
        optout = _read_link(mail)
        assert (optout.address, optout.mailing_list) == (mail.recipients[0].lower(), "digest")
        # They see the same message as they would without.
        assert mail.message["To"] == "Jo <Jo@example.org>, eve@example.org"
        assert mail.message["Cc"] == "cc@example.org"
        assert b"bcc@example.org" not in mail.mime
    rows = [
        (recipient.address, recipient.status)
        for row in OutgoingMessage.objects.order_by("pk")
        for recipient in row.recipients.order_by("pk")
    ]
    assert len(rows) == 5
    assert rows.count(("gone@example.org", "suppressed")) == 1


@pytest.mark.parametrize("name", ["list-unsubscribe", "List-Unsubscribe-Post"])
def test_a_message_with_its_own_way_out_is_not_split(name, ses, settings):
    settings.CONNECT_MAILER["UNSUBSCRIBE_SPLIT"] = True
    own = {name: "<https://a.example/>"}
    (mail,) = _send(ses, _message("jo@example.org", "eve@example.org", headers=own))
    assert mail.recipients == ("jo@example.org", "eve@example.org")
    assert mail.message[name] == "<https://a.example/>"


def test_without_split_several_readers_have_no_link(ses):
    (mail,) = _send(ses, _message("jo@example.org", "eve@example.org"))
    assert mail.recipients == ("jo@example.org", "eve@example.org")
    assert "List-Unsubscribe" not in mail.message


def test_a_click_of_the_provider_stops_what_waits(ses):
    (first,) = _send(ses, _message("jo@example.org"))
    assert ConnectMailerBackend().send_messages([_message("jo@example.org")]) == 1
    link = urlsplit(first.message["List-Unsubscribe"].strip("<>"))
    key, value = first.message["List-Unsubscribe-Post"].split("=")
    provider = Client(enforce_csrf_checks=True)
    assert provider.post(link.path, {key: value}).status_code == 200
    deliver_all()
    assert ses.mailbox() == [first]
    assert OutgoingMessage.objects.order_by("pk").last().status == "suppressed"
    # Account mail reaches her still.
    TransactionalBackend().send_messages([_message("jo@example.org")])
    deliver_all()
    assert len(ses.mailbox()) == 2


@pytest.mark.skipif(django.VERSION < (6, 1), reason="MAILERS came with Django 6.1")
def test_a_list_by_the_options_of_a_mailer(ses, settings):
    from django.core.mail import mailers

    settings.CONNECT_MAILER["MAILING_LISTS"] = {"digest": "Digest"}
    settings.MAILERS = {
        "default": {"BACKEND": "connect_mailer.backend.ConnectMailerBackend"},
        "digest": {
            "BACKEND": "connect_mailer.backend.ConnectMailerBackend",
            "OPTIONS": {"mailing_list": "digest"},
        },
    }
    assert mailers["digest"].send_messages([_message("jo@example.org")]) == 1
    deliver_all()
    (mail,) = ses.mailbox()
    assert _read_link(mail).mailing_list == "digest"


def test_an_unknown_list_is_refused(ses, settings):
    settings.CONNECT_MAILER["MAILING_LISTS"] = {"digest": "Digest"}
    message = _message("jo@example.org")
    message.mailing_list = "dygest"
    with pytest.raises(MessagesRefused, match=r"'dygest'.*'digest'"):
        ConnectMailerBackend().send_messages([message])
    with pytest.raises(MessagesRefused, match="dygest"):
        ConnectMailerBackend(mailing_list="dygest").send_messages([_message("jo@example.org")])
    assert not OutgoingMessage.objects.exists()


# Signed by the site itself


KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _pem(key, form=PrivateFormat.PKCS8):
    return key.private_bytes(Encoding.PEM, form, NoEncryption()).decode()


def _dns(name, timeout=5):
    assert name in (b"ses._domainkey.example.com.", b"mine._domainkey.example.com.")
    lines = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return b"v=DKIM1; k=rsa; p=" + b"".join(lines.splitlines()[1:-1])


@pytest.fixture
def signing(settings):
    settings.DKIM_DOMAIN = "example.com"
    settings.DKIM_PRIVATE_KEY = _pem(KEY)


def _signed_headers(mime):
    signature = message_from_bytes(mime, policy=policy.SMTP)["DKIM-Signature"]
    names = re.search("h=([^;]*)", signature)[1]
    return [name.strip() for name in names.split(":")]


@pytest.mark.usefixtures("signing")
def test_a_signature_that_others_can_verify(ses):
    message = EmailMultiAlternatives(
        "Grüße " * 30, "Hallo", "site@example.com", ["jo@example.org"], bcc=["b@example.org"]
    )
    message.attach_alternative("<p>" + "ü" * 3000, "text/html")
    message.attach("a.bin", bytes(range(256)), "application/octet-stream")
    for mail in _send(ses, message, _message("jo@example.org")):
        assert dkim.verify(mail.mime, dnsfunc=_dns)
        assert b"b@example.org" not in mail.mime
        # What SES writes itself, once it has the message.
        rewritten = re.sub(rb"(?m)^(Message-ID|Date): .*\r\n", b"", mail.mime)
        assert rewritten != mail.mime
        assert dkim.verify(b"Message-ID: <1@x>\r\nDate: now\r\n" + rewritten, dnsfunc=_dns)
        assert not dkim.verify(mail.mime.replace(b"jo@", b"eve@"), dnsfunc=_dns)


@pytest.mark.usefixtures("signing")
def test_both_headers_are_signed(ses):
    (mail,) = _send(ses, _message("jo@example.org"))
    assert {"list-unsubscribe", "list-unsubscribe-post", "from", "to", "cc", "subject"} == set(
        _signed_headers(mail.mime)
    )
    assert dkim.verify(mail.mime, dnsfunc=_dns)
    link = unsubscribe_url("jo@example.org").encode()
    for forged in (
        mail.mime.replace(link, b"https://evil.example/"),
        mail.mime.replace(b"=One-Click", b"=Two-Clicks"),
        b"From: Eve <eve@example.com>\r\n" + mail.mime,
    ):
        assert forged != mail.mime
        assert not dkim.verify(forged, dnsfunc=_dns)


@pytest.mark.usefixtures("signing")
def test_each_copy_of_a_split_message_is_signed(ses, settings):
    settings.CONNECT_MAILER["UNSUBSCRIBE_SPLIT"] = True
    mails = _send(ses, _message("jo@example.org", "eve@example.org"))
    assert len(mails) == 2
    assert all(dkim.verify(mail.mime, dnsfunc=_dns) for mail in mails)


def test_settings_of_seacucumber_in_the_environment(ses, monkeypatch):
    pem = _pem(KEY, PrivateFormat.TraditionalOpenSSL).replace("\n", "\\n")
    for name, value in {
        "DKIM_DOMAIN": "example.com",
        "DKIM_PRIVATE_KEY": pem,
        "DKIM_SELECTOR": "mine",
        "DKIM_HEADERS": "From, Reply-To",
    }.items():
        monkeypatch.setenv(name, value)
    (mail,) = _send(ses, _message("jo@example.org", reply_to=["desk@example.com"]))
    assert dkim.verify(mail.mime, dnsfunc=_dns)
    assert set(_signed_headers(mail.mime)) == {
        "from",
        "reply-to",
        "list-unsubscribe",
        "list-unsubscribe-post",
    }


def test_nothing_is_signed_unless_it_is_asked_for(ses):
    (mail,) = _send(ses, _message("jo@example.org"))
    assert "DKIM-Signature" not in mail.message


@pytest.mark.usefixtures("signing")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"DKIM_PRIVATE_KEY": "a file name"}, "DKIM_PRIVATE_KEY can't be read"),
        ({"DKIM_PRIVATE_KEY": _pem(ec.generate_private_key(ec.SECP256R1()))}, "must be an RSA"),
        ({"DKIM_DOMAIN": "müller.example"}, "DKIM_DOMAIN is 'müller.example'.*xn--"),
        ({"DKIM_HEADERS": 7}, "DKIM_HEADERS is 7"),
        ({"DKIM_HEADERS": ["From", "Message-ID"]}, r"DKIM_HEADERS has \['Message-ID'\]"),
    ],
)
def test_what_cannot_sign_is_named(changes, words, settings):
    for name, value in changes.items():
        setattr(settings, name, value)
    with pytest.raises(ConfigurationError, match=words) as caught:
        ConnectMailerBackend().send_messages([_message("jo@example.org")])
    assert "PRIVATE KEY-" not in str(caught.value)
    assert not OutgoingMessage.objects.exists()


@pytest.mark.usefixtures("signing")
def test_without_dkimpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "dkim", None)
    with pytest.raises(ConfigurationError, match=r"connect-mailer\[dkim\]"):
        ConnectMailerBackend().send_messages([_message("jo@example.org")])


# SES's own subscription management


def test_a_contact_list_of_ses(ses, settings):
    settings.CONNECT_MAILER["SES_CONTACT_LIST"] = "readers"
    settings.CONNECT_MAILER["MAILING_LISTS"] = {"digest": "Digest"}
    digest = _message("jo@example.org")
    digest.mailing_list = "digest"
    account = _message("jo@example.org")
    account.stream = "transactional"
    several = _message("jo@example.org", "eve@example.org")
    mails = _send(ses, digest, _message("eve@example.org"), account, several)
    assert [mail for mail in mails if "List-Unsubscribe" in mail.message] == []
    assert sorted((mail.contact_list, mail.topic, len(mail.recipients)) for mail in mails) == [
        ("", "", 1),
        ("", "", 2),
        ("readers", "", 1),
        ("readers", "digest", 1),
    ]


@pytest.mark.parametrize("name", ["List-Unsubscribe", "list-unsubscribe-post"])
def test_a_contact_list_leaves_a_message_its_own_way_out(name, ses, settings):
    settings.CONNECT_MAILER["SES_CONTACT_LIST"] = "readers"
    own = _message("jo@example.org", headers={name: "<https://a.example/>"})
    (mail,) = _send(ses, own)
    assert (mail.contact_list, mail.message[name]) == ("", "<https://a.example/>")


def test_a_contact_list_leaves_what_was_queued_before_it_was_set(ses, settings):
    ConnectMailerBackend().send_messages([_message("jo@example.org")])
    settings.CONNECT_MAILER["SES_CONTACT_LIST"] = "readers"
    deliver_all()
    (mail,) = ses.mailbox()
    assert mail.contact_list == ""
    assert _read_link(mail).address == "jo@example.org"


# A scanner


def _find_links(text):
    links = re.findall(r"https://[^\s<>\"']+", text)
    return {urlsplit(link).path for link in links}


def test_a_crawler_opts_nobody_out(settings):
    """It asks for every link of 1,000 mails, and for all that the pages lead to."""
    settings.CONNECT_MAILER = {
        "UNSUBSCRIBE_BASE_URL": BASE,
        "MAILING_LISTS": {"digest": "Digest", "news": "News"},
    }
    text = Template("{% load connect_mailer %}Leave: {% unsubscribe_url address 'news' %}")
    messages = []
    for number in range(1000):
        address = f"reader+{number}@example.org"
        body = text.render(Context({"address": address}))
        message = _message(address)
        message.body, message.mailing_list = body, ("", "digest")[number % 2]
        messages.append(message)
    assert ConnectMailerBackend().send_messages(messages) == 1000

    client = Client()
    links = set()
    for mime in OutgoingContent.objects.values_list("mime", flat=True):
        message = message_from_bytes(bytes(mime), policy=policy.SMTP)
        links |= _find_links(message["List-Unsubscribe"]) | _find_links(message.get_content())
    assert len(links) == 2000
    seen = set()
    for path in links:
        assert client.head(path).status_code == 200
        page = client.get(path)
        assert page.status_code == 200
        found = set(re.findall(r'(?:href|action)="(.*?)"', page.content.decode()))
        assert found
        seen |= found
    # Each page leads to the same few others: one reader's are enough of them.
    for path in sorted(seen - links)[:100]:
        assert client.head(path).status_code == client.get(path).status_code == 200
    assert not Unsubscribe.objects.exists()
