"""Limits in headers, as servers write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.calls import Told, Window
from trainer.limit_headers import DIALECTS, told_of

NOW = 1_767_225_600.0
"""2026-01-01T00:00:00Z."""

KINDS = ("requests", "tokens", "input-tokens", "output-tokens")
PARTS = ("limit", "remaining", "reset")
NAMES = [dialect.format(part=part, kind=kind) for dialect in DIALECTS for part in PARTS for kind in KINDS] + [
    "retry-after",
    "retry-after-ms",
    "date",
]

VALUES = st.one_of(
    st.text(max_size=40),
    st.floats().map(str),
    st.integers().map(str),
    st.sampled_from(
        ["1s", "6m0s", "1h2m3.5s", "2026-01-01T00:00:07Z", "Thu, 01 Jan 2026 00:00:30 GMT", "0001-01-01T00:00:00+14:00", "9" * 400 + "s"]
    ),
    st.from_regex(r"(\d{1,5}(\.\d{1,3})?(ms|us|ns|d|h|m|s)){1,4}", fullmatch=True),
)


def test_openai_tells_requests_and_tokens() -> None:
    told = told_of(
        {
            "x-ratelimit-limit-requests": "3000",
            "x-ratelimit-remaining-requests": "2999",
            "x-ratelimit-reset-requests": "20ms",
            "x-ratelimit-limit-tokens": "150000",
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": "6m0s",
        }
    )
    assert told.requests == Window(limit=3000, remaining=2999, reset_s=0.02)
    assert told.tokens == Window(limit=150_000, remaining=0, reset_s=360)
    assert told.input_tokens is None
    assert told.retry_after_s is None


def test_anthropic_tells_times_of_day() -> None:
    told = told_of(
        {
            "anthropic-ratelimit-input-tokens-limit": "40000",
            "anthropic-ratelimit-input-tokens-remaining": "100",
            "anthropic-ratelimit-input-tokens-reset": "2026-01-01T00:00:12Z",
            "anthropic-ratelimit-output-tokens-limit": "8000",
        },
        now=NOW,
    )
    assert told.input_tokens == Window(limit=40_000, remaining=100, reset_s=12)
    assert told.output_tokens == Window(limit=8000)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0.25", 0.25),
        ("1h2m3.5s", 3723.5),
        ("1d", 86_400.0),
        ("1767225610", 10.0),
        ("1767225610500", 10.5),
        ("2026-01-01T00:00:07Z", 7.0),
        ("2026-01-01T01:00:07+01:00", 7.0),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2015 00:00:30 GMT", 0.0),
        ("-3", None),
        ("soon", None),
        ("inf", None),
        ("1 s later", None),
        ("", None),
    ],
)
def test_a_wait_is_read_in_every_notation(text: str, seconds: float | None) -> None:
    assert told_of({"retry-after": text}, now=NOW).retry_after_s == (None if seconds is None else pytest.approx(seconds))


def test_a_time_is_read_against_the_clock_of_the_reply() -> None:
    told = told_of(
        {
            "date": "Thu, 01 Jan 2026 00:00:10 GMT",
            "retry-after": "Thu, 01 Jan 2026 00:00:30 GMT",
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-reset": "2026-01-01T00:00:22Z",
        },
        now=NOW + 3600,
    )
    assert told.retry_after_s == 20
    assert told.requests == Window(limit=50, reset_s=12)


def test_a_date_that_is_none_leaves_the_clock_of_this_machine() -> None:
    assert told_of({"date": "today", "retry-after": "Thu, 01 Jan 2026 00:00:30 GMT"}, now=NOW).retry_after_s == 30


def test_milliseconds_are_more_exact_than_whole_seconds() -> None:
    assert told_of({"retry-after": "1", "retry-after-ms": "20"}).retry_after_s == pytest.approx(0.02)
    assert told_of({"retry-after": "1", "retry-after-ms": "?"}).retry_after_s == 1


def test_a_limit_that_is_no_number_is_not_told() -> None:
    assert told_of({"x-ratelimit-limit-requests": "many", "x-ratelimit-remaining-requests": "3"}) == Told()
    assert told_of({"x-ratelimit-limit-requests": "0"}) == Told()


@given(st.dictionaries(st.sampled_from(NAMES), VALUES), st.floats(min_value=0, max_value=1e11))
def test_no_header_raises_or_gives_a_negative_or_endless_number(headers: dict[str, str], now: float) -> None:
    told = told_of(headers, now=now)
    windows = [w for w in (told.requests, told.tokens, told.input_tokens, told.output_tokens) if w is not None]
    numbers = [told.retry_after_s, *(n for w in windows for n in (w.limit, w.remaining, w.reset_s))]
    assert all(0 <= number < float("inf") for number in numbers if number is not None)
    assert all(window.limit > 0 for window in windows)
