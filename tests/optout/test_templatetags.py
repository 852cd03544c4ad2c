from __future__ import annotations

import pytest
from django.template import Context, Template
from django.test import override_settings

from connect_mailer.exceptions import InvalidAddress, InvalidMessage
from connect_mailer.optout import unsubscribe_url


def _render(tag, address="Ada+News@example.com"):
    return Template("{% load connect_mailer %}" + tag).render(Context({"email": address}))


@pytest.mark.parametrize("name", ["unsubscribe_url", "unsubscribe_link"])
def test_the_link_of_a_reader(name):
    assert _render(f"{{% {name} email %}}") == unsubscribe_url("ada+news@example.com")
    of_list = unsubscribe_url("ada+news@example.com", "digest")
    assert _render(f"{{% {name} email 'digest' %}}") == of_list
    assert _render(f"{{% {name} email mailing_list='digest' as url %}}[{{{{ url }}}}]") == (
        f"[{of_list}]"
    )


@override_settings(CONNECT_MAILER={"UNSUBSCRIBE_BASE_URL": ""})
def test_nothing_without_a_base_url():
    assert _render("[{% unsubscribe_url email %}]") == "[]"


def test_what_is_no_address_is_an_error():
    with pytest.raises(InvalidAddress):
        _render("{% unsubscribe_url email %}", "")


@pytest.mark.parametrize("base", ["", "https://www.example.com"])
def test_an_unknown_list_is_an_error(base, settings):
    settings.CONNECT_MAILER = {
        "UNSUBSCRIBE_BASE_URL": base,
        "MAILING_LISTS": {"digest": "Weekly digest"},
    }
    _render("{% unsubscribe_url email 'digest' %}{% unsubscribe_url email %}")
    with pytest.raises(InvalidMessage, match=r"'dygest'.*'digest'"):
        _render("{% unsubscribe_url email 'dygest' %}")
