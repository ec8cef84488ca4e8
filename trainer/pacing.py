"""The pace of one server: how many calls may go now, and when to ask again. Pure: a state that goes to JSON, and no clock of its own.

All workers share one `Pace` under a lock. It keeps to five things at once:

1. Limits that are known, from the config or from headers (the smaller counts), by token buckets that hold a fraction of a second's worth:
   whatever way a server counts (a bucket, a sliding minute, a fixed minute, spacing), an even flow is what it refuses least.
2. A limit that nobody tells is found: calls at once grow slowly until the first 429, the rate that was answered is the estimate
   (a server that refuses is one that gives all it has), and from there the rate climbs on CUBIC's curve (RFC 9438): fast up to the
   last estimate, level around it, then faster and faster in case more is to be had.
3. Calls at once, by AIMD: one more for 25 answers, a quarter fewer for a burst of 429s. Departures from the plain rule: it is not cut
   where the rate and not the number at once held calls back, and the number that was just refused is tried again only after a while.
4. A 429 that comes alone among answers is a stray: it says nothing of the rate, and stops nobody (`Suspicion`).
5. An endpoint that fails more than half of its last calls is unwell: nothing goes but a probe now and then, until one is answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from trainer.calls import Call, Done, Outcome, Told, Window
from trainer.config import EndpointConfig
from trainer.pace_parts import CUT, FEW_ANSWERS, WELL, Answers, FoundRate, Health, Slots, Suspicion, is_spent, time_of_day

HEADROOM = 0.98
"""Share of a known limit that is used: what a full minute, counted by another clock, has room for beside one burst."""
BURST_S = 0.15
"""A bucket holds so many seconds' worth: what gathers between two turns."""
BURST_GROWTH = BURST_S / 240
"""Seconds' worth a second: how fast a bucket grows again that was made smaller because calls came too close together."""
LARGEST_DROP = 0.1
"""One burst of 429s lowers a known limit by no more than this share."""
MINUTE_SHARE = 1.25
"""A server that refuses allows no more than so many times what it gave in the last minute."""
LONGER_THAN_A_MINUTE_S = 75.0
"""A limit that is whole again only after so long is not one of a minute, but of an hour or a day."""
TURN_S = 0.02
"""A turn is worth taking for so many seconds' worth of calls."""
SHORTEST_WAIT_S, LONGEST_WAIT_S = 0.005, 1.0
SLOT_WAIT_S = 0.2
"""When to ask again where all calls at once are under way: one of another worker may have ended."""

DEFAULT_STOPS_S = (2.0, 4.0, 8.0)
"""Stops after 429s that name no time, one after another while nothing is answered in between; the last one from then on."""
SHORTEST_BLIND_STOP_S = 1.0
"""Where the limit is not known, a shorter stop tells nothing about it."""
LONGEST_STOP_S = 3600.0
ALONE_S = 1.5
"""After two stops without an answer one call goes ahead of the others for so long."""

FIRST_AT_ONCE, MANY_AT_ONCE = 3, 15
FIRST_ANSWERS_PER_STEP, LATER_ANSWERS_PER_STEP = 8, 3
"""Calls at once from a cold start on an unknown limit, and answers for one more, up to `MANY_AT_ONCE` and beyond.

The slower the start, the fewer calls are under way, and refused, when a low limit is met: 60 a minute by the second step.
"""

FIRST_OUTPUT_SHARE = 0.25
"""Of the most that a call may be answered with: the length expected before any answer was seen."""
LENGTHS_AVERAGED = 100


@dataclass(frozen=True)
class Admission:
    """The first `count` calls may go now; ask again for the rest in `wait_s`. pause: the endpoint is unwell, in words, else ""."""

    count: int
    wait_s: float
    pause: str = ""


