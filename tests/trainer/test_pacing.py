"""The pace of a server, against servers that count in every way there is, on a virtual clock."""

from __future__ import annotations

import heapq
import json
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from typing import Any, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.calls import Call, Done, Outcome, Told, Window
from trainer.config import EndpointConfig
from trainer.pace_parts import Slots
from trainer.pacing import BURST_S, LONGEST_WAIT_S, SHORTEST_WAIT_S, Pace
from trainer.records import Completion

T0 = 1_800_000_000.0
MINUTE_S = 60.0


class Server(Protocol):
    """What a server says to a call that arrives: None where it is taken, else in how many seconds it might be."""

    def arrive(self, now: float) -> float | None: ...

    def leave(self) -> None: ...

    def window(self, now: float) -> Window | None: ...


class Unlimited:
    def arrive(self, now: float) -> float | None:
        return None

    def leave(self) -> None:
        return None

    def window(self, now: float) -> Window | None:
        return None


class Bucket(Unlimited):
    """A token bucket that holds one second's worth, or `holds` calls: the fewer, the stricter the spacing."""

    def __init__(self, rpm: float, holds: float = 0.0) -> None:
        self.rpm, self.rate = rpm, rpm / 60
        self.holds = holds or max(1.0, self.rate)
        self.level, self.at = self.holds, 0.0

    def arrive(self, now: float) -> float | None:
        self.level, self.at = min(self.holds, self.level + (now - self.at) * self.rate), now
        if self.level < 1:
            return (1 - self.level) / self.rate
        self.level -= 1
        return None

    def window(self, now: float) -> Window | None:
        return Window(limit=self.rpm, remaining=int(self.level), reset_s=(self.holds - self.level) / self.rate)


class Strays(Unlimited):
    """A share of calls is refused by chance, whatever the rate; a gateway's habit. The rest go to the server behind."""

    def __init__(self, share: float, server: Server) -> None:
        self.share, self.server, self.draw = share, server, random.Random(1)

    def arrive(self, now: float) -> float | None:
        return 1.0 if self.draw.random() < self.share else self.server.arrive(now)

    def window(self, now: float) -> Window | None:
        return self.server.window(now)


class OutOfCalls(Strays):
    """All calls are refused for a minute."""

    def __init__(self, server: Server, since_s: float) -> None:
        super().__init__(0.0, server)
        self.since_s = since_s

    def arrive(self, now: float) -> float | None:
        return 1.0 if self.since_s <= now < self.since_s + MINUTE_S else self.server.arrive(now)


class DayBucket(Bucket):
    """A day's worth in a bucket that fills bit by bit; "reset" is when it is full."""

    def __init__(self, per_day: int, left: int) -> None:
        super().__init__(per_day / 24 / 60, holds=per_day)
        self.level = left

    def window(self, now: float) -> Window | None:
        return Window(limit=self.holds, remaining=int(self.level), reset_s=(self.holds - self.level) / self.rate)


class SaysNothingIsLeft(Bucket):
    """Its headers say at each call that nothing is left, and nothing comes back for a minute."""

    def window(self, now: float) -> Window | None:
        return Window(limit=self.rpm, remaining=0, reset_s=MINUTE_S)


def spacing(rpm: float) -> Bucket:
    return Bucket(rpm, holds=10)


class SlidingMinute(Unlimited):
    """So many, or so many tokens, in the sixty seconds before each call."""

    def __init__(self, rpm: float) -> None:
        self.rpm, self.taken = rpm, deque[float]()

    def arrive(self, now: float) -> float | None:
        while self.taken and self.taken[0] <= now - MINUTE_S:
            self.taken.popleft()
        if len(self.taken) >= self.rpm:
            return self.taken[0] + MINUTE_S - now
        self.taken.append(now)
        return None

    def window(self, now: float) -> Window | None:
        return Window(limit=self.rpm, remaining=self.rpm - len(self.taken), reset_s=self.taken[0] + MINUTE_S - now)


