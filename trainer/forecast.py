"""What a run will ask of its endpoints: calls, tokens, dollars and time of each stage, from what is known and what is assumed.

    teacher     once for each instruction: the seeds, then what each iteration makes
    referee     twice for each instruction of the cache pool, in every iteration
    generator   once for each new instruction, and once more for each candidate that is rejected

Every figure that is not counted is an assumption, and each assumption is told as a sentence with its number. Nothing uses the judge
yet, and the student's own time is no call: neither is forecast.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from trainer.config import OFFLINE_URL, EndpointConfig, RoleConfig, RunConfig, endpoint_of
from trainer.plan import Planned, Stage, Step, plan
from trainer.prices import cost, likely_tokens
from trainer.prompts import generator_messages, referee_messages, teacher_messages
from trainer.records import Instruction

ROLE_OF = {Step.TEACHER_RESPONSES: "teacher", Step.JUDGEMENTS: "referee", Step.CANDIDATES: "generator"}
"""The steps that call an endpoint, and the role that does it."""

TEACHER_TOKENS = 300.0
REFEREE_TOKENS = 200.0
ACCEPTED_SHARE = 0.75
CALL_S = 5.0
"""What is assumed until something was seen: tokens of a response and of a judgement, the share of candidates that are accepted
(an attempt each), and how long a call takes."""

LEAST_SEEN = 20
"""So many calls say more than an assumption does."""

BATCH_WORDS = "up to 24 h a batch"
STUDENT_WORDS = "The student's own time (tuning, its responses, benchmarks) is not in the forecast."

Place = tuple[int, Step]
"""A step of an iteration."""


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """The seed pool in numbers. tokens: of one instruction with its input, on average."""

    size: int
    tokens: float


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A role's calls so far, on average; where they were seen completes "seen in 412 calls ..."."""

    calls: int
    input_tokens: float
    output_tokens: float
    cached_tokens: float = 0.0
    latency_s: float | None = None
    asks: float = 1.0
    where: str = "of this run"


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a run beside its config; nothing at all is a fair start.

    seen: by role. accepted: of so many candidates, so many became instructions. stored: the share of asks that the store answers.
    left: items still to do in a step that has begun. over: steps that ask nothing more. made: new instructions by iteration.
    notes: sentences on where these come from.
    """

    seen: Mapping[str, Seen] = field(default_factory=dict)
    accepted: tuple[int, int] = (0, 0)
    stored: Mapping[Place, float] = field(default_factory=dict)
    left: Mapping[Place, int] = field(default_factory=dict)
    over: frozenset[Place] = frozenset()
    made: Mapping[int, int] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Line:
    """One role in one stage of one iteration. calls: those to pay for; saved: those the store answers.

    seconds: None where the calls go by the Batch API, which only promises a day.
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


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """All lines, and what they rest on. unpriced: endpoints whose calls count for nothing in the dollars, as no price is set."""

    lines: Sequence[Line]
    assumptions: Sequence[str]
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


def forecast(config: RunConfig, seeds: Seeds, known: Known | None = None) -> Forecast:
    """The calls of a run that are still to be made."""
    known = known or Known()
    habits = {role: _habit(role, config, seeds, known.seen.get(role)) for role in ROLE_OF.values()}
    lines = []
    for planned in plan(config):
        asks = _asks(planned, config, seeds.size, known, habits)
        if asks:
            lines.append(_line(planned, config, asks, known, habits[ROLE_OF[planned.step]]))
    unpriced = sorted({line.endpoint for line in lines if not has_price(config.endpoints[line.endpoint])})
    return Forecast(lines=lines, unpriced=unpriced, assumptions=list(_assumptions(config, lines, unpriced, known, habits)))


def has_price(endpoint: EndpointConfig) -> bool:
    """Whether its dollars can be told: a price is set, or it is the offline teacher, which costs nothing."""
    return endpoint.base_url == OFFLINE_URL or bool(endpoint.price_input or endpoint.price_output)


# How many


def _asks(planned: Planned, config: RunConfig, seeds: int, known: Known, habits: Mapping[str, _Habit]) -> int:
    """How many asks a step still has to make; 0 for one that calls nobody, or is over."""
    place = planned.iteration, planned.step
    if planned.step not in ROLE_OF or place in known.over:
        return 0
    items = known.left.get(place, _items(planned, config, seeds, known))
    if planned.step is Step.CANDIDATES:
        return round(min(items / _accepted_share(known.accepted), config.loop.new_per_iteration * config.loop.attempts_per_new))
    each = 2 if planned.step is Step.JUDGEMENTS else 1
    return round(items * each * habits[ROLE_OF[planned.step]].asks)


def _items(planned: Planned, config: RunConfig, seeds: int, known: Known) -> int:
    """The items of a whole step; an iteration whose generation is over made what it made."""

    def made(iteration: int) -> int:
        if iteration == 0:
            return seeds
        return known.made.get(iteration, 0) if (iteration, Step.CANDIDATES) in known.over else config.loop.new_per_iteration

    if planned.step is Step.JUDGEMENTS:
        return sum(made(iteration) for iteration in range(planned.iteration))
    return made(planned.iteration)


def _accepted_share(accepted: tuple[int, int]) -> float:
    candidates, kept = accepted
    return max(kept, 1) / candidates if candidates >= LEAST_SEEN else ACCEPTED_SHARE


# What each costs


@dataclass(frozen=True, kw_only=True)
class _Habit:
    """What one call of a role is like on average, seen or assumed."""

    input_tokens: float
    output_tokens: float
    cached_tokens: float
    latency_s: float
    asks: float
    seen: Seen | None


