"""What a forecast rests on: what was seen of a run, and what is assumed or was measured until then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer.config import OFFLINE_URL, SCRATCH_MODEL, EndpointConfig, RoleConfig, RunConfig, endpoint_of
from trainer.pacing import Pace
from trainer.plan import Planned, Step
from trainer.prices import likely_tokens
from trainer.prompts import generator_messages, referee_messages, teacher_messages
from trainer.records import Instruction

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
MEASURED_STEPS = (300, 150)
"""Steps of the first and of each later imitation in those runs: a student that was tuned for less says the teacher's text far more rarely
(0.4 % of what was judged where the first imitation had 60 steps)."""
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


def is_offline(config: RunConfig, role: str) -> bool:
    return config.endpoints[endpoint_of(config, role)].base_url == OFFLINE_URL


def is_as_measured(config: RunConfig) -> bool:
    """Whether what the demo's student said tells something of this run's: the same teacher and student, and no less tuning."""
    first, later = MEASURED_STEPS
    same_student = is_offline(config, "teacher") and config.student.model == SCRATCH_MODEL
    return same_student and config.imitation.first_steps >= first and config.imitation.steps >= later


def settings_of(config: RunConfig, role: str) -> RoleConfig:
    settings: RoleConfig = getattr(config, role)
    return settings


# Shares


def accepted_share(config: RunConfig, known: Known) -> float:
    candidates, kept = known.accepted
    if candidates >= LEAST_SEEN:
        return max(kept, 1) / candidates
    return OFFLINE_ACCEPTED_SHARE if is_offline(config, "generator") else ACCEPTED_SHARE


def same_share(config: RunConfig, known: Known, iteration: int) -> float:
    """Of what an iteration judges: the share that needs one call. Seen in the last iteration that was judged, measured, or none."""
    if known.same:
        return known.same[max(known.same)]
    return of_iteration(OFFLINE_SAME_SHARES, iteration) if is_as_measured(config) else 0.0


def stored_share(config: RunConfig, known: Known, planned: Planned) -> float:
    """Of a step's asks: the share that the store answers."""
    place = planned.iteration, planned.step
    if place in known.stored or planned.step is not Step.JUDGEMENTS or not is_as_measured(config):
        return known.stored.get(place, 0.0)
    return of_iteration(OFFLINE_STORED_SHARES, planned.iteration)


def of_iteration(shares: Sequence[float], iteration: int) -> float:
    """shares: of iterations 1, 2 ...; the last one holds from then on."""
    return shares[min(iteration, len(shares)) - 1]


# What a call is like


@dataclass(frozen=True, kw_only=True)
class Habit:
    """What one call of a role is like on average; the sources say whether that was seen, measured or assumed."""

    input_tokens: float
    output_tokens: float
    cached_tokens: float
    latency_s: float
    asks: float
    source: str
    latency_source: str
    seen: bool


def habit_of(role: str, config: RunConfig, seeds: Seeds, seen_roles: Mapping[str, Seen]) -> Habit:
    latency_s, latency_source = _assumed_latency(role, config, seen_roles)
    seen = seen_roles.get(role)
    if seen is None or seen.calls < LEAST_SEEN:
        input_tokens, output_tokens, source = _assumed_tokens(role, config, seeds)
        return Habit(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cached_tokens=0.0,
            latency_s=latency_s,
            asks=1.0,
            source=source,
            latency_source=latency_source,
            seen=False,
        )
    return Habit(
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
    if is_offline(config, role):
        return OFFLINE_CALL_S, MEASURED
    for other, seen in seen_roles.items():
        if seen.calls >= LEAST_SEEN and seen.latency_s is not None and endpoint_of(config, other) == endpoint_of(config, role):
            return seen.latency_s, f"assumed, as those of the {other} take there"
    return CALL_S, "assumed"


def _assumed_tokens(role: str, config: RunConfig, seeds: Seeds) -> tuple[float, float, str]:
    """Input and output tokens of a call, and a source: the prompt around the texts, the texts, and a reply no longer than it may be."""
    most = settings_of(config, role).max_tokens
    if is_offline(config, role):
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


# What holds calls back


def calls_at_once(endpoint: EndpointConfig, pace: Pace) -> int:
    """Calls at once. A refusal lowers what is tried at once and finds a rate: where the rate held calls back since, that is the limit."""
    return endpoint.max_at_once if pace.found.estimate and pace.held_by != "slots" else pace.slots.at_once(endpoint)


def most_per_s(endpoint: EndpointConfig) -> float:
    return OFFLINE_PER_S if endpoint.base_url == OFFLINE_URL else MOST_PER_S