class FixedMinute(Unlimited):
    """So many from minute to minute; the simulation begins in the midst of one."""

    def __init__(self, rpm: float) -> None:
        self.rpm, self.minute, self.taken = rpm, -1, 0

    def arrive(self, now: float) -> float | None:
        minute = int((now + 20) // MINUTE_S)
        if minute != self.minute:
            self.minute, self.taken = minute, 0
        if self.taken >= self.rpm:
            return self._left_s(now)
        self.taken += 1
        return None

    def window(self, now: float) -> Window | None:
        return Window(limit=self.rpm, remaining=self.rpm - self.taken, reset_s=self._left_s(now))

    def _left_s(self, now: float) -> float:
        return (self.minute + 1) * MINUTE_S - 20 - now


class FixedDay(FixedMinute):
    """So many until the day is over, all but 100 of which are gone."""

    def __init__(self, per_day: int) -> None:
        super().__init__(per_day)
        self.minute, self.taken = 0, per_day - 100

    def arrive(self, now: float) -> float | None:
        if self.taken >= self.rpm:
            return self._left_s(now)
        self.taken += 1
        return None

    def _left_s(self, now: float) -> float:
        return 6 * 3600 - now


class AtOnce(Unlimited):
    """So many under way at a time, as fast as they go."""

    def __init__(self, most: int) -> None:
        self.most, self.under_way = most, 0

    def arrive(self, now: float) -> float | None:
        if self.under_way >= self.most:
            return 0.0
        self.under_way += 1
        return None

    def leave(self) -> None:
        self.under_way -= 1


@dataclass
class Worker:
    turn_at: float = math.inf
    woken: bool = False
    """A call of its own ended, and the turn that brings it is on its way."""
    under_way: int = 0
    wanted: list[Call] = field(default_factory=list)
    ended: list[Done] = field(default_factory=list)


@dataclass(kw_only=True)
class Simulation:
    """Workers that always want more, whose turns come 5 to 100 ms late. Times are in seconds from the start."""

    server: Server
    limits: EndpointConfig
    latency_s: float = 0.05
    workers: int = 1
    headers: bool = False
    retry_after: bool = True
    delay_s: tuple[float, float] = (0.005, 0.1)
    outage: tuple[float, float] = (0.0, 0.0)
    outage_as: Outcome = Outcome.FAILED
    output_tokens: Callable[[random.Random], int] = lambda draw: 100
    seed: int = 0

    def __post_init__(self) -> None:
        self.pace = Pace()
        self.taken: list[float] = []
        self.refused: list[float] = []
        self.tokens = 0
        self._draw = random.Random(self.seed)
        self._events: list[tuple[float, int, Worker, Done | None]] = []
        self._order = count()
        self._crew = [Worker() for _ in range(self.workers)]

    def run(self, duration_s: float) -> Simulation:
        for worker in self._crew:
            self._call_turn(worker, 0.0)
        while self._events[0][0] <= duration_s:
            now, _, worker, done = heapq.heappop(self._events)
            if done is not None:
                self._end(worker, done, now)
            elif worker.turn_at == now:
                self._turn(worker, now)
        return self

    def rate(self, start_s: float, end_s: float) -> float:
        """Calls a minute that the server took between these times."""
        return sum(start_s <= at < end_s for at in self.taken) / (end_s - start_s) * MINUTE_S

    @property
    def refused_share(self) -> float:
        return len(self.refused) / (len(self.refused) + len(self.taken))

    def _push(self, at: float, worker: Worker, done: Done | None) -> None:
        heapq.heappush(self._events, (at, next(self._order), worker, done))

    def _call_turn(self, worker: Worker, wish: float) -> None:
        at = wish + self._draw.uniform(*self.delay_s)
        if at < worker.turn_at:
            worker.turn_at = at
            self._push(at, worker, None)

    def _end(self, worker: Worker, done: Done, now: float) -> None:
        if done.outcome is Outcome.ANSWERED:
            self.server.leave()
        worker.ended.append(done)
        if not worker.woken:
            worker.woken = True
            self._call_turn(worker, now)

    def _turn(self, worker: Worker, now: float) -> None:
        done, worker.ended = worker.ended, []
        worker.under_way -= len(done)
        worker.turn_at, worker.woken = math.inf, False
        self.pace.settle(done, limits=self.limits, now=T0 + now)
        room = max(1, self.limits.max_at_once - worker.under_way)
        worker.wanted.extend(self._call() for _ in range(room - len(worker.wanted)))
        wanted = worker.wanted[:room]
        in_flight = sum(each.under_way for each in self._crew)
        admission = self.pace.admit(wanted, limits=self.limits, in_flight=in_flight, now=T0 + now)
        worker.under_way += admission.count
        del worker.wanted[: admission.count]
        for call in wanted[: admission.count]:
            self._send(worker, call, now)
        self._call_turn(worker, now + admission.wait_s)

    def _call(self) -> Call:
        return Call(key=str(next(self._order)), role="teacher", input_tokens=100, output_tokens=400)

    def _send(self, worker: Worker, call: Call, now: float) -> None:
        latency_s = self.latency_s * self._draw.uniform(0.9, 1.1)
        if self.outage[0] <= now < self.outage[1]:
            after_s = 0.01 if self.outage_as is Outcome.FAILED else 5.0
            self._push(now + after_s, worker, Done(call=call, outcome=self.outage_as, error="503"))
            return
        wait_s = self.server.arrive(now)
        told = Told(requests=self.server.window(now) if self.headers else None)
        if wait_s is None:
            self.taken.append(now)
            completion = answer(latency_s, self.output_tokens(self._draw))
            self.tokens += completion.completion_tokens
            self._push(now + latency_s, worker, Done(call=call, outcome=Outcome.ANSWERED, completion=completion, told=told))
        else:
            self.refused.append(now)
            told = replace(told, retry_after_s=max(1.0, math.ceil(wait_s)) if self.retry_after else None)
            self._push(now + latency_s, worker, Done(call=call, outcome=Outcome.LIMITED, told=told))


def answer(latency_s: float = 0.05, completion_tokens: int = 100) -> Completion:
    return Completion(
        key="0",
        endpoint="fake",
        model="fake",
        request={},
        text="",
        finish_reason="stop",
        prompt_tokens=100,
        completion_tokens=completion_tokens,
        latency_s=latency_s,
    )


def call(key: str = "a") -> Call:
    return Call(key=key, role="teacher", input_tokens=100, output_tokens=400)


def calls(number: int) -> list[Call]:
    return [call(str(n)) for n in range(number)]


def end(outcome: Outcome, key: str = "a", **told: Any) -> Done:
    completion = answer() if outcome is Outcome.ANSWERED else None
    return Done(call=call(key), outcome=outcome, completion=completion, told=Told(**told), error="boom")


FAST = EndpointConfig(max_at_once=64)
ROOMY = EndpointConfig(max_at_once=128)
SHAPES: dict[str, Callable[[float], Server]] = {
    "bucket": Bucket,
    "sliding minute": SlidingMinute,
    "fixed minute": FixedMinute,
    "spacing": spacing,
}
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES)


