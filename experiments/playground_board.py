"""The playground as pages show it: each question with its answers, how far each is, and what the gpu worker does first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.db.models import QuerySet
from django.utils import timezone

from experiments.board import unheard_for
from experiments.models import Answer, Checkpoint, Errand, Job, Question, Speaker
from experiments.states import LIVE, JobState, Queue

WAITING, SPEAKING = "waiting", "running"

SHORTEST_S = 0.05
"""A shorter time than this would be told as none."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """An answer and how far it is. state: waiting, running, or how it ended; words: what a person should know about that."""

    answer: Answer
    state: str
    words: str = ""
    from_store: bool = False

    @property
    def name(self) -> str:
        checkpoint = self.answer.checkpoint
        if self.answer.speaker == Speaker.EARLIER and checkpoint is not None:
            return f"Earlier: iteration {checkpoint.iteration.number}"
        return str(self.answer.get_speaker_display()).capitalize()

    @property
    def is_live(self) -> bool:
        return self.state in (WAITING, SPEAKING)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it to see."""
        return not self.answer.text.strip()

    @property
    def figures(self) -> str:
        """Its tokens, time and speed, as far as they are known and say something."""
        tokens, seconds, speed = self.answer.tokens, self.answer.seconds, self.tokens_per_s
        said = [f"{tokens:,} token{'' if tokens == 1 else 's'}"] if tokens else []
        if seconds and seconds >= SHORTEST_S:
            said += [f"{seconds:.1f} s"] + ([f"{speed:.1f} tokens/s"] if speed and tokens > 1 else [])
        return " \N{MIDDLE DOT} ".join(said)

    @property
    def tokens_per_s(self) -> float | None:
        return self.answer.tokens / self.answer.seconds if self.answer.tokens and self.answer.seconds else None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question with its answers. before: jobs and errands that the gpu worker does before it."""

    question: Question
    answers: Sequence[Said]
    jobs_before: Sequence[Job] = ()
    errands_before: int = 0

    @property
    def is_live(self) -> bool:
        return any(said.is_live for said in self.answers)

    @property
    def waits(self) -> bool:
        """Whether the checkpoint itself has not begun."""
        return any(said.answer.speaker == Speaker.CHECKPOINT and said.state == WAITING for said in self.answers)

    @property
    def speaks(self) -> bool:
        return any(said.state == SPEAKING for said in self.answers)


def questions_of(checkpoint: Checkpoint) -> QuerySet[Question]:
    """The questions to a checkpoint, newest first, with all that a page shows of them."""
    return with_answers(Question.objects.filter(checkpoint=checkpoint))


def with_answers(questions: QuerySet[Question]) -> QuerySet[Question]:
    return questions.select_related("asked_by").prefetch_related("answers__errand", "answers__checkpoint__iteration")


def earlier_than(checkpoint: Checkpoint) -> list[Checkpoint]:
    """The earlier checkpoints of the same run whose files are there, newest first."""
    same = Checkpoint.objects.filter(iteration__run=checkpoint.iteration.run_id, deleted_at__isnull=True)
    return list(same.filter(iteration__number__lt=checkpoint.iteration.number).select_related("iteration").order_by("-iteration__number"))


def read_asked(questions: Iterable[Question]) -> list[Asked]:
    """What a page shows of some questions."""
    asked = [Asked(question=question, answers=_said(question)) for question in questions]
    if not any(one.waits for one in asked):
        return asked
    jobs = list(_gpu_jobs())
    live = list(Errand.objects.filter(queue=Queue.GPU, state__in=sorted(LIVE)).order_by("pk").values_list("pk", flat=True))
    return [_with_what_is_before(one, jobs, live) if one.waits else one for one in asked]


def _gpu_jobs() -> QuerySet[Job]:
    live = Job.objects.filter(queue=Queue.GPU, state__in=sorted(LIVE)).select_related("stage__iteration__run")
    return live.order_by("-state", "pk")  # those that run come first


def _with_what_is_before(asked: Asked, jobs: Sequence[Job], errands: Sequence[int]) -> Asked:
    errand = next(said.answer.errand for said in asked.answers if said.answer.speaker == Speaker.CHECKPOINT)
    assert errand is not None
    before = [job for job in jobs if job.state == JobState.RUNNING or job.created_at < errand.created_at]
    return Asked(
        question=asked.question,
        answers=asked.answers,
        jobs_before=before,
        errands_before=sum(pk < errand.pk for pk in errands),
    )


def _said(question: Question) -> list[Said]:
    """The answers in their order; of those of one errand only the first that is not done speaks."""
    told, speaking = [], set[int]()
    for answer in question.answers.all():
        state, words = _how_far(answer, is_next=answer.errand_id not in speaking)
        if state == SPEAKING and answer.errand_id is not None:
            speaking.add(answer.errand_id)
        from_store = bool(answer.errand and answer.errand.result.get("from_store"))
        told.append(Said(answer=answer, state=state, words=words, from_store=from_store))
    return told


def _how_far(answer: Answer, *, is_next: bool) -> tuple[str, str]:
    errand = answer.errand
    if answer.finished:
        return JobState.FINISHED, ""
    if answer.failure:
        return JobState.FAILED, answer.failure
    if errand is None or errand.state == JobState.FINISHED:
        return JobState.FAILED, "Nothing came. Ask again."
    if errand.state == JobState.QUEUED:
        return WAITING, f"Waits for a {errand.queue} worker."
    if errand.state == JobState.RUNNING and not is_next:
        return WAITING, "Speaks when the one before is done."
    if errand.state == JobState.RUNNING:
        silent = unheard_for(errand, timezone.now())
        if silent:
            return SPEAKING, f"No sign of life from its worker for {silent.total_seconds():.0f} s."
        return SPEAKING, "" if answer.text else (errand.note.capitalize() or "Begins")
    return errand.state, errand.reason
