"""Discrimination: the referee scores both responses, and the discrepancy decides what is hard.

The paper's way is one referee that reads both responses in both orders, once. Single order, pointwise scoring, several samples and a
panel are settings beside it; every way ends in the same weighing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from trainer.batching import for_each
from trainer.config import DiscriminationConfig, RunConfig, referees_of
from trainer.records import Instruction, Judgement, Label, Order, Response, Verdict
from trainer.roles import Referee

ORDERS = {
    "both": (Order.TEACHER_FIRST, Order.STUDENT_FIRST),
    "teacher_first": (Order.TEACHER_FIRST,),
    "student_first": (Order.STUDENT_FIRST,),
}
ALONE = (Order.TEACHER_ALONE, Order.STUDENT_ALONE)


@dataclass(frozen=True)
class Case:
    """What is put before the referee. tries: how often it was before, and quarantined."""

    instruction: Instruction
    teacher: Response | None
    student: Response | None
    tries: int = 0


@dataclass(frozen=True)
class Ask:
    """One judgement of a case: in which order, by which endpoint, and which of several of one kind."""

    order: Order
    referee: str = ""
    sample: int = 0


def asks_of(config: RunConfig) -> list[Ask]:
    """The judgements each case gets."""
    orders, samples = orders_of(config.discrimination), range(config.discrimination.samples)
    return [Ask(order, referee, sample) for referee in referees_of(config) for order in orders for sample in samples]


def orders_of(config: DiscriminationConfig) -> tuple[Order, ...]:
    """What each referee reads."""
    return ALONE if config.scoring == "pointwise" else ORDERS[config.orders]


def weigh(instruction: str, judgements: Sequence[Judgement], *, tau: float, weights: Mapping[str, float] | None = None) -> Verdict:
    """The verdict of the judgements of an instruction, whatever their order.

    Each side's score is the mean over a referee's judgements, then the weighted mean over the referees (by endpoint; 1 where none is
    given); d = teacher - student; hard when d >= tau (METHOD 1). A judgement without scores quarantines the instruction: no number is
    ever made up for it.
    """
    if not judgements or any(judgement.failure for judgement in judgements):
        failures = "; ".join(f"{_named(j)}: {j.failure}" for j in judgements if j.failure)
        return Verdict(instruction=instruction, label=Label.QUARANTINED, reason=failures or "There is no judgement.")
    teacher, student = _weighted(judgements, weights or {})
    discrepancy = teacher - student
    return Verdict(
        instruction=instruction,
        label=Label.HARD if discrepancy >= tau else Label.EASY,
        teacher_score=teacher,
        student_score=student,
        discrepancy=discrepancy,
        inconsistent=_disagree(judgements, weights or {}, tau=tau),
    )


def _named(judgement: Judgement) -> str:
    return f"{judgement.order} by {judgement.referee}" if judgement.referee else judgement.order


def _weighted(judgements: Sequence[Judgement], weights: Mapping[str, float]) -> tuple[float, float]:
    """The teacher's and the student's score. Sums are exact (`fsum`), so that the order of the judgements changes nothing."""
    referees = sorted({judgement.referee for judgement in judgements})
    shares = [weights.get(referee, 1.0) for referee in referees]
    means = [_means([judgement for judgement in judgements if judgement.referee == referee]) for referee in referees]
    teacher, student = (math.fsum(w * mean[side] for w, mean in zip(shares, means, strict=True)) / math.fsum(shares) for side in (0, 1))
    return teacher, student


def _means(judgements: Sequence[Judgement]) -> tuple[float, float]:
    teacher = [j.teacher_score for j in judgements if j.teacher_score is not None]
    student = [j.student_score for j in judgements if j.student_score is not None]
    return math.fsum(teacher) / len(teacher), math.fsum(student) / len(student)


def _disagree(judgements: Sequence[Judgement], weights: Mapping[str, float], *, tau: float) -> bool:
    """Whether the two orders lie on different sides of tau."""
    sides = set()
    for order in ORDERS["both"]:
        if one_order := [judgement for judgement in judgements if judgement.order is order]:
            teacher, student = _weighted(one_order, weights)
            sides.add(teacher - student >= tau)
    return len(sides) > 1


async def judge_all(
    cases: Sequence[Case],
    *,
    referee: Referee,
    asks: Sequence[Ask],
    weights: Mapping[str, float],
    tau: float,
    keep: Callable[[Verdict, Sequence[Judgement]], Awaitable[None]],
    at_once: int,
) -> None:
    """Get every case its judgements and keep its verdict with them; a case that lacks a response is quarantined."""

    async def judge(case: Case) -> None:
        if case.teacher is None or case.student is None or case.teacher.failure or case.student.failure:
            await keep(Verdict(instruction=case.instruction.key, label=Label.QUARANTINED, reason=_missing(case)), ())
            return
        judgements = await asyncio.gather(*(_judge(case.instruction, case.teacher, case.student, ask, case.tries) for ask in asks))
        verdict = weigh(case.instruction.key, judgements, tau=tau, weights=weights)
        await keep(replace(verdict, tries=case.tries + 1), judgements)

    async def _judge(instruction: Instruction, teacher: Response, student: Response, ask: Ask, tries: int) -> Judgement:
        return await referee.judge(
            instruction, teacher=teacher, student=student, order=ask.order, referee=ask.referee, sample=ask.sample, again=tries
        )

    await for_each(cases, judge, at_once=at_once)


def _missing(case: Case) -> str:
    sides = {"teacher": case.teacher, "student": case.student}
    return "; ".join(
        f"The {side} gave no response{': ' + response.failure if response else '.'}"
        for side, response in sides.items()
        if response is None or response.failure
    )
