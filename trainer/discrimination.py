"""Discrimination: the referee scores both responses in both orders, and the discrepancy decides what is hard."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from trainer.batching import for_each
from trainer.records import Instruction, Judgement, Label, Order, Response, Verdict
from trainer.roles import Referee


@dataclass(frozen=True)
class Case:
    """What is put before the referee."""

    instruction: Instruction
    teacher: Response | None
    student: Response | None


def weigh(instruction: str, judgements: Sequence[Judgement], *, tau: float) -> Verdict:
    """The verdict of the two judgements of an instruction.

    Each side's score is the mean over both orders; d = teacher - student; hard when d >= tau (METHOD 1). A judgement without
    scores quarantines the instruction: no number is ever made up for it.
    """
    scored = [(j.teacher_score, j.student_score) for j in judgements if j.teacher_score is not None and j.student_score is not None]
    if len(scored) < len(judgements) or not scored:
        failures = "; ".join(f"{j.order}: {j.failure}" for j in judgements if j.failure)
        return Verdict(instruction=instruction, label=Label.QUARANTINED, reason=failures or "There is no judgement.")
    teacher = sum(t for t, _ in scored) / len(scored)
    student = sum(s for _, s in scored) / len(scored)
    discrepancy = teacher - student
    return Verdict(
        instruction=instruction,
        label=Label.HARD if discrepancy >= tau else Label.EASY,
        teacher_score=teacher,
        student_score=student,
        discrepancy=discrepancy,
        inconsistent=len({t - s >= tau for t, s in scored}) > 1,
    )


async def judge_all(
    cases: Sequence[Case],
    *,
    referee: Referee,
    tau: float,
    keep: Callable[[Verdict, Sequence[Judgement]], Awaitable[None]],
    at_once: int,
) -> None:
    """Judge every case in both orders and keep its verdict with its judgements; a case that lacks a response is quarantined."""

    async def judge(case: Case) -> None:
        if case.teacher is None or case.student is None or case.teacher.failure or case.student.failure:
            await keep(Verdict(instruction=case.instruction.key, label=Label.QUARANTINED, reason=_missing(case)), ())
            return
        both = await asyncio.gather(
            *(referee.judge(case.instruction, teacher=case.teacher, student=case.student, order=order) for order in Order)
        )
        await keep(weigh(case.instruction.key, both, tau=tau), both)

    await for_each(cases, judge, at_once=at_once)


def _missing(case: Case) -> str:
    sides = {"teacher": case.teacher, "student": case.student}
    return "; ".join(
        f"The {side} gave no response{': ' + response.failure if response else '.'}"
        for side, response in sides.items()
        if response is None or response.failure
    )
