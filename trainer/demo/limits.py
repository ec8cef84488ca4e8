"""The limits of the offline teacher: requests and tokens a minute, and requests under way at one time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from trainer.demo.http import Headers, Refused
from trainer.demo.knobs import Knobs

LIMITED_RETRY_S = 0.1
"""What a 429 of `limited_rate` says to wait."""


class Bucket:
    """A token bucket for so many a minute that holds one second's worth; 0 is no limit."""

    def __init__(self, per_minute: float) -> None:
        self.per_minute = per_minute
        self._rate = per_minute / 60
        self._capacity = max(1.0, self._rate)
        self._level = self._capacity
        self._at = 0.0

    def take(self, now: float, amount: float = 1.0) -> float:
        """Take an amount at monotonic time `now` (s): 0.0 when it may pass, else the seconds until it may.

        More than the bucket ever holds passes where it is full, and leaves a debt.
        """
        if not self.per_minute:
            return 0.0
        self._level = min(self._capacity, self._level + (now - self._at) * self._rate)
        self._at = now
        needed = min(amount, self._capacity)
        if self._level < needed:
            return (needed - self._level) / self._rate
        self._level -= amount
        return 0.0

    def headers(self, what: str) -> Headers:
        """OpenAI's three headers for the limit of `what`; none where there is no limit."""
        if not self.per_minute:
            return ()
        reset_s = (self._capacity - self._level) / self._rate
        return (
            (f"x-ratelimit-limit-{what}".encode(), f"{self.per_minute:.0f}".encode()),
            (f"x-ratelimit-remaining-{what}".encode(), str(max(0, int(self._level))).encode()),
            (f"x-ratelimit-reset-{what}".encode(), f"{reset_s:.3f}s".encode()),
        )


class Limits:
    """Who may come in. Each refusal is a Refused with status 429; its headers say when to come again, unless they are silent."""

    def __init__(self, knobs: Knobs) -> None:
        self.most_at_once = 0
        self._at_once = 0
        self._most_allowed = knobs.at_once or math.inf
        self._requests, self._tokens = Bucket(knobs.rpm), Bucket(knobs.tpm)
        self._silent = knobs.no_limit_headers

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among those under way, for the time of the block. Nobody can say when one is free again."""
        if self._at_once >= self._most_allowed:
            raise Refused(429, "rate_limit_exceeded", f"Too many requests at once: {self._most_allowed} may be under way.")
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            self._at_once -= 1

    def take_request(self, now: float) -> None:
        if wait_s := self._requests.take(now):
            raise self.refusal(wait_s, "requests")

    def take_tokens(self, now: float, tokens: int) -> None:
        if wait_s := self._tokens.take(now, tokens):
            raise self.refusal(wait_s, "tokens")

    def refusal(self, wait_s: float, what: str) -> Refused:
        retry = ((b"retry-after", b"%d" % math.ceil(wait_s)), (b"retry-after-ms", b"%d" % math.ceil(wait_s * 1000)))
        headers = () if self._silent else (*retry, *self.headers())
        return Refused(429, "rate_limit_exceeded", f"Too many {what}: come again in {wait_s:.3f} s.", headers)

    def headers(self) -> Headers:
        return () if self._silent else self._requests.headers("requests") + self._tokens.headers("tokens")
