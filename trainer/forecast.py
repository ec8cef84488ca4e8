"""What a run will ask of its endpoints: calls, tokens, dollars and time of each stage, from what is known and what is assumed.

    teacher     once for each instruction: the seeds, then what each iteration makes
    referee     twice for each instruction of the cache pool, in every iteration; once where both responses are the same text
    generator   once for each new instruction, and once more for each candidate that is rejected

Every figure that is not counted is an assumption, and each assumption is told as a sentence with its number. Of the offline teacher
more is known beforehand: it was measured. Nothing uses the judge yet, and the student's own time is no call: neither is forecast.

Time. A step under way goes on at the rate seen. Of one to come, the slowest holds: calls at once, by how long each takes; a limit of
requests or tokens a minute, as the endpoint's pace has found it, its headers tell or its settings say; what a worker manages itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from trainer.config import OFFLINE_URL, SCRATCH_MODEL, EndpointConfig, RoleConfig, RunConfig, endpoint_of
from trainer.pacing import HEADROOM, Pace
from trainer.plan import Planned, Stage, Step, plan
from trainer.prices import cost, likely_tokens
from trainer.prompts import generator_messages, referee_messages, teacher_messages
from trainer.records import Instruction

ROLE_OF = {Step.TEACHER_RESPONSES: "teacher", Step.JUDGEMENTS: "referee", Step.CANDIDATES: "generator"}
"""The steps that call an endpoint, and the role that does it."""
STEP_OF = {role: step for step, role in ROLE_OF.items()}

TEACHER_TOKENS = 300.0
REFEREE_TOKENS = 200.0
ACCEPTED_SHARE = 0.75
CALL_S = 5.0
"""What is assumed until something was seen: tokens of a response and of a judgement, the share of candidates that are accepted
(an attempt each), and how long a call takes."""

LEAST_SEEN = 20
"""So many calls say more than an assumption does."""

BATCH_CALLS = 20_000
"""A batch has no more calls than this, and no more of a step wait for answers at one time."""

MEASURED = "measured in the demo"
OFFLINE_TOKENS = {"teacher": (22.0, 1.0), "referee": (217.0, 26.3), "generator": (130.5, 2.0)}
"""Tokens (the offline teacher's: words) that a call of each role reads and writes. This and the next three are means over six runs of
`python -m trainer run demo`, seeds 1 and 11 to 15, which made 8,928 to 11,681 calls (24 November 2026)."""
OFFLINE_ACCEPTED_SHARE = 0.99
OFFLINE_SAME_SHARES = (0.71, 0.75, 0.91)
"""Of what is judged in the first iteration, the second, and from the third on: the share on which the student says the teacher's text."""
OFFLINE_STORED_SHARES = (0.0, 0.29, 0.62)
"""The same iterations' share of judgements that an earlier one had asked for, as the student said the same then."""
OFFLINE_CALL_S = 0.07
OFFLINE_PER_S = 170.0
"""How long one of its calls takes, and how many a second it and a worker manage together on two cores: the demo's 9,968 calls took 59
and 61 s on the web."""
MOST_PER_S = 300.0
"""Calls a second that a worker makes on two cores where nothing else holds it back (`make bench ONLY=calls`: 308)."""
DEMO_STUDENT_WORDS = "about 3 min in the demo as it is, on two cores"
"""Tuning 138 s, benchmarks 26, student responses 22 (docs/log.md)."""

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
    same: by iteration, the share of what was judged that needed one call, as both responses were the same text. left: items still to do
    in a step that has begun; per_s: how many of them it does a second, while it runs. over: steps that ask nothing more. made: new
    instructions by iteration. paces: by endpoint, of those that have been called. notes: sentences on where these come from.
    """

    seen: Mapping[str, Seen] = field(default_factory=dict)
    accepted: tuple[int, int] = (0, 0)
    stored: Mapping[Place, float] = field(default_factory=dict)
    same: Mapping[int, float] = field(default_factory=dict)
    left: Mapping[Place, int] = field(default_factory=dict)
    per_s: Mapping[Place, float] = field(default_factory=dict)
    over: frozenset[Place] = frozenset()
    made: Mapping[int, int] = field(default_factory=dict)
    paces: Mapping[str, Pace] = field(default_factory=dict)
    notes: Sequence[str] = ()


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
    habits = {role: _habit(role, config, seeds, known.seen) for role in ROLE_OF.values()}
    lines = []
    for planned in plan(config):
        asks = _asks(planned, config, seeds.size, known, habits)
        if asks:
            lines.append(_line(planned, config, asks, seeds.size, known, habits[ROLE_OF[planned.step]]))
    unpriced = sorted({line.endpoint for line in lines if not has_price(config.endpoints[line.endpoint])})
    return Forecast(
        lines=lines,
        unpriced=unpriced,
        assumptions=list(_assumptions(config, lines, unpriced, known, habits)),
        student=_student_words(config),
    )


def has_price(endpoint: EndpointConfig) -> bool:
    """Whether its dollars can be told: a price is set, or it is the offline teacher, which costs nothing."""
    return endpoint.base_url == OFFLINE_URL or bool(endpoint.price_input or endpoint.price_output)


def _is_offline(config: RunConfig, role: str) -> bool:
    return config.endpoints[endpoint_of(config, role)].base_url == OFFLINE_URL


# How many


def _asks(planned: Planned, config: RunConfig, seeds: int, known: Known, habits: Mapping[str, _Habit]) -> int:
    """How many asks a step still has to make; 0 for one that calls nobody, or is over."""
    place = planned.iteration, planned.step
    if planned.step not in ROLE_OF or place in known.over:
        return 0
    items = _items_left(planned, config, seeds, known)
    if planned.step is Step.CANDIDATES:
        return round(min(items / _accepted_share(config, known), config.loop.new_per_iteration * config.loop.attempts_per_new))
    each = 2 - _same_share(config, known, planned.iteration) if planned.step is Step.JUDGEMENTS else 1
    return round(items * each * habits[ROLE_OF[planned.step]].asks)


def _items_left(planned: Planned, config: RunConfig, seeds: int, known: Known) -> int:
    return known.left.get((planned.iteration, planned.step), _items(planned, config, seeds, known))


def _items(planned: Planned, config: RunConfig, seeds: int, known: Known) -> int:
    """The items of a whole step; an iteration whose generation is over made what it made."""

    def made(iteration: int) -> int:
        if iteration == 0:
            return seeds
        return known.made.get(iteration, 0) if (iteration, Step.CANDIDATES) in known.over else config.loop.new_per_iteration

    if planned.step is Step.JUDGEMENTS:
        return sum(made(iteration) for iteration in range(planned.iteration))
    return made(planned.iteration)


def _accepted_share(config: RunConfig, known: Known) -> float:
    candidates, kept = known.accepted
    if candidates >= LEAST_SEEN:
        return max(kept, 1) / candidates
    return OFFLINE_ACCEPTED_SHARE if _is_offline(config, "generator") else ACCEPTED_SHARE


def _same_share(config: RunConfig, known: Known, iteration: int) -> float:
    """Of what an iteration judges: the share that needs one call. Seen in the last iteration that was judged, measured, or none."""
    if known.same:
        return known.same[max(known.same)]
    return _of_iteration(OFFLINE_SAME_SHARES, iteration) if _is_offline(config, "teacher") else 0.0


def _stored_share(config: RunConfig, known: Known, planned: Planned) -> float:
    """Of a step's asks: the share that the store answers."""
    place = planned.iteration, planned.step
    if place in known.stored or planned.step is not Step.JUDGEMENTS or not _is_offline(config, "teacher"):
        return known.stored.get(place, 0.0)
    return _of_iteration(OFFLINE_STORED_SHARES, planned.iteration)


def _of_iteration(shares: Sequence[float], iteration: int) -> float:
    """shares: of iterations 1, 2 ...; the last one holds from then on."""
    return shares[min(iteration, len(shares)) - 1]


# What each costs


@dataclass(frozen=True, kw_only=True)
class _Habit:
    """What one call of a role is like on average; the sources say whether that was seen, measured or assumed."""

    input_tokens: float
    output_tokens: float
    cached_tokens: float
    latency_s: float
    asks: float
    source: str
    latency_source: str
    seen: bool


def _habit(role: str, config: RunConfig, seeds: Seeds, seen_roles: Mapping[str, Seen]) -> _Habit:
    latency_s, latency_source = _assumed_latency(role, config, seen_roles)
    seen = seen_roles.get(role)
    if seen is None or seen.calls < LEAST_SEEN:
        input_tokens, output_tokens, source = _assumed_tokens(role, config, seeds)
        return _Habit(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cached_tokens=0.0,
            latency_s=latency_s,
            asks=1.0,
            source=source,
            latency_source=latency_source,
            seen=False,
        )
    return _Habit(
        input_tokens=seen.input_tokens,
        output_tokens=seen.output_tokens,
        cached_tokens=min(seen.cached_tokens, seen.input_tokens),
        latency_s=latency_s if seen.latency_s is None else seen.latency_s,
        asks=max(1.0, seen.asks),
        source=f"seen in {seen.calls:,} calls {seen.where}",
        latency_source=latency_source if seen.latency_s is None else "seen",
        seen=True,
    )


def _assumed_latency(role: str, config: RunConfig, seen_roles: Mapping[str, Seen]) -> tuple[float, str]:
    """Seconds, and a source: as another role's calls to the same endpoint take, where these were seen."""
    if _is_offline(config, role):
        return OFFLINE_CALL_S, MEASURED
    for other, seen in seen_roles.items():
        if seen.calls >= LEAST_SEEN and seen.latency_s is not None and endpoint_of(config, other) == endpoint_of(config, role):
            return seen.latency_s, f"assumed, as those of the {other} take there"
    return CALL_S, "assumed"


def _assumed_tokens(role: str, config: RunConfig, seeds: Seeds) -> tuple[float, float, str]:
    """Input and output tokens of a call, and a source: the prompt around the texts, the texts, and a reply no longer than it may be."""
    most = _role(config, role).max_tokens
    if _is_offline(config, role):
        read, written = OFFLINE_TOKENS[role]
        return read, min(written, most), MEASURED
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
    source = "assumed, by the length of the seeds" if role == "generator" else "assumed; its input by the length of the seeds"
    return likely_tokens([m["content"] for m in messages]) + texts, min(reply, most), source


def _line(planned: Planned, config: RunConfig, asks: int, seeds: int, known: Known, habit: _Habit) -> Line:
    role, place = ROLE_OF[planned.step], (planned.iteration, planned.step)
    name = endpoint_of(config, role)
    endpoint, batch = config.endpoints[name], _role(config, role).batch
    saved = round(asks * _stored_share(config, known, planned))
    calls = asks - saved
    tokens_in, tokens_out = round(calls * habit.input_tokens), round(calls * habit.output_tokens)
    batches = _batches(planned, calls, _accepted_share(config, known)) if batch else 0
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
    return max(calls * latency_s / _at_once(endpoint, pace), calls / _most_per_s(endpoint), *flows)


def _at_once(endpoint: EndpointConfig, pace: Pace) -> int:
    """Calls at once. A refusal lowers what is tried at once and finds a rate: where the rate held calls back since, that is the limit."""
    return endpoint.max_at_once if pace.found.estimate and pace.held_by != "slots" else pace.slots.at_once(endpoint)


def _most_per_s(endpoint: EndpointConfig) -> float:
    return OFFLINE_PER_S if endpoint.base_url == OFFLINE_URL else MOST_PER_S


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
        yield from _role_sentences(role, habits[role], batches=sum(line.batches for line in lines if line.role == role))
    if "referee" in roles:
        yield from _judgement_sentences(config, lines, known)
    if "generator" in roles:
        yield _accepted_sentence(config, known)
    for line in lines:
        per_s = known.per_s.get((line.iteration, STEP_OF[line.role]))
        if per_s and line.seconds is not None:
            yield f"The {line.role} of iteration {line.iteration} goes on at the rate seen so far: {_number(60 * per_s)} a minute."
    for name in sorted({line.endpoint for line in lines if line.seconds is not None}):
        yield _limits_sentence(name, config.endpoints[name], known.paces.get(name, Pace()))
    for name in unpriced:
        yield f"No price is set on endpoint {name!r}, so what its calls cost is not known here."
    student = _student_words(config)
    yield f"The student's own time (tuning, its responses, benchmarks) is not in the forecast{f': {student}' if student else ''}."


def _student_words(config: RunConfig) -> str:
    return DEMO_STUDENT_WORDS if _is_offline(config, "teacher") and config.student.model == SCRATCH_MODEL else ""


def _role_sentences(role: str, habit: _Habit, *, batches: int) -> Iterator[str]:
    tokens = f"The {role} reads {habit.input_tokens:,.0f} tokens a call and answers in {habit.output_tokens:,.0f}"
    yield f"{tokens} on average: {habit.source}."
    if batches:
        apart = "each step and each round of candidates has" if role == "generator" else "each step has"
        least = f"{batches:,} batch{_s(batches, 'es')} at least"
        yield f"The {role}'s calls go by the Batch API: half the price, and up to 24 h a batch."
        yield f"The {role}'s are {least}: one takes {BATCH_CALLS:,} calls at most, and {apart} its own."
    else:
        yield f"A call of the {role} takes {_span(habit.latency_s)}: {habit.latency_source}."
    if role != "generator":  # which never asks again: it draws another parent
        yield (
            f"{100 * (habit.asks - 1):.1f} % of the {role}'s replies are asked for again: seen."
            if habit.seen
            else f"No reply of the {role} has to be asked for again: assumed."
        )


def _judgement_sentences(config: RunConfig, lines: Sequence[Line], known: Known) -> Iterator[str]:
    iterations = [line.iteration for line in lines if line.role == "referee"]
    same = [_same_share(config, known, iteration) for iteration in iterations]
    if known.same:
        source = f"{_shares(same)} of what is judged: seen in iteration {max(known.same)}"
    elif any(same):
        source = f"{_shares(same)} of what is judged: {MEASURED}"
    else:
        source = "none: assumed"
    yield (
        "Each instruction is judged in both orders, by two calls. Identical answers need one call: where the student says what the teacher "
        f"says, both orders are the same request. That is {source}."
    )
    unseen = [iteration for iteration in iterations if (iteration, Step.JUDGEMENTS) not in known.stored]
    stored = [_of_iteration(OFFLINE_STORED_SHARES, iteration) for iteration in unseen]
    if _is_offline(config, "teacher") and any(stored):
        yield f"{_shares(stored)} of an iteration's judgements were asked for in an earlier one and come from the store: {MEASURED}."


def _accepted_sentence(config: RunConfig, known: Known) -> str:
    candidates, _ = known.accepted
    assumed = MEASURED if _is_offline(config, "generator") else "assumed"
    source = f"seen in {candidates:,} of them" if candidates >= LEAST_SEEN else assumed
    return f"{100 * _accepted_share(config, known):.0f} % of the candidates become instructions: {source}."


LIMIT_WORDS = {"requests": "requests", "tokens": "tokens", "input_tokens": "input tokens", "output_tokens": "output tokens"}


def _limits_sentence(name: str, endpoint: EndpointConfig, pace: Pace) -> str:
    at_once = _at_once(endpoint, pace)
    found = " (found by trying)" if at_once < endpoint.max_at_once else ""
    rates = [
        f"{_number(60 * per_s)} {LIMIT_WORDS[what]} a minute ({_limit_source(what, endpoint, pace)})"
        for what, per_s in pace.rates(endpoint).items()
    ]
    limits = ", ".join([f"{at_once} call{_s(at_once)} at once{found}", *(rates or ["no other limit is known"])])
    most = f"{_number(_most_per_s(endpoint))} calls a second is the most that was measured on two cores"
    return f"Endpoint {name!r} takes {limits}; {most}. What is slowest sets the time."


def _limit_source(what: str, endpoint: EndpointConfig, pace: Pace) -> str:
    """Where the limit comes from that counts: the smallest of those that are known."""
    fixed = {"requests": endpoint.rpm, "input_tokens": endpoint.input_tpm, "output_tokens": endpoint.output_tpm}.get(what, 0)
    told = pace.told.get(what, 0.0)
    known = {
        "found by trying": 60 * pace.found.per_s if what == "requests" else 0.0,
        "left of a limit that its headers tell": pace.left.get(what, 0.0),
        f"{100 * HEADROOM:.0f} % of what is set": HEADROOM * fixed,
        f"{100 * HEADROOM:.0f} % of what its headers tell": HEADROOM * told,
    }
    return min((limit, source) for source, limit in known.items() if limit > 0)[1]


def _span(seconds: float) -> str:
    """A length of time with digits that say something: 4.0 s, 50 ms."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{_number(1000 * seconds)} ms"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _s(amount: int, plural: str = "s") -> str:
    return "" if amount == 1 else plural


def _shares(shares: Sequence[float]) -> str:
    """25 %, or 25 to 60 %."""
    low, high = f"{100 * min(shares):.0f}", f"{100 * max(shares):.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"
