"""What a run will ask of its endpoints: calls, tokens, dollars and time of each stage, from what is known and what is assumed.

    teacher     once for each instruction: the seeds, then what each iteration makes
    referee     twice for each instruction of the cache pool, in every iteration; once where both responses are the same text, or with
                one order; so often for each sample and each referee of a panel
    generator   once for each new instruction, and once more for each candidate that is rejected

Every figure that is not counted is an assumption, and each assumption is told as a sentence with its number. Of the offline teacher
more is known beforehand: it was measured. Nothing uses the judge yet, and the student's own time is no call: neither is forecast.

Time. A step under way goes on at the rate seen. Of one to come, the slowest holds: calls at once, by how long each takes; a limit of
requests or tokens a minute, as the endpoint's pace has found it, its headers tell or its settings say; what a worker manages itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.config import OFFLINE_URL, EndpointConfig, RunConfig, endpoint_of, referees_of
from trainer.discrimination import orders_of
from trainer.forecast_basis import (
    BATCH_CALLS,
    Habit,
    Known,
    Seeds,
    accepted_share,
    calls_at_once,
    habit_of,
    most_per_s,
    same_share,
    settings_of,
    stored_share,
)
from trainer.forecast_words import assumptions, student_words
from trainer.pacing import Pace
from trainer.plan import ROLE_OF, Planned, Stage, Step, plan
from trainer.prices import cost


@dataclass(frozen=True, kw_only=True)
class Line:
    """One role in one stage of one iteration. calls: those to pay for; saved: those the store answers.

    seconds: None where the calls go by the Batch API, which only promises a day for each of its `batches`.
    """

    iteration: int
    stage: Stage
    role: str
    endpoint: str
    calls: int
    saved: int
    input_tokens: int
    output_tokens: int
    nanodollars: int
    seconds: float | None
    batches: int = 0


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """All lines, and what they rest on. unpriced: endpoints whose calls count for nothing in the dollars, as no price is set.

    student: in words, the time that is known of the student, which no line has; else "".
    """

    lines: Sequence[Line]
    assumptions: Sequence[str]
    student: str = ""
    unpriced: Sequence[str] = ()

    @property
    def calls(self) -> int:
        return sum(line.calls for line in self.lines)

    @property
    def saved(self) -> int:
        return sum(line.saved for line in self.lines)

    @property
    def input_tokens(self) -> int:
        return sum(line.input_tokens for line in self.lines)

    @property
    def output_tokens(self) -> int:
        return sum(line.output_tokens for line in self.lines)

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @property
    def nanodollars(self) -> int:
        return sum(line.nanodollars for line in self.lines)

    @property
    def priced(self) -> bool:
        """Whether the dollars mean anything: some line's endpoint has a price, or none needs one."""
        return not self.lines or any(line.endpoint not in self.unpriced for line in self.lines)

    @property
    def seconds(self) -> float:
        """Of the calls that are made one by one; the stages follow each other."""
        return sum(line.seconds or 0.0 for line in self.lines)

    @property
    def batched(self) -> bool:
        """Whether some calls go by the Batch API, so that `seconds` is not all."""
        return any(line.seconds is None for line in self.lines)

    @property
    def batches(self) -> int:
        return sum(line.batches for line in self.lines)


def forecast(config: RunConfig, seeds: Seeds, known: Known | None = None) -> Forecast:
    """The calls of a run that are still to be made."""
    known = known or Known()
    habits = {role: habit_of(role, config, seeds, known.seen) for role in ROLE_OF.values()}
    lines = []
    for planned in plan(config):
        asks = _asks(planned, config, seeds.size, known, habits)
        if asks:
            for endpoint in _endpoints(planned, config):
                lines.append(_line(planned, endpoint, config, asks, seeds.size, known, habits[ROLE_OF[planned.step]]))
    unpriced = sorted({line.endpoint for line in lines if not has_price(config.endpoints[line.endpoint])})
    return Forecast(
        lines=lines,
        unpriced=unpriced,
        assumptions=list(assumptions(config, lines, unpriced, known, habits)),
        student=student_words(config),
    )


def has_price(endpoint: EndpointConfig) -> bool:
    """Whether its dollars can be told: a price is set, or it is the offline teacher, which costs nothing."""
    return endpoint.base_url == OFFLINE_URL or bool(endpoint.price_input or endpoint.price_output)