# A limit that is known


@EACH_SHAPE
@pytest.mark.parametrize("headers", [True, False], ids=["headers", "config"])
@pytest.mark.parametrize(("latency_s", "workers"), [(0.05, 1), (0.05, 4), (1.0, 1)])
def test_a_known_limit_of_3000_a_minute_is_used_from_a_cold_start(shape: str, headers: bool, latency_s: float, workers: int) -> None:
    limits = replace(ROOMY, rpm=0 if headers else 3000)
    done = Simulation(server=SHAPES[shape](3000), limits=limits, latency_s=latency_s, workers=workers, headers=headers).run(60)
    assert done.rate(0, 60) >= 0.95 * 3000
    assert done.refused_share <= 0.01


@pytest.mark.parametrize("shape", ["sliding minute", "fixed minute", "spacing"])
@pytest.mark.parametrize("headers", [True, False], ids=["headers", "config"])
@pytest.mark.parametrize(("latency_s", "workers"), [(0.05, 1), (0.05, 4), (1.0, 1), (1.0, 4)])
def test_a_known_limit_of_60_a_minute_is_used_from_a_cold_start(shape: str, headers: bool, latency_s: float, workers: int) -> None:
    limits = replace(FAST, rpm=0 if headers else 60)
    done = Simulation(server=SHAPES[shape](60), limits=limits, latency_s=latency_s, workers=workers, headers=headers).run(120)
    assert done.rate(0, 120) >= 0.95 * 60
    assert done.refused_share <= 0.05


def test_a_bucket_of_one_call_is_used_as_far_as_late_turns_allow() -> None:
    """Each call must come a second after the last one, so that a turn that is late by 52 ms on average loses 5 % for good."""
    done = Simulation(server=Bucket(60), limits=FAST, headers=True).run(120)
    assert done.rate(0, 120) >= 0.88 * 60
    assert done.refused_share <= 0.05


