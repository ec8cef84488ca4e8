"""The playground: a question and its answers as rows, and the calls of a teacher that is asked outside of any job.

The checkpoint, an earlier one and the base answer in one errand, on the gpu queue; the teacher in one of its own.
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.db import transaction

from experiments.models import Answer, Checkpoint, Errand, ErrandKind, LedgerLine, Question, Response, Role, Speaker
from experiments.services import errands
from experiments.services.calls import PostgresCalls
from experiments.services.durable import durable
from experiments.services.purses import purses_of
from experiments.states import LIVE, Queue
from trainer.budget import take_from_all
from trainer.calls import Call
from trainer.config import RunConfig
from trainer.text import storable

LEASE_BESIDE_TIMEOUT_S = 60.0
"""A call outside of any job is lost, and may be made again, so long after the endpoint's own time-out."""


@transaction.atomic
def ask(
    checkpoint: Checkpoint,
    *,
    by: User,
    text: str,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    earlier: Checkpoint | None = None,
    base: bool = False,
    teacher: bool = False,
) -> Question:
    """Put a question to a checkpoint and to whoever else is to answer it."""
    question = Question.objects.create(
        checkpoint=checkpoint, asked_by=by, text=storable(text), temperature=temperature, max_new_tokens=max_new_tokens, seed=seed
    )
    errand = errands.ask(ErrandKind.ANSWER, checkpoint, by=by, queue=Queue.GPU, question=question.pk)
    _add(question, Speaker.CHECKPOINT, errand=errand, checkpoint=checkpoint)
    if earlier is not None:
        _add(question, Speaker.EARLIER, errand=errand, checkpoint=earlier)
    if base:
        _add(question, Speaker.BASE, errand=errand)
    if teacher:
        _ask_teacher(question, by=by)
    return question


def _ask_teacher(question: Question, *, by: User) -> None:
    """What the teacher said to the same text in the run is its answer; only a text that is new to it is asked."""
    known = response_of_run(question)
    if known is None:
        errand = errands.ask(ErrandKind.ANSWER, question.checkpoint, by=by, queue=Queue.TEACHER, question=question.pk)
        _add(question, Speaker.TEACHER, errand=errand)
        return
    _add(
        question,
        Speaker.TEACHER,
        text=known.text,
        tokens=known.tokens,
        finished=True,
        completion=known.completion,
        instruction=known.instruction,
    )


def response_of_run(question: Question) -> Response | None:
    """The teacher's response in the question's run to exactly this text, if there is one."""
    same = Response.objects.filter(instruction__text=question.text, instruction__input="", role=Role.TEACHER, failure="")
    return same.filter(instruction__run=question.checkpoint.iteration.run_id).select_related("instruction", "completion").first()


def _add(question: Question, speaker: str, **values: Any) -> None:
    Answer.objects.create(question=question, speaker=speaker, **values)


def stop(question: Question) -> None:
    """Withdraw the question, or stop whoever still answers it. What was said so far stays."""
    for errand in Errand.objects.filter(answers__question=question, state__in=sorted(LIVE)).distinct():
        errands.stop(errand)


def keep_growing(answer: Answer, text: str, *, tokens: int, seconds: float) -> None:
    """What a speaker has said so far."""
    Answer.objects.filter(pk=answer.pk, finished=False).update(text=storable(text), tokens=tokens, seconds=seconds)


def keep_said(answer: Answer, text: str, **values: Any) -> None:
    """The whole of what a speaker said."""
    Answer.objects.filter(pk=answer.pk).update(text=storable(text), finished=True, **values)


def keep_failure(answer: Answer, failure: str) -> None:
    """Why a speaker said nothing, or nothing more."""
    Answer.objects.filter(pk=answer.pk).update(failure=storable(failure))


class PlaygroundCalls(PostgresCalls):
    """Calls for a question: paid by the budgets of the checkpoint's run and counted in its ledger, on a line without a stage."""

    def __init__(self, config: RunConfig, question: Question) -> None:
        timeout_s = config.endpoints[config.teacher.endpoint].timeout_s
        super().__init__(config, lease_s=timeout_s + LEASE_BESIDE_TIMEOUT_S)
        self._iteration = question.checkpoint.iteration

    def _line(self, role: str, endpoint: str) -> int:
        if (role, endpoint) not in self._lines:
            line, _ = LedgerLine.objects.get_or_create(
                run=self._iteration.run, iteration=self._iteration, stage="", role=role, endpoint=endpoint
            )
            self._lines[role, endpoint] = line.pk
        return self._lines[role, endpoint]

    def _affordable(self, endpoint: str, calls: Any) -> tuple[list[Call], str]:
        purses = purses_of(endpoint, run_id=self._iteration.run_id) if calls else []
        for place, call in enumerate(calls):
            if not take_from_all(purses, call):
                return list(calls[:place]), next((text for purse in purses if (text := purse.refusal(call))), "")
        return list(calls), ""

    @durable
    def has_answered(self, endpoint: str) -> bool:
        return LedgerLine.objects.filter(run=self._iteration.run, endpoint=endpoint, calls__gt=0).exists()
