"""Numbers, as the admin pages of the app show them."""

from __future__ import annotations

from django import template
from django.utils.formats import number_format

register = template.Library()


@register.filter
def thousands(value: float) -> str:
    """A whole number in groups, as the language writes it: 12,345."""
    return number_format(int(value), use_l10n=True, force_grouping=True)


@register.filter
def percent(value: float) -> str:
    """A share in per cent: as many decimals as a rate of complaints needs."""
    return f"{number_format(value * 100, decimal_pos=2, use_l10n=True)}\N{NARROW NO-BREAK SPACE}%"


@register.filter
def plain(value: float) -> str:
    """For programs: with a dot, whatever the language."""
    return format(value, ".10g")


@register.filter
def share(value: float, part: float) -> float:
    """``part`` of ``value``."""
    return value * part