def test_the_smaller_of_a_configured_and_a_told_limit_counts() -> None:
    done = Simulation(server=Bucket(3000), limits=replace(FAST, rpm=600), headers=True).run(60)
    assert done.rate(0, 60) == pytest.approx(0.98 * 600, rel=0.02)


def test_a_configured_limit_that_is_too_high_gives_way_to_what_the_server_takes() -> None:
    done = Simulation(server=Bucket(1500), limits=replace(FAST, rpm=3000)).run(180)
    assert done.rate(60, 180) >= 0.85 * 1500
    assert done.refused_share <= 0.05


@pytest.mark.parametrize("workers", [1, 4])
def test_an_output_token_limit_is_used_whatever_the_answers_lengths(workers: int) -> None:
    limits = replace(FAST, output_tpm=60_000)
    simulation = Simulation(server=Unlimited(), limits=limits, workers=workers, output_tokens=lambda draw: draw.randint(50, 399))
    done = simulation.run(120)
    assert 0.95 * 120_000 <= done.tokens <= 1.0 * 120_000 + 400 * 4


def test_tokens_that_a_call_did_not_use_are_given_back() -> None:
    limits = replace(FAST, input_tpm=6000)
    pace = Pace()
    admitted = pace.admit(calls(3), limits=limits, in_flight=0, now=T0).count
    assert admitted == 1
    pace.settle([end(Outcome.REFUSED, "0")], limits=limits, now=T0)
    assert pace.levels["input_tokens"] == pytest.approx(6000 / 60 * 0.98 * BURST_S)


def test_where_headers_say_that_nothing_is_left_the_next_call_waits_for_what_it_takes() -> None:
    pace = Pace()
    pace.settle([end(Outcome.ANSWERED, requests=Window(limit=60, remaining=0, reset_s=60))], limits=FAST, now=T0)
    assert pace.admit(calls(3), limits=FAST, in_flight=0, now=T0 + 0.9).count == 0
    assert pace.admit(calls(3), limits=FAST, in_flight=0, now=T0 + 1.1).count == 1


def test_headers_that_always_say_that_nothing_is_left_cost_no_more_than_half_of_the_limit() -> None:
    done = Simulation(server=SaysNothingIsLeft(3000), limits=ROOMY, headers=True).run(60)
    assert done.rate(0, 60) >= 0.5 * 3000


def test_a_days_limit_is_used_until_little_is_left_and_then_as_it_comes_back() -> None:
    done = Simulation(server=DayBucket(14_400, left=1000), limits=FAST, headers=True).run(600)
    assert done.rate(0, 60) >= 500
    assert done.rate(500, 600) == pytest.approx(14_400 / 24 / 60, rel=0.5)
    assert done.refused_share <= 0.01


def test_a_limit_that_starts_anew_each_day_is_used_to_its_end() -> None:
    done = Simulation(server=FixedDay(1000), limits=FAST, headers=True).run(600)
    assert len(done.taken) == 100
    assert len(done.refused) <= 2


def test_a_days_limit_in_the_headers_does_not_hide_a_minutes_limit_that_nobody_tells() -> None:
    class Both(FixedDay):
        hidden = Bucket(30)

        def arrive(self, now: float) -> float | None:
            return self.hidden.arrive(now) or super().arrive(now)

    server = Both(14_400)
    server.taken = 0
    done = Simulation(server=server, limits=FAST, headers=True).run(600)
    assert done.rate(60, 600) >= 0.8 * 30
    assert done.refused_share <= 0.08


# A limit that nobody tells


@pytest.mark.parametrize(
    ("shape", "latency_s", "workers", "retry_after", "used"),
    [
        ("bucket", 0.05, 1, True, 0.95),
        ("bucket", 0.05, 4, True, 0.95),
        ("bucket", 0.05, 1, False, 0.85),
        ("bucket", 0.05, 4, False, 0.85),
        ("bucket", 1.0, 1, True, 0.8),
        ("sliding minute", 0.05, 1, True, 0.95),
        ("sliding minute", 0.05, 4, True, 0.95),
        ("sliding minute", 0.05, 1, False, 0.85),
        ("fixed minute", 0.05, 1, True, 0.95),
        ("fixed minute", 0.05, 4, True, 0.95),
        ("fixed minute", 1.0, 1, True, 0.95),
        ("spacing", 0.05, 1, True, 0.8),
        ("spacing", 0.05, 4, True, 0.8),
    ],
)
def test_an_untold_limit_of_3000_a_minute_is_found(shape: str, latency_s: float, workers: int, retry_after: bool, used: float) -> None:
    server = SHAPES[shape](3000)
    done = Simulation(server=server, limits=ROOMY, latency_s=latency_s, workers=workers, retry_after=retry_after).run(180)
    assert done.rate(0, 180) >= used * 3000
    assert done.refused_share <= 0.05


