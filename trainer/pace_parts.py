"""What a pace is made of: the answers it counts, the rate it found, calls at once, its suspicion of 429s, and the endpoint's health."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from trainer.calls import Call, Done, Outcome, Told, Window
from trainer.config import EndpointConfig

FEW_ANSWERS = 10
"""Fewer say little of a rate."""
SETTLED_S = 10.0
"""Over so long a span, what a server had in store counts for little."""

SLOT_AFTER = 25
CUT = 0.75
FIRST_HOLD_S, LONGEST_HOLD_S = 15.0, 60.0
"""For how long the number of calls at once that was refused is not tried again."""

LAST_OUTCOMES, FEWEST_OUTCOMES = 20, 5
FIRST_PROBE_S, PROBE_GROWTH, LONGEST_PROBE_S = 1.0, 1.5, 5.0
LOST_PROBE_S = 10.0
"""A probe of which nothing was heard for so long does not hold back the next one."""
PROBES_KEPT = 20

LONGEST_ERROR = 500
"""Characters of an error that are kept."""

WELL = frozenset({Outcome.ANSWERED, Outcome.REFUSED})


@dataclass(kw_only=True)
class Answers:
    """How many calls were answered in each of the last seconds."""

    SECONDS = 60

    since: float = 0.0
    counts: list[int] = field(default_factory=list)

    def add(self, now: float) -> None:
        second = int(now - self.since)
        if not self.counts or second >= len(self.counts) + self.SECONDS or second < 0:
            self.since, self.counts, second = now, [], 0
        self.counts.extend([0] * (second + 1 - len(self.counts)))
        self.counts[second] += 1
        surplus = len(self.counts) - self.SECONDS
        if surplus > 0:
            self.since += surplus
            del self.counts[:surplus]

    def number_since(self, start: float) -> int:
        """Calls answered since, to the second."""
        return sum(count for second, count in enumerate(self.counts) if self.since + second + 1 > start)

    def best_rate(self, start: float, end: float, *, stop_s: float, settled: bool) -> float:
        """The most calls a second between start and end, over whichever span up to the end that has a few; 0 where there was none.

        A stop of stop_s belongs to each span: what a bucket held in store, or a minute had room for, came on account of it.
        settled: it does not belong to spans of SETTLED_S and more, since what was in store is used up.
        """
        best, calls = 0.0, 0
        for second in reversed(range(len(self.counts))):
            begin = max(start, self.since + second)
            if begin >= self.since + second + 1:
                break
            calls += self.counts[second]
            span_s = end - begin
            if span_s > 0 and (calls >= FEW_ANSWERS or second == 0 or begin == start):
                best = max(best, calls / (span_s + stop_s))
                if settled and span_s >= SETTLED_S:
                    best = max(best, calls / span_s)
        return best

    def minute_rate(self, end: float) -> float | None:
        """Calls a second over the last minute; None where we know of less than one."""
        return sum(self.counts) / self.SECONDS if end - self.since >= self.SECONDS - 1 else None


@dataclass(kw_only=True)
class FoundRate:
    """The calls a second that a server seems to allow; 0: nothing was found. It climbs while calls wait for it."""

    DROP = 0.07
    PLATEAUS = ((2.0, 6, 0.5), (6.0, 15, 1.0), (18.0, 30, 2.0))
    """Seconds, calls and stops that a plateau takes at least, by how often the estimate was confirmed."""
    LONGEST_PLATEAU_S = 120.0

    estimate: float = 0.0
    climbed_s: float = 0.0
    plateau_s: float = PLATEAUS[0][0]
    confirmed: int = 0

    @property
    def per_s(self) -> float:
        """CUBIC: from 7 % below the estimate up to it after one plateau, 7 % above it after two."""
        return self.estimate * (1 + self.DROP * (self.climbed_s / self.plateau_s - 1) ** 3)

    def find(self, estimate: float, *, least: float, stop_s: float) -> None:
        """A refusal showed the rate. The more often it comes out the same, and the more a refusal costs, the slower the next climb.

        least: below it the estimate is taken to be wrong.
        """
        if estimate < least:
            estimate = least
        elif self.estimate and 2 / 3 < estimate / self.estimate < 3 / 2:
            self.confirmed = min(self.confirmed + 1, len(self.PLATEAUS) - 1)
        else:
            self.confirmed = 0
        seconds, calls, stops = self.PLATEAUS[self.confirmed]
        self.plateau_s = min(self.LONGEST_PLATEAU_S, max(seconds, calls / estimate, stops * stop_s))
        self.estimate, self.climbed_s = estimate, 0.0

    def doubt(self) -> None:
        """Much may have changed: climb fast again."""
        self.confirmed, self.climbed_s, self.plateau_s = 0, 0.0, self.PLATEAUS[0][0]

    def forget(self) -> None:
        self.estimate = 0.0


@dataclass(kw_only=True)
class Slots:
    """How many calls may be under way at once, by AIMD."""

    number: float = 0.0
    """0: as many as the config allows."""
    ceiling: int = 0
    """The most that is not known to be refused; 0: none is."""
    hold_until: float = 0.0
    hold_s: float = FIRST_HOLD_S
    successes: int = 0
    trying_more: bool = False
    """Than is known not to be refused."""

    def at_once(self, limits: EndpointConfig) -> int:
        return min(limits.max_at_once, int(self.number)) if self.number else limits.max_at_once

    def succeed(self, limits: EndpointConfig, now: float) -> None:
        if not self.number:
            return
        self.successes += 1
        if self.successes < SLOT_AFTER:
            return
        self.successes = 0
        if int(self.number + 1) <= self.ceiling or now >= self.hold_until:
            self.number += 1
            self.trying_more = int(self.number) > self.ceiling
            self.ceiling = max(self.ceiling, int(self.number))
        if self.number >= limits.max_at_once:
            self.forget()

    def cut(self, refused: int, now: float) -> None:
        """So many at once were refused: more than one."""
        self.number = max(1.0, refused * CUT)
        self.ceiling = refused - 1
        self.hold_until = now + self.hold_s
        self.hold_s = min(LONGEST_HOLD_S, self.hold_s * 2)
        self.successes = 0
        self.trying_more = False

    def forget(self) -> None:
        self.number, self.ceiling, self.hold_s, self.trying_more = 0.0, 0, FIRST_HOLD_S, False


@dataclass(kw_only=True)
class Suspicion:
    """Whether 429s are those of a limit, or strays that come whatever the rate: a CUSUM (Page 1954) over what calls come to.

    Where nothing was answered since the last stop, one is enough; among answers it takes a few that come close together, unless more is
    tried than an endpoint is known to take, and no stray was met for a while.
    """

    ENOUGH = 3.0
    ANSWERS_FOR_ONE = 8
    """So many answers make up for one 429: more than one in nine is a limit sooner or later, fewer hardly ever."""
    WARY_S = 60.0

    level: float = ENOUGH - 1
    at_once: int = 0
    """Calls that were under way when the first of the 429s came that are not made up for yet; 0: there is none."""
    wary_until: float = 0.0

    def refuse(self, told: Told, now: float, *, at_once: int, expected: bool) -> bool:
        """Count a 429, and whether to believe it. One whose own headers say that nothing is left is believed always.

        expected: more is tried than the endpoint is known to take.
        """
        self.at_once = self.at_once or at_once
        self.level += 1
        believed = self.level >= self.ENOUGH or (expected and now >= self.wary_until) or _says_spent(told)
        if not believed:
            self.wary_until = now + self.WARY_S
        return believed

    def answer(self) -> None:
        self.level = max(0.0, self.level - 1 / self.ANSWERS_FOR_ONE)
        if not self.level:
            self.at_once = 0

    def believe(self) -> None:
        self.level, self.at_once, self.wary_until = self.ENOUGH - 1, 0, 0.0


def _says_spent(told: Told) -> bool:
    return any(is_spent(window) for window in (told.requests, told.tokens, told.input_tokens, told.output_tokens))


def is_spent(window: Window | None) -> bool:
    """Whether nothing is left of a limit: not a whole call, nor token."""
    return window is not None and window.remaining is not None and window.remaining < 1


@dataclass(kw_only=True)
class Health:
    """The last outcomes, and the pause of an endpoint that is unwell."""

    outcomes: str = ""
    """The last ones, oldest first: + well, - not."""
    unwell_since: float = 0.0
    """0: it is well."""
    error: str = ""
    probe_at: float = 0.0
    interval_s: float = FIRST_PROBE_S
    probes: list[str] = field(default_factory=list)
    """Keys of the calls that went as probes, the last ones."""

    @property
    def unwell(self) -> bool:
        return self.unwell_since > 0

    def note(self, done: Done, now: float) -> None:
        """Count an outcome of an endpoint that is well."""
        if done.outcome in (Outcome.LIMITED, Outcome.UNSENT):
            return
        self.outcomes = (self.outcomes + ("+" if done.outcome in WELL else "-"))[-LAST_OUTCOMES:]
        if done.outcome not in WELL:
            self.error = done.error[:LONGEST_ERROR]
        failures = self.outcomes.count("-")
        if len(self.outcomes) >= FEWEST_OUTCOMES and 2 * failures > len(self.outcomes):
            self.unwell_since, self.interval_s, self.probes = now, FIRST_PROBE_S, []
            self.probe_at = now + self.interval_s

    def send_probe(self, call: Call, now: float) -> None:
        self.probes = [*self.probes, call.key][-PROBES_KEPT:]
        self.probe_at = now + LOST_PROBE_S

    def probe_unsent(self, now: float) -> None:
        """It was given back: the next call may go in its place."""
        self.probe_at = now

    def probe_failed(self, error: str, now: float) -> None:
        self.error = error[:LONGEST_ERROR]
        self.interval_s = min(LONGEST_PROBE_S, self.interval_s * PROBE_GROWTH)
        self.probe_at = now + self.interval_s

    def recover(self) -> None:
        self.outcomes, self.unwell_since, self.probes = "", 0.0, []

    def words(self) -> str:
        if not self.unwell:
            return ""
        return (
            f"The endpoint is unwell since {time_of_day(self.unwell_since)}: more than half of its last calls failed. "
            f"Calls wait; one is tried every few seconds until it is answered. The last error: {self.error or 'none was told.'}"
        )


def time_of_day(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S} UTC"