def _habit(role: str, config: RunConfig, seeds: Seeds, seen: Seen | None) -> _Habit:
    if seen is None or seen.calls < LEAST_SEEN:
        tokens_in, tokens_out = _assumed_tokens(role, config, seeds)
        return _Habit(input_tokens=tokens_in, output_tokens=tokens_out, cached_tokens=0.0, latency_s=CALL_S, asks=1.0, seen=None)
    return _Habit(
        input_tokens=seen.input_tokens,
        output_tokens=seen.output_tokens,
        cached_tokens=min(seen.cached_tokens, seen.input_tokens),
        latency_s=CALL_S if seen.latency_s is None else seen.latency_s,
        asks=max(1.0, seen.asks),
        seen=seen,
    )


def _assumed_tokens(role: str, config: RunConfig, seeds: Seeds) -> tuple[float, float]:
    """Input and output tokens of a call: the prompt around the texts, the texts, and a reply no longer than it may be."""
    empty = Instruction(key="", text="")
    response = min(TEACHER_TOKENS, config.teacher.max_tokens)
    messages, texts, reply = {
        "teacher": (teacher_messages(empty), seeds.tokens, response),
        "referee": (
            referee_messages(empty, "", ""),
            seeds.tokens + response + min(TEACHER_TOKENS, config.respond.max_new_tokens),
            REFEREE_TOKENS,
        ),
        "generator": (generator_messages(empty, easy=False), seeds.tokens, seeds.tokens),
    }[role]
    return likely_tokens([m["content"] for m in messages]) + texts, min(reply, _role(config, role).max_tokens)


def _line(planned: Planned, config: RunConfig, asks: int, known: Known, habit: _Habit) -> Line:
    role = ROLE_OF[planned.step]
    name = endpoint_of(config, role)
    endpoint, batch = config.endpoints[name], _role(config, role).batch
    saved = round(asks * known.stored.get((planned.iteration, planned.step), 0.0))
    calls = asks - saved
    tokens_in, tokens_out = round(calls * habit.input_tokens), round(calls * habit.output_tokens)
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
        seconds=None if batch else _seconds(endpoint, calls, tokens_in, tokens_out, habit.latency_s),
    )


def _seconds(endpoint: EndpointConfig, calls: int, tokens_in: int, tokens_out: int, latency_s: float) -> float:
    """The slowest of what holds a stage back: calls at once, requests a minute, tokens a minute (0: no such limit is known)."""
    limits = ((calls, endpoint.rpm), (tokens_in, endpoint.input_tpm), (tokens_out, endpoint.output_tpm))
    return max(calls * latency_s / endpoint.max_at_once, *(60 * amount / a_minute for amount, a_minute in limits if a_minute), 0.0)


def _role(config: RunConfig, role: str) -> RoleConfig:
    settings: RoleConfig = getattr(config, role)
    return settings


# What it rests on


def _assumptions(
    config: RunConfig, lines: Sequence[Line], unpriced: Sequence[str], known: Known, habits: Mapping[str, _Habit]
) -> Iterator[str]:
    roles = [role for role in ROLE_OF.values() if any(line.role == role for line in lines)]
    yield from known.notes
    for role in roles:
        yield from _role_sentences(role, habits[role], batch=_role(config, role).batch)
    if "generator" in roles:
        yield _accepted_sentence(known.accepted)
    for name in sorted({line.endpoint for line in lines}):
        yield _limits_sentence(name, config.endpoints[name])
    for name in unpriced:
        yield f"No price is set on endpoint {name!r}, so what its calls cost is not known here."
    yield STUDENT_WORDS


def _role_sentences(role: str, habit: _Habit, *, batch: bool) -> Iterator[str]:
    tokens = f"The {role} reads {habit.input_tokens:,.0f} tokens a call and answers in {habit.output_tokens:,.0f}"
    if habit.seen:
        source = f"seen in {habit.seen.calls:,} calls {habit.seen.where}"
    else:
        source = "assumed, by the length of the seeds" if role == "generator" else "assumed; its input by the length of the seeds"
    yield f"{tokens} on average: {source}."
    if batch:
        yield f"The {role}'s calls go by the Batch API: half the price, and {BATCH_WORDS}."
    else:
        timed = habit.seen is not None and habit.seen.latency_s is not None
        yield f"A call of the {role} takes {habit.latency_s:.1f} s: {'seen' if timed else 'assumed'}."
    if role != "generator":  # which never asks again: it draws another parent
        yield (
            f"{100 * (habit.asks - 1):.1f} % of the {role}'s replies are asked for again: seen."
            if habit.seen
            else f"No reply of the {role} has to be asked for again: assumed."
        )


def _accepted_sentence(accepted: tuple[int, int]) -> str:
    candidates, _ = accepted
    source = f"seen in {candidates:,} of them" if candidates >= LEAST_SEEN else "assumed"
    return f"{100 * _accepted_share(accepted):.0f} % of the candidates become instructions: {source}."


def _limits_sentence(name: str, endpoint: EndpointConfig) -> str:
    limits = {"requests": endpoint.rpm, "input tokens": endpoint.input_tpm, "output tokens": endpoint.output_tpm}
    told = [f"{amount:,} {what} a minute" for what, amount in limits.items() if amount]
    return f"Endpoint {name!r} takes {', '.join([f'{endpoint.max_at_once} calls at once', *told])}; what is slowest sets the time."