@pytest.mark.parametrize("retry_after", [True, False])
@pytest.mark.parametrize("workers", [1, 4])
def test_an_untold_limit_is_found_within_the_first_minute(workers: int, retry_after: bool) -> None:
    done = Simulation(server=Bucket(3000), limits=FAST, workers=workers, retry_after=retry_after).run(60)
    assert done.rate(0, 60) >= (0.9 if retry_after else 0.8) * 3000
    assert done.refused_share <= 0.05


@EACH_SHAPE
@pytest.mark.parametrize("workers", [1, 4])
def test_an_untold_limit_of_60_a_minute_is_found(shape: str, workers: int) -> None:
    done = Simulation(server=SHAPES[shape](60), limits=FAST, workers=workers).run(180)
    assert done.rate(0, 180) >= 0.85 * 60
    assert done.refused_share <= 0.1


def test_a_server_without_limits_gets_all_calls_at_once_within_a_second() -> None:
    done = Simulation(server=Unlimited(), limits=FAST, delay_s=(0.002, 0.008)).run(5)
    assert done.rate(1, 5) / MINUTE_S >= 0.9 * 64 / (0.05 + 0.007)


# 429s that are of no limit


@pytest.mark.parametrize("rpm", [0, 60_000])
@pytest.mark.parametrize("retry_after", [True, False])
@pytest.mark.parametrize(("share", "latency_s", "used"), [(0.001, 0.05, 0.9), (0.01, 0.05, 0.9), (0.01, 1.0, 0.9), (0.05, 0.05, 0.03)])
def test_stray_429s_do_not_bring_down_the_rate(share: float, latency_s: float, used: float, retry_after: bool, rpm: int) -> None:
    limits, server = replace(FAST, rpm=rpm), Strays(share, Unlimited())
    done = Simulation(server=server, limits=limits, latency_s=latency_s, retry_after=retry_after, delay_s=(0.005, 0.02)).run(50)
    full = 64 / (latency_s + 0.02) * MINUTE_S
    assert done.rate(20, 50) >= used * full


@EACH_SHAPE
def test_a_limit_is_found_among_stray_429s(shape: str) -> None:
    done = Simulation(server=Strays(0.01, SHAPES[shape](3000)), limits=ROOMY).run(180)
    assert done.rate(0, 180) >= 0.8 * 3000
    assert done.refused_share <= 0.06


def test_a_429_among_answers_stops_nobody_and_the_third_in_a_row_does() -> None:
    pace = full(Pace(opened=True), at=T0)
    pace.settle([end(Outcome.ANSWERED)] * 30 + [end(Outcome.LIMITED, retry_after_s=9.0)] * 2, limits=FAST, now=T0)
    assert pace.admit(calls(1), limits=FAST, in_flight=0, now=T0).count == 1
    pace.settle([end(Outcome.LIMITED, retry_after_s=9.0)], limits=FAST, now=T0)
    assert pace.admit(calls(1), limits=FAST, in_flight=0, now=T0 + 8.9).count == 0


def test_a_429_whose_headers_say_that_nothing_is_left_is_believed_at_once() -> None:
    pace = full(Pace(opened=True), at=T0)
    spent = end(Outcome.LIMITED, retry_after_s=9.0, requests=Window(limit=3000, remaining=0, reset_s=9))
    pace.settle([end(Outcome.ANSWERED)] * 30 + [spent], limits=FAST, now=T0)
    assert pace.admit(calls(1), limits=FAST, in_flight=0, now=T0 + 8.9).count == 0


# Calls at once