@dataclass(kw_only=True)
class Pace:
    """See the module. Times are seconds since the epoch by the clock that all workers share."""

    at: float = 0.0
    """When the levels were right."""
    levels: dict[str, float] = field(default_factory=dict)
    """What is left in each bucket; below 0 it is overdrawn, by one call or by what calls took more than was expected."""
    burst_s: float = BURST_S
    told: dict[str, float] = field(default_factory=dict)
    """The limits that headers told, a minute."""
    left: dict[str, float] = field(default_factory=dict)
    """Of limits that headers told for longer than a minute: what may go within the next one."""
    output_mean: float = 0.0
    output_seen: int = 0

    stop_until: float = 0.0
    stop_told: bool = False
    stops: int = 0
    """Stops since the last answer."""
    alone_until: float = 0.0
    refused_at: float = 0.0
    """When the last 429 came with which a burst began, unless nothing was answered since the one before."""
    refused_before: float = 0.0
    of_burst: int = 0
    """Calls of a burst of 429s that are still under way; -1: not counted yet."""
    sent_at_once: int = 0
    """Calls that were under way when the last ones were admitted, these included."""
    held_by: str = ""
    """What held calls back when they were last asked for: "rate", "slots", or nothing."""

    opening: float = FIRST_AT_ONCE
    """Calls at once that a cold start has come to."""
    opened: bool = False
    slots: Slots = field(default_factory=Slots)
    found: FoundRate = field(default_factory=FoundRate)
    answers: Answers = field(default_factory=Answers)
    suspicion: Suspicion = field(default_factory=Suspicion)
    health: Health = field(default_factory=Health)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Pace:
        """The state that `as_dict` gave; {} is a fresh one, and what an earlier version kept besides is dropped."""
        parts = {"slots": Slots, "found": FoundRate, "answers": Answers, "suspicion": Suspicion, "health": Health}
        known = _known(cls, data)
        return cls(**{name: parts[name](**_known(parts[name], value)) if name in parts else value for name, value in known.items()})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def admit(self, wanted: Sequence[Call], *, limits: EndpointConfig, in_flight: int, now: float) -> Admission:
        """How many of the wanted calls may go now; their tokens are taken. in_flight: calls of all workers that are under way."""
        self._refill(limits, now)
        self._count_burst(in_flight)
        room = max(0, self.at_once(limits) - in_flight)
        if self.health.unwell:
            admission = self._admit_probe(wanted[:room], now)
        elif now < self.stop_until:
            admission = Admission(0, _bounded(self.stop_until - now))
        elif self.stops >= 2:
            admission = self._admit_one_ahead(wanted[:room], now)
        else:
            admission = self._admit_flow(wanted, room, limits)
        if admission.count:
            self.sent_at_once = in_flight + admission.count
        return admission

    def settle(self, done: Sequence[Done], *, limits: EndpointConfig, now: float) -> None:
        """Learn from the ends of calls."""
        self._refill(limits, now)
        for end in done:
            self._hear(end, limits)
            self._correct(end, limits)
            if end.outcome is Outcome.LIMITED:
                self._refused(end.told, limits, now)
            elif end.outcome is Outcome.ANSWERED:
                self._answered(limits, now)
            elif end.outcome is Outcome.UNSENT:
                self.alone_until = now
            self._judge(end, now)
            if self.of_burst > 0:
                self.of_burst -= 1

    def words(self, now: float) -> str:
        """Why calls wait, where it is the endpoint's doing; else ""."""
        if self.health.unwell:
            return self.health.words()
        if self.stop_told and now < self.stop_until:
            return f"The endpoint asked us to wait until {time_of_day(self.stop_until)}: it had too many requests."
        return ""

    def at_once(self, limits: EndpointConfig) -> int:
        """The most calls that may be under way now."""
        slots = self.slots.at_once(limits)
        if self.opened or self._known_rate(limits):
            return slots
        return min(slots, int(self.opening))

    # Rates and buckets

    def _known_rate(self, limits: EndpointConfig) -> float:
        """Requests a second that config or headers allow; 0: neither tells."""
        return _smaller(limits.rpm, self.told.get("requests", 0.0)) / 60 * HEADROOM

    def rates(self, limits: EndpointConfig) -> dict[str, float]:
        """What flows into each bucket a second. There is no bucket for what has no limit."""
        rates = {
            "requests": _smaller(self._known_rate(limits), self.found.per_s),
            "tokens": self.told.get("tokens", 0.0) / 60 * HEADROOM,
            "input_tokens": _smaller(limits.input_tpm, self.told.get("input_tokens", 0.0)) / 60 * HEADROOM,
            "output_tokens": _smaller(limits.output_tpm, self.told.get("output_tokens", 0.0)) / 60 * HEADROOM,
        }
        rates = {name: _smaller(rate, self.left.get(name, 0.0) / 60) for name, rate in rates.items()}
        return {name: rate for name, rate in rates.items() if rate}

    def _refill(self, limits: EndpointConfig, now: float) -> None:
        passed_s = max(0.0, now - self.at)
        rates = self.rates(limits)
        self.burst_s = min(BURST_S, self.burst_s + passed_s * BURST_GROWTH)
        self.levels = {name: min(rate * self.burst_s, self.levels.get(name, 0.0) + rate * passed_s) for name, rate in rates.items()}
        self.at = now
        if self.held_by == "rate" and self.found.estimate and not self.stops:
            self.found.climbed_s += min(passed_s, 1.0)
            if 0 < self._known_rate(limits) <= self.found.per_s:
                self.found.forget()

    def _expected(self, call: Call) -> dict[str, float]:
        output = min(call.output_tokens, self.output_mean) if self.output_seen else call.output_tokens * FIRST_OUTPUT_SHARE
        return {"requests": 1, "tokens": call.input_tokens + output, "input_tokens": call.input_tokens, "output_tokens": output}

    def _take(self, call: Call) -> None:
        expected = self._expected(call)
        for name in self.levels:
            self.levels[name] -= expected[name]

    def _admit_flow(self, wanted: Sequence[Call], room: int, limits: EndpointConfig) -> Admission:
        """As many calls as there are slots and tokens for, and a note of which of them ran out."""
        count = self._take_tokens(wanted[:room])
        if count == len(wanted):
            self.held_by = "" if count else self.held_by
            return Admission(count, LONGEST_WAIT_S)
        self.held_by = "slots" if count == room else "rate"
        return Admission(count, SLOT_WAIT_S if count == room else self._next_tokens_s(len(wanted) - count, limits))

    def _take_tokens(self, wanted: Sequence[Call]) -> int:
        """Take calls while no bucket is empty: the last one may overdraw it, so that a call larger than the bucket can go at all."""
        for count, call in enumerate(wanted):
            if any(level <= 0 for level in self.levels.values()):
                return count
            self._take(call)
        return len(wanted)

    def _next_tokens_s(self, rest: int, limits: EndpointConfig) -> float:
        """Seconds until the buckets have enough for a turn that is worth it."""
        waits = [-level / rate for name, rate in self.rates(limits).items() if (level := self.levels[name]) <= 0]
        requests_per_s = self.rates(limits).get("requests", 0.0)
        if requests_per_s:
            handful = min(rest, max(1.0, requests_per_s * TURN_S))
            waits.append((handful - 1 - self.levels["requests"]) / requests_per_s)
        return _bounded(max(waits, default=0.0))

    def _correct(self, done: Done, limits: EndpointConfig) -> None:
        """Put the buckets right by what the call took indeed."""
        if done.outcome is Outcome.UNANSWERED:
            return
        expected = self._expected(done.call)
        used = {"tokens": 0, "input_tokens": 0, "output_tokens": 0}
        if completion := done.completion:
            used["input_tokens"], used["output_tokens"] = completion.prompt_tokens, completion.completion_tokens
            used["tokens"] = completion.prompt_tokens + completion.completion_tokens
            self.output_seen = min(self.output_seen + 1, LENGTHS_AVERAGED)
            self.output_mean += (completion.completion_tokens - self.output_mean) / self.output_seen
        elif done.outcome is Outcome.ANSWERED:
            return
        elif done.outcome is Outcome.UNSENT:
            used["requests"] = 0
        rates = self.rates(limits)
        for name in used.keys() & self.levels.keys() & rates.keys():
            self.levels[name] = min(rates[name] * self.burst_s, self.levels[name] + expected[name] - used[name])

    def _hear(self, done: Done, limits: EndpointConfig) -> None:
        """Keep what headers tell."""
        for name in ("requests", "tokens", "input_tokens", "output_tokens"):
            window: Window | None = getattr(done.told, name)
            if window is None:
                continue
            self.told.pop(name, None)
            self.left.pop(name, None)
            if (window.reset_s or 0.0) < LONGER_THAN_A_MINUTE_S:
                self.told[name] = window.limit
            else:
                self.left[name] = _next_minute(window)
            if is_spent(window):
                self._spend(name, done, self.rates(limits)[name])

    def _spend(self, name: str, done: Done, rate: float) -> None:
        """Nothing was left when the server took the call: the next one waits for what it takes; a 429 says if that is too soon."""
        latency_s = done.completion.latency_s if done.completion else 0.0
        self.levels[name] = min(self.levels.get(name, 0.0), rate * latency_s - self._expected(done.call)[name])

    # Refusals

    def _count_burst(self, in_flight: int) -> None:
        self.of_burst = in_flight if self.of_burst < 0 else min(self.of_burst, in_flight)

    def _refused(self, told: Told, limits: EndpointConfig, now: float) -> None:
        """A 429 that is no stray stops the endpoint; only the first of a burst says anything new of the limit."""
        first = self.of_burst == 0
        if first and not self.suspicion.refuse(told, now, at_once=self.sent_at_once, expected=self._tries_more):
            self._spread(limits)
            return
        again = self.stops > 0
        if now >= self.stop_until or told.retry_after_s is not None:
            stop_s = self._stop_s(told, limits)
            self.stops += now >= self.stop_until
            self.stop_told = told.retry_after_s is not None
            self.stop_until = max(self.stop_until, now + stop_s)
        if not first:
            return
        self.of_burst = -1
        if not again:
            self.refused_before, self.refused_at = self.refused_at, now
        sure = self._known_rate(limits) or self.found.confirmed
        if not (again and sure):  # a stop after a stop says how long it lasts, and nothing of a rate that is sure
            self._lower(limits, now)
        self.suspicion.believe()

    def _spread(self, limits: EndpointConfig) -> None:
        """What looks like a stray may be a call that came a little too soon after the last one, where calls are few."""
        if self.held_by == "rate" and self.rates(limits).get("requests", 0.0) * self.burst_s < 1:
            self._lower_burst(limits)

    @property
    def _tries_more(self) -> bool:
        """Whether calls go faster, or more at once, than the endpoint is known to take."""
        if self.held_by == "rate":
            return self.found.confirmed > 0 and self.found.climbed_s >= self.found.plateau_s
        return self.slots.trying_more

    def _stop_s(self, told: Told, limits: EndpointConfig) -> float:
        if told.retry_after_s is None:
            return DEFAULT_STOPS_S[min(self.stops, len(DEFAULT_STOPS_S) - 1)]
        shortest = 0.0 if self._known_rate(limits) else SHORTEST_BLIND_STOP_S
        return min(LONGEST_STOP_S, max(shortest, told.retry_after_s))

    def _lower(self, limits: EndpointConfig, now: float) -> None:
        if self.held_by == "rate":
            self._lower_burst(limits)
        elif self.suspicion.at_once > 1:
            self.slots.cut(self.suspicion.at_once, now)
        self.opened = True
        stop_s = self.stop_until - self.refused_at
        settled = self.found.estimate > 0
        estimate = self.answers.best_rate(self.refused_before, self.refused_at, stop_s=stop_s, settled=settled)
        minute_rate = self.answers.minute_rate(self.refused_at)
        if minute_rate:
            estimate = min(estimate, minute_rate * MINUTE_SHARE)
        if estimate:
            self.found.find(estimate, least=self._least_rate(limits), stop_s=stop_s)

    def _lower_burst(self, limits: EndpointConfig) -> None:
        """A refusal below the rate that was told, or found before, is one of calls that came too close together."""
        if not self.found.estimate or self.found.climbed_s < self.found.plateau_s:
            self.burst_s /= 2

    def _least_rate(self, limits: EndpointConfig) -> float:
        """Calls a second below which no burst of 429s brings us at once: the surer the rate was and the less we saw since, the more."""
        if self._known_rate(limits):
            return self.rates(limits)["requests"] * (1 - LARGEST_DROP)
        if self.found.confirmed:
            return self.found.per_s * CUT
        few = 0 < self.answers.number_since(self.refused_before) < FEW_ANSWERS
        return self.found.per_s / 2 if few and self.stops == 1 else 0.0

    def _answered(self, limits: EndpointConfig, now: float) -> None:
        if self.of_burst == 0:
            self.stops = 0
            self.suspicion.answer()
        self.answers.add(now)
        self.slots.succeed(limits, now)
        if not self.opened:
            self.opening += 1 / (FIRST_ANSWERS_PER_STEP if self.opening < MANY_AT_ONCE else LATER_ANSWERS_PER_STEP)
            self.opened = self.opening >= limits.max_at_once

    def _admit_one_ahead(self, wanted: Sequence[Call], now: float) -> Admission:
        """Two stops brought nothing: whether the endpoint takes calls again is tried with one."""
        if not wanted or now < self.alone_until:
            return Admission(0, _bounded(self.alone_until - now if wanted else SLOT_WAIT_S))
        self._take(wanted[0])
        self.alone_until = now + ALONE_S
        return Admission(1, LONGEST_WAIT_S)

    # Outages

    def _admit_probe(self, wanted: Sequence[Call], now: float) -> Admission:
        pause = self.health.words()
        if not wanted or now < self.health.probe_at:
            return Admission(0, _bounded(self.health.probe_at - now if wanted else SLOT_WAIT_S), pause)
        self._take(wanted[0])
        self.health.send_probe(wanted[0], now)
        return Admission(1, LONGEST_WAIT_S, pause)

    def _judge(self, done: Done, now: float) -> None:
        """What an end says of the endpoint's health."""
        if not self.health.unwell:
            self.health.note(done, now)
        elif done.call.key not in self.health.probes:
            return
        elif done.outcome is Outcome.UNSENT:
            self.health.probe_unsent(now)
        elif done.outcome in WELL or done.outcome is Outcome.LIMITED:
            self.health.recover()
            self.slots.forget()
            self.found.doubt()
        else:
            self.health.probe_failed(done.error, now)


def _known(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in data.items() if name in names}


def _next_minute(window: Window) -> float:
    """What may go within a minute of a limit that is one of an hour or a day: all that is left, and what comes back if it comes bit by bit.

    The nearer it is to its end the less goes, so that calls do not run into it, nor wait while there is plenty.
    """
    left = window.remaining or 0.0
    back_a_minute = max(0.0, window.limit - left) / (window.reset_s or 60.0) * 60
    return max(left, back_a_minute) * HEADROOM


def _smaller(first: float, second: float) -> float:
    """The smaller of two limits, where 0 is none."""
    return min(first, second) if first and second else first or second


def _bounded(wait_s: float) -> float:
    return min(LONGEST_WAIT_S, max(SHORTEST_WAIT_S, wait_s))
