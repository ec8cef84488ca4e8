"""What templates need beyond Django's own: numbers and times for people, badges, sparklines, and who may do what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django import template
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from experiments.config_table import exact
from experiments.models import Job
from experiments.roles import ROLES, Role, role_of
from trainer.checkpoints import readable_size
from trainer.prices import NANODOLLARS

register = template.Library()

NONE = "\N{EN DASH}"


@register.simple_tag(takes_context=True)
def may(context: template.Context, role: Role) -> bool:
    """Whether who is signed in may do what a role may; asked of the database once a request."""
    request = context.get("request")
    if request is None:
        return False
    if not hasattr(request, "lionweb_role"):
        request.lionweb_role = role_of(request.user)
    found = request.lionweb_role
    return found is not None and ROLES.index(found) >= ROLES.index(role)


@register.simple_tag(takes_context=True)
def nav_link(context: template.Context, name: str, text: str) -> SafeString:
    """A link of the main navigation, marked where its page is the one shown."""
    url = reverse(name)
    path = context["request"].path
    here = path == url if url == "/" else path.startswith(url)
    return format_html('<a href="{}"{}>{}</a>', url, mark_safe(' aria-current="page"') if here else "", text)


# Numbers and times


@register.filter
def count(value: float | None) -> str:
    """A whole number with separators: 1,500."""
    return NONE if value is None else f"{value:,.0f}"


@register.filter
def amount(value: int) -> str:
    """About how many: 1,500 as it is, 390,512,000 as 391 M."""
    for size, unit in ((1_000_000_000, "G"), (1_000_000, "M")):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value / size:,.0f} {unit}"
    return f"{value:,.0f}"


@register.filter
def dollars(nanodollars: int | None) -> str:
    """An amount of money: $1,234.50, with two digits that say something where it is less than a cent: $0.0042."""
    if nanodollars is None:
        return NONE
    value = nanodollars / NANODOLLARS
    if value >= 0.01 or not nanodollars:
        return f"${value:,.2f}" if nanodollars else "$0"
    return f"${value:.{1 - math.floor(math.log10(value))}f}"


@register.filter
def score(value: float | None, digits: int = 1) -> str:
    """A score with so many digits, or a dash where there is none: never a number made up."""
    return NONE if value is None else f"{value:.{digits}f}"


@register.filter
def signed(value: float | None, digits: int = 1) -> str:
    """A difference with its sign, the minus a real one."""
    if value is None:
        return NONE
    return f"{value:+z.{digits}f}".replace("-", "\N{MINUS SIGN}") if round(value, digits) else f"{0:.{digits}f}"


@register.filter
def percent(value: float | None, digits: int = 0) -> str:
    return NONE if value is None else f"{100 * value:.{digits}f} %"


@register.filter
def interval(standard_error: float | None) -> str:
    """Half the width of a 95 % interval, in percent points."""
    return "" if standard_error is None else f"± {196 * standard_error:.1f}"


@register.filter
def file_size(value: int | None) -> str:
    """Bytes for people, in the units of everything else: powers of 1,024."""
    return readable_size(value or 0)


@register.filter
def duration(value: timedelta | float | None) -> str:
    """A length of time in its two largest units: 1 h 5 min."""
    if value is None:
        return NONE
    seconds = round(value.total_seconds() if isinstance(value, timedelta) else value)
    units = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
    parts = []
    for size, name in units:
        amount, seconds = divmod(seconds, size)
        if amount:
            parts.append(f"{amount} {name}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0 s"


@register.filter
def ago(value: datetime | None) -> SafeString:
    """How long ago, with the time itself on hover."""
    if value is None:
        return mark_safe(NONE)
    seconds = (timezone.now() - value).total_seconds()
    text = "just now" if seconds < 10 else f"{_rough(seconds)} ago"
    return format_html('<time datetime="{}" title="{} UTC">{}</time>', value.isoformat(), f"{value:%Y-%m-%d %H:%M:%S}", text)


def _rough(seconds: float) -> str:
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {name}"
    return f"{int(seconds)} s"


@register.filter
def rate(per_s: float) -> str:
    """A speed in the unit in which it reads best."""
    return f"{per_s:.1f} / s" if per_s >= 1 else f"{60 * per_s:.1f} / min"


@register.simple_tag
def took(job: Job) -> str:
    """How long a job ran, or runs by now."""
    if job.started_at is None:
        return NONE
    return duration((job.ended_at or timezone.now()) - job.started_at)


@register.simple_tag
def number_link(value: int | None, url: str, **filters: Any) -> SafeString:
    """A number that opens the rows behind it; none is a dash, and nothing to open is no link."""
    if not value:
        return mark_safe(NONE if value is None else "0")
    return format_html('<a href="{}?{}">{}</a>', url, urlencode(filters), count(value))


@register.filter
def words(value: str) -> str:
    """A name from the code as words: too_similar -> too similar."""
    return value.replace("_", " ")


@register.filter
def setting_value(value: Any) -> str:
    """A setting's value as its form shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(exact(value)) or "empty"


# Badges


@register.filter
def state_badge(state: str) -> SafeString:
    return format_html('<span class="badge state-{}">{}</span>', state, state)


@register.filter
def verdict_tag(label: str | None) -> SafeString:
    """hard, easy or quarantined, told apart by shape as well as by colour."""
    if not label:
        return mark_safe('<span class="soft">not judged</span>')
    return format_html('<span class="tag tone-{}">{}</span>', label, label)


@register.filter
def origin_tag(origin: str) -> SafeString:
    return format_html('<span class="origin tone-{}">{}</span>', origin, origin)


@register.simple_tag
def stack(hard: int, easy: int, quarantined: int) -> SafeString:
    """Hard, easy and quarantined as shares of one bar."""
    total = hard + easy + quarantined
    if not total:
        return mark_safe("")
    parts = (("hard", hard), ("easy", easy), ("quarantined", quarantined))
    spans = [format_html('<span class="tone-{}" style="width:{}%"></span>', name, f"{100 * n / total:.2f}") for name, n in parts if n]
    text = ", ".join(f"{n:,} {name}" for name, n in parts)
    return format_html('<div class="stack" role="img" aria-label="{}" title="{}">{}</div>', text, text, mark_safe("".join(spans)))


@register.simple_tag
def sparkline(values: Sequence[float], tone: str = "hard", label: str = "") -> SafeString:
    """A line of shares (0..1) small enough for a table cell."""
    if not values:
        return mark_safe(f'<span class="soft">{NONE}</span>')
    points = _points(values)
    line = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    last_x, last_y = points[-1]
    return format_html(
        '<svg class="sparkline tone-{}" width="72" height="22" viewBox="0 0 72 22" role="img" aria-label="{}"><title>{}</title>'
        '<line x1="3" x2="69" y1="19.5" y2="19.5"/><path d="{}"/><circle cx="{}" cy="{}" r="2.5"/></svg>',
        tone, label, label, line, f"{last_x:.1f}", f"{last_y:.1f}",
    )  # fmt: skip


def _points(values: Sequence[float]) -> list[tuple[float, float]]:
    left, right, top, bottom = 3.0, 69.0, 3.0, 19.0
    step = (right - left) / max(len(values) - 1, 1)
    first = right if len(values) == 1 else left
    return [(first + i * step, bottom - (bottom - top) * min(max(value, 0.0), 1.0)) for i, value in enumerate(values)]