@pytest.mark.parametrize("most", [4, 8, 32])
@pytest.mark.parametrize(("latency_s", "workers"), [(0.05, 1), (1.0, 4)])
def test_calls_at_once_settle_near_what_the_server_takes(most: int, latency_s: float, workers: int) -> None:
    done = Simulation(server=AtOnce(most), limits=FAST, latency_s=latency_s, workers=workers).run(180)
    assert done.refused_share <= (0.02 if latency_s < 1 or most > 8 else 0.035)
    longest_call_s = latency_s + 2 * 0.052  # its end is brought by one turn, and the next call goes by another
    assert done.rate(60, 180) / MINUTE_S >= 0.65 * most / longest_call_s


def full(pace: Pace, *, at: float) -> Pace:
    """As many calls at once as are allowed, and more wanted."""
    pace.admit(calls(200), limits=FAST, in_flight=0, now=at)
    return pace


def test_only_the_first_429_of_a_burst_cuts_the_calls_at_once() -> None:
    pace = Pace(opened=True)
    full(pace, at=T0)
    pace.settle([end(Outcome.LIMITED)], limits=FAST, now=T0)
    pace.admit(calls(1), limits=FAST, in_flight=63, now=T0)
    assert pace.at_once(FAST) == 48
    for n in range(63):
        pace.settle([end(Outcome.LIMITED)], limits=FAST, now=T0 + n / 1000)
    assert pace.at_once(FAST) == 48
    pace.settle([end(Outcome.ANSWERED)], limits=FAST, now=T0 + 0.1)
    pace.admit(calls(200), limits=FAST, in_flight=0, now=T0 + 60)
    pace.settle([end(Outcome.LIMITED)] * 2, limits=FAST, now=T0 + 60)
    assert pace.at_once(FAST) < 48


def test_calls_at_once_grow_by_one_for_25_answers() -> None:
    pace = Pace(opened=True)
    full(pace, at=T0)
    pace.settle([end(Outcome.LIMITED)], limits=FAST, now=T0)
    pace.settle([end(Outcome.ANSWERED)] * 24, limits=FAST, now=T0 + 3)
    assert pace.at_once(FAST) == 48
    pace.settle([end(Outcome.ANSWERED)], limits=FAST, now=T0 + 3)
    assert pace.at_once(FAST) == 49


def test_calls_at_once_never_fall_below_one() -> None:
    slots = Slots()
    for n in range(40):
        slots.cut(slots.at_once(FAST), T0 + n)
    assert slots.at_once(FAST) == 1


def test_retry_after_stops_the_endpoint_and_says_so() -> None:
    pace = Pace()
    pace.settle([end(Outcome.LIMITED, retry_after_s=7.0)], limits=FAST, now=T0)
    assert pace.admit(calls(1), limits=FAST, in_flight=0, now=T0 + 6.9).count == 0
    assert "08:00:07 UTC" in pace.words(T0 + 6.9)
    assert pace.words(T0 + 7) == ""
    assert pace.admit(calls(1), limits=FAST, in_flight=0, now=T0 + 7).count == 1


def test_a_429_without_a_time_stops_the_endpoint_for_two_seconds() -> None:
    pace = Pace()
    pace.settle([end(Outcome.LIMITED)], limits=FAST, now=T0)
    assert pace.admit(calls(1), limits=FAST, in_flight=0, now=T0 + 1.9).count == 0
    assert pace.admit(calls(1), limits=FAST, in_flight=0, now=T0 + 2).count == 1


def test_a_thousand_stops_that_name_no_time_are_no_longer_than_8_s() -> None:
    pace, now = Pace(), T0
    for _ in range(1100):
        pace.settle([end(Outcome.LIMITED)], limits=FAST, now=now)
        now = pace.stop_until
        pace.admit(calls(1), limits=FAST, in_flight=0, now=now)
    assert now == pytest.approx(T0 + 2 + 4 + 1098 * 8)


# Outages


@EACH_SHAPE
@pytest.mark.parametrize("retry_after", [True, False])
@pytest.mark.parametrize(("headers", "rpm"), [(True, 0), (False, 3000)])
def test_full_rate_is_back_15_s_after_a_minute_of_429s(headers: bool, rpm: int, retry_after: bool, shape: str) -> None:
    server = OutOfCalls(SHAPES[shape](3000), since_s=100)
    done = Simulation(server=server, limits=replace(ROOMY, rpm=rpm), headers=headers, retry_after=retry_after).run(200)
    assert done.rate(175, 200) >= 0.95 * 3000


