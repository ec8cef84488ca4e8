"""What a reply's headers tell of rate limits, in the dialects that servers speak; what can't be read is taken as not said."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from trainer.calls import Told, Window

DIALECTS = ("x-ratelimit-{part}-{kind}", "anthropic-ratelimit-{kind}-{part}")

_UNIT_S = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")

_FIRST_EPOCH, _FIRST_EPOCH_MS = 1e9, 1e12
"""A plain number from here on is no duration but a time: seconds, or milliseconds, since the epoch."""


def told_of(headers: Mapping[str, str], *, now: float | None = None) -> Told:
    """The limits in a reply's headers, whose names are in lower case.

    now: seconds since the epoch, for a reply that has no Date; this machine's clock where left out. Times are read against the reply's own
    Date, since the server's clock may be another. Never raises. Retry-After-Ms is more exact than Retry-After, which knows whole seconds
    only, and goes before it.
    """
    if sent := _moment(headers.get("date", "")):
        now = sent.timestamp()
    elif now is None:
        now = time.time()
    retry_after_ms = _number(headers.get("retry-after-ms", ""))
    return Told(
        requests=_window(headers, "requests", now),
        tokens=_window(headers, "tokens", now),
        input_tokens=_window(headers, "input-tokens", now),
        output_tokens=_window(headers, "output-tokens", now),
        retry_after_s=_seconds(headers.get("retry-after", ""), now) if retry_after_ms is None else retry_after_ms / 1000,
    )


def _window(headers: Mapping[str, str], kind: str, now: float) -> Window | None:
    for dialect in DIALECTS:
        limit = _number(headers.get(dialect.format(part="limit", kind=kind), ""))
        if limit:
            remaining = _number(headers.get(dialect.format(part="remaining", kind=kind), ""))
            reset_s = _seconds(headers.get(dialect.format(part="reset", kind=kind), ""), now)
            return Window(limit=limit, remaining=remaining, reset_s=reset_s)
    return None


def _number(text: str) -> float | None:
    """A finite number that is not negative, else None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _seconds(text: str, now: float) -> float | None:
    """Seconds from now until what the text names: a number of seconds, "1h2m3.5s", an epoch or ISO time, an HTTP date.

    A time that is past is 0.
    """
    text = text.strip()
    number = _number(text)
    if number is not None:
        return number if number < _FIRST_EPOCH else max(0.0, (number if number < _FIRST_EPOCH_MS else number / 1000) - now)
    if _DURATION.fullmatch(text):
        return _number(str(sum(float(value) * _UNIT_S[unit] for value, unit in _PART.findall(text))))
    moment = _moment(text)
    return None if moment is None else max(0.0, moment.timestamp() - now)


def _moment(text: str) -> datetime | None:
    """An ISO time or an HTTP date; UTC where it names no zone."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = parse(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return None
