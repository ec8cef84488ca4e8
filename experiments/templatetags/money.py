"""Money with every digit it has: prices, and sums that are held against each other."""

from __future__ import annotations

from decimal import Decimal

from django import template

from trainer.prices import NANODOLLARS

register = template.Library()


@register.filter
def price(dollars: float) -> str:
    """A price with all of its digits, and whole cents at least: $2.50, $0.075."""
    return _written(Decimal(repr(dollars)))


@register.filter
def exact_dollars(nanodollars: int) -> str:
    """An amount to the last nanodollar, so that sums of what is shown are what is shown as the sum: $0.0443005."""
    return _written(Decimal(nanodollars) / NANODOLLARS)


def _written(dollars: Decimal) -> str:
    whole, _, part = f"{dollars:,f}".partition(".")
    return f"${whole}.{part.rstrip('0'):0<2}" if dollars else "$0"