@pytest.mark.parametrize("retry_after", [True, False])
def test_most_of_a_rate_that_was_found_is_back_15_s_after_a_minute_of_429s(retry_after: bool) -> None:
    done = Simulation(server=OutOfCalls(Bucket(3000), since_s=100), limits=ROOMY, retry_after=retry_after).run(200)
    assert done.rate(175, 200) >= 0.7 * 3000


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.UNANSWERED])
@pytest.mark.parametrize("latency_s", [0.05, 1.0])
@pytest.mark.parametrize(("headers", "rpm", "used"), [(True, 0, 0.95), (False, 3000, 0.95), (False, 0, 0.85)])
def test_full_rate_is_back_15_s_after_an_outage_of_a_minute(
    headers: bool, rpm: int, used: float, latency_s: float, outcome: Outcome
) -> None:
    limits = replace(ROOMY, rpm=rpm)
    simulation = Simulation(server=Bucket(3000), limits=limits, latency_s=latency_s, headers=headers, outage=(100, 160), outage_as=outcome)
    done = simulation.run(200)
    assert done.rate(175, 200) >= used * 3000


def test_calls_at_once_that_were_cut_before_an_outage_are_whole_again_after_it() -> None:
    pace = unwell()
    pace.slots.number, pace.slots.ceiling, pace.slots.hold_until = 1.0, 1, T0 + 1000
    probe(pace, at=T0 + 1)
    pace.settle([end(Outcome.ANSWERED, "probe")], limits=FAST, now=T0 + 2)
    assert pace.at_once(replace(FAST, rpm=3000)) == 64


def unwell() -> Pace:
    pace = Pace()
    pace.settle([end(Outcome.ANSWERED)] * 2 + [end(Outcome.FAILED)] * 3, limits=FAST, now=T0)
    return pace


def probe(pace: Pace, *, at: float) -> int:
    return pace.admit([call("probe")], limits=FAST, in_flight=0, now=at).count


def test_an_endpoint_is_unwell_when_more_than_half_of_its_last_calls_failed() -> None:
    pace = Pace()
    pace.settle([end(Outcome.FAILED)] * 4, limits=FAST, now=T0)
    assert pace.words(T0) == ""  # too few to say
    pace.settle([end(Outcome.UNANSWERED)], limits=FAST, now=T0)
    assert "unwell since 08:00:00 UTC" in pace.words(T0)
    assert "boom" in pace.words(T0)
    assert pace.admit(calls(9), limits=FAST, in_flight=0, now=T0).pause == pace.words(T0)


def test_half_of_the_calls_failing_is_no_outage_and_429s_do_not_count() -> None:
    pace = Pace()
    for n in range(30):
        outcomes = (Outcome.REFUSED, Outcome.FAILED, Outcome.LIMITED, Outcome.LIMITED)
        pace.settle([end(outcome) for outcome in outcomes], limits=FAST, now=T0 + n)
    assert pace.admit([], limits=FAST, in_flight=0, now=T0).pause == ""


def test_one_probe_goes_at_growing_intervals_up_to_5_s() -> None:
    pace = unwell()
    sent = []
    for tick in range(400):
        now = T0 + tick / 10
        if probe(pace, at=now):
            sent.append(tick / 10)
            pace.settle([end(Outcome.FAILED, "probe")], limits=FAST, now=now)
    gaps = [later - earlier for earlier, later in pairwise(sent)]
    assert sent[0] == 1.0
    assert [round(gap, 3) for gap in gaps] == sorted(round(gap, 3) for gap in gaps)
    assert gaps[-1] == pytest.approx(5.0, abs=0.1)


def test_no_second_probe_goes_while_one_is_under_way_unless_its_worker_died() -> None:
    pace = unwell()
    assert probe(pace, at=T0 + 1) == 1
    assert probe(pace, at=T0 + 9) == 0
    assert probe(pace, at=T0 + 11) == 1


@pytest.mark.parametrize("outcome", [Outcome.ANSWERED, Outcome.REFUSED, Outcome.LIMITED])
def test_a_probe_that_is_answered_ends_the_pause_at_once(outcome: Outcome) -> None:
    pace = unwell()
    probe(pace, at=T0 + 1)
    pace.settle([end(Outcome.ANSWERED, "of before")], limits=FAST, now=T0 + 1)
    assert "unwell" in pace.words(T0 + 1)
    pace.settle([end(outcome, "probe")], limits=FAST, now=T0 + 2)
    assert "unwell" not in pace.words(T0 + 2)
    pace.settle([end(Outcome.FAILED)] * 4, limits=FAST, now=T0 + 2)
    assert "unwell" not in pace.words(T0 + 2)  # what was before is forgotten


