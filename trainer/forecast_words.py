"""What a forecast rests on, in sentences with their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from trainer.config import SCRATCH_MODEL, EndpointConfig, RunConfig
from trainer.forecast_basis import (
    BATCH_CALLS,
    DEMO_STUDENT_WORDS,
    LEAST_SEEN,
    MEASURED,
    OFFLINE_STORED_SHARES,
    Habit,
    Known,
    accepted_share,
    calls_at_once,
    is_as_measured,
    is_offline,
    most_per_s,
    of_iteration,
    same_share,
)
from trainer.pacing import HEADROOM, Pace
from trainer.plan import ROLE_OF, STEP_OF, Step

if TYPE_CHECKING:
    from trainer.forecast import Line


def assumptions(
    config: RunConfig, lines: Sequence[Line], unpriced: Sequence[str], known: Known, habits: Mapping[str, Habit]
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
    student = student_words(config)
    yield f"The student's own time (tuning, its responses, benchmarks) is not in the forecast{f': {student}' if student else ''}."


def student_words(config: RunConfig) -> str:
    return DEMO_STUDENT_WORDS if is_offline(config, "teacher") and config.student.model == SCRATCH_MODEL else ""


def _role_sentences(role: str, habit: Habit, *, batches: int) -> Iterator[str]:
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
    same = [same_share(config, known, iteration) for iteration in iterations]
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
    stored = [of_iteration(OFFLINE_STORED_SHARES, iteration) for iteration in unseen]
    if is_as_measured(config) and any(stored):
        yield f"{_shares(stored)} of an iteration's judgements were asked for in an earlier one and come from the store: {MEASURED}."


def _accepted_sentence(config: RunConfig, known: Known) -> str:
    candidates, _ = known.accepted
    assumed = MEASURED if is_offline(config, "generator") else "assumed"
    source = f"seen in {candidates:,} of them" if candidates >= LEAST_SEEN else assumed
    return f"{100 * accepted_share(config, known):.0f} % of the candidates become instructions: {source}."


LIMIT_WORDS = {"requests": "requests", "tokens": "tokens", "input_tokens": "input tokens", "output_tokens": "output tokens"}


def _limits_sentence(name: str, endpoint: EndpointConfig, pace: Pace) -> str:
    at_once = calls_at_once(endpoint, pace)
    found = " (found by trying)" if at_once < endpoint.max_at_once else ""
    rates = [
        f"{_number(60 * per_s)} {LIMIT_WORDS[what]} a minute ({_limit_source(what, endpoint, pace)})"
        for what, per_s in pace.rates(endpoint).items()
    ]
    limits = ", ".join([f"{at_once} call{_s(at_once)} at once{found}", *(rates or ["no other limit is known"])])
    most = f"{_number(most_per_s(endpoint))} calls a second is the most that was measured on two cores"
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