def _endpoints(planned: Planned, config: RunConfig) -> list[str]:
    """Who is asked in a step; each of a panel's referees as often as the others."""
    role = ROLE_OF[planned.step]
    return list(referees_of(config)) if role == "referee" else [endpoint_of(config, role)]


# How many


def _asks(planned: Planned, config: RunConfig, seeds: int, known: Known, habits: Mapping[str, Habit]) -> int:
    """How many asks a step still has to make, of each of its endpoints; 0 for one that calls nobody, or is over."""
    place = planned.iteration, planned.step
    if planned.step not in ROLE_OF or place in known.over:
        return 0
    items = _items_left(planned, config, seeds, known)
    if planned.step is Step.CANDIDATES:
        return round(min(items / accepted_share(config, known), config.loop.new_per_iteration * config.loop.attempts_per_new))
    each = _judgements_each(planned, config, known) if planned.step is Step.JUDGEMENTS else 1
    return round(items * each * habits[ROLE_OF[planned.step]].asks)


def _judgements_each(planned: Planned, config: RunConfig, known: Known) -> float:
    """The calls that an instruction takes of one referee: the same request twice is one."""
    settings = config.discrimination
    orders = len(orders_of(settings))
    return settings.samples * (orders - same_share(config, known, planned.iteration) if orders > 1 else 1)


def _items_left(planned: Planned, config: RunConfig, seeds: int, known: Known) -> int:
    return known.left.get((planned.iteration, planned.step), _items(planned, config, seeds, known))


def _items(planned: Planned, config: RunConfig, seeds: int, known: Known) -> int:
    """The items of a whole step; an iteration whose generation is over made what it made."""

    def made(iteration: int) -> int:
        if iteration == 0:
            return seeds
        return known.made.get(iteration, 0) if (iteration, Step.CANDIDATES) in known.over else config.loop.new_per_iteration

    if planned.step is Step.JUDGEMENTS:
        pool = sum(made(iteration) for iteration in range(planned.iteration))
        return min(pool, config.discrimination.sample or pool)
    return made(planned.iteration)


# What each costs


def _line(planned: Planned, name: str, config: RunConfig, asks: int, seeds: int, known: Known, habit: Habit) -> Line:
    role, place = ROLE_OF[planned.step], (planned.iteration, planned.step)
    endpoint, batch = config.endpoints[name], settings_of(config, role).batch
    saved = round(asks * stored_share(config, known, planned))
    calls = asks - saved
    tokens_in, tokens_out = round(calls * habit.input_tokens), round(calls * habit.output_tokens)
    batches = _batches(planned, calls, accepted_share(config, known)) if batch else 0
    if place in known.per_s:
        seconds = _items_left(planned, config, seeds, known) / known.per_s[place]
    else:
        seconds = _seconds(endpoint, known.paces.get(name, Pace()), calls, tokens_in, tokens_out, habit.latency_s)
    return Line(
        iteration=planned.iteration,
        stage=planned.stage,
        role=role,
        endpoint=name,
        calls=calls,
        saved=saved,
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        nanodollars=cost(
            endpoint,
            prompt_tokens=tokens_in,
            cached_tokens=round(calls * habit.cached_tokens),
            completion_tokens=tokens_out,
            batch=batch,
        ),
        seconds=None if batches else seconds,
        batches=batches,
    )


def _seconds(endpoint: EndpointConfig, pace: Pace, calls: int, tokens_in: int, tokens_out: int, latency_s: float) -> float:
    """The slowest of what holds a stage back: calls at once, ourselves, and what flows a second by the limits that are known."""
    amounts = {"requests": calls, "tokens": tokens_in + tokens_out, "input_tokens": tokens_in, "output_tokens": tokens_out}
    flows = (amounts[what] / per_s for what, per_s in pace.rates(endpoint).items())
    return max(calls * latency_s / calls_at_once(endpoint, pace), calls / most_per_s(endpoint), *flows)


def _batches(planned: Planned, calls: int, accepted_share: float) -> int:
    """The fewest a step needs: the generator's rejected candidates are asked for again in a batch of their own, until few are missing."""
    if planned.step is not Step.CANDIDATES or accepted_share >= 1:
        return math.ceil(calls / BATCH_CALLS)
    batches, missing, asked = 0, calls * accepted_share, 0.0
    while missing >= 1 and asked < calls:
        batches += math.ceil(missing / BATCH_CALLS)
        asked += missing
        missing *= 1 - accepted_share
    return max(batches, min(calls, 1))