def test_a_probe_that_was_given_back_unsent_says_nothing_and_the_next_call_goes_in_its_place() -> None:
    pace = unwell()
    probe(pace, at=T0 + 1)
    pace.settle([end(Outcome.UNSENT, "probe")], limits=FAST, now=T0 + 1.5)
    assert "unwell" in pace.words(T0 + 1.5)
    assert probe(pace, at=T0 + 1.5) == 1


def test_a_call_given_back_unsent_is_no_sign_of_health_and_gives_back_what_it_took() -> None:
    pace, limits = Pace(), replace(FAST, rpm=60)
    assert pace.admit(calls(2), limits=limits, in_flight=0, now=T0).count == 1
    pace.settle([end(Outcome.UNSENT, "0")], limits=limits, now=T0)
    assert pace.admit(calls(1), limits=limits, in_flight=0, now=T0).count == 1
    pace.settle([end(Outcome.UNSENT)] * 20 + [end(Outcome.FAILED)] * 5, limits=limits, now=T0)
    assert "unwell" in pace.words(T0)


# Laws

WINDOWS = st.builds(
    Window,
    limit=st.floats(0.001, 1e9),
    remaining=st.none() | st.just(0.0) | st.floats(0, 1e9),
    reset_s=st.none() | st.floats(0, 1e6),
)
TOLD = st.builds(
    Told,
    requests=st.none() | WINDOWS,
    tokens=st.none() | WINDOWS,
    output_tokens=st.none() | WINDOWS,
    retry_after_s=st.none() | st.floats(0, 1e9),
)
ENDS = st.builds(end, st.sampled_from(Outcome), st.sampled_from("abc")).flatmap(
    lambda done: TOLD.map(lambda told: replace(done, told=told))
)
STEPS = st.lists(st.tuples(st.floats(-5, 100), st.lists(ENDS, max_size=8), st.integers(0, 12), st.integers(0, 40)), max_size=25)
LIMITS = st.builds(
    EndpointConfig, rpm=st.sampled_from([0, 1, 60, 3000]), output_tpm=st.sampled_from([0, 90_000]), max_at_once=st.integers(1, 20)
)


@given(steps=STEPS, limits=LIMITS)
@settings(deadline=None)
def test_whatever_happens_the_pace_keeps_its_laws(steps: list[tuple[float, list[Done], int, int]], limits: EndpointConfig) -> None:
    pace, now = Pace(), T0
    for passed_s, done, wanted, in_flight in steps:
        now += passed_s
        pace.settle(done, limits=limits, now=now)
        admission = pace.admit(calls(wanted), limits=limits, in_flight=in_flight, now=now)
        assert 0 <= admission.count <= wanted
        assert admission.count == 0 or in_flight + admission.count <= pace.at_once(limits) <= limits.max_at_once
        assert SHORTEST_WAIT_S <= admission.wait_s <= LONGEST_WAIT_S
        assert all(level <= pace.rates(limits)[name] * BURST_S * 1.001 for name, level in pace.levels.items())
        assert Pace.from_dict(json.loads(json.dumps(pace.as_dict(), allow_nan=False))) == pace


@given(steps=STEPS, limits=LIMITS)
@settings(deadline=None)
def test_whatever_happened_calls_go_again_in_the_end(steps: list[tuple[float, list[Done], int, int]], limits: EndpointConfig) -> None:
    pace, now = Pace(), T0
    for passed_s, done, wanted, in_flight in steps:
        now += passed_s
        pace.settle(done, limits=limits, now=now)
        pace.admit(calls(wanted), limits=limits, in_flight=in_flight, now=now)
    in_a_day = now + 86_400 + max([0.0, *(-level / pace.rates(limits)[name] for name, level in pace.levels.items())])
    assert pace.admit(calls(1), limits=limits, in_flight=0, now=in_a_day).count == 1


def test_a_fresh_state_is_an_empty_one_and_unknown_keys_are_dropped() -> None:
    assert Pace.from_dict({}) == Pace()
    assert Pace.from_dict({"of_an_older_version": 1, "slots": {"number": 3.0, "colour": "red"}}).slots.number == 3.0
