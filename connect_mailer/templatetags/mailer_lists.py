"""What stands above the lists and pages of the admin."""

from __future__ import annotations

from typing import Any

import django
from django import template
from django.template import Context
from django.urls import reverse
from django.utils.html import format_html
from django.utils.text import Truncator

register = template.Library()


@register.inclusion_tag("admin/date_hierarchy.html")
def mailer_date_hierarchy(cl: Any) -> dict[str, Any]:
    """The links of ``date_hierarchy``, made without a look through the table."""
    # Tags are imported on sites without Django's admin, too.
    from connect_mailer.admin.change_list import make_hierarchy

    return make_hierarchy(cl) or {"show": False}


@register.simple_tag(takes_context=True)
def mailer_nonce(context: Context) -> str:
    """The attribute that the site's content security policy asks for, where it has nonces."""
    nonce = context.get("csp_nonce")
    return "" if nonce is None else format_html(' nonce="{}"', nonce)


@register.inclusion_tag("connect_mailer/admin/breadcrumbs.html")
def mailer_breadcrumbs(opts: Any, *titles: Any) -> dict[str, Any]:
    """From the start to the last of ``titles``; one of a model's row leads to it.

    Django 6.1 has a list for them, and a frame around it; before, it was one line.
    """
    name = f"admin:{opts.app_label}_{opts.model_name}"
    crumbs = [
        ("admin:index", (), None),
        ("admin:app_list", (opts.app_label,), opts.app_config.verbose_name),
    ]
    links = [(reverse(url, args=args), title) for url, args, title in crumbs]
    for title in titles[:-1]:
        if isinstance(title, opts.model):
            links.append((reverse(f"{name}_change", args=[title.pk]), Truncator(title).words(18)))
        else:
            links.append((reverse(f"{name}_changelist"), title))
    return {"links": links, "title": titles[-1], "is_list": django.VERSION >= (6, 1)}
