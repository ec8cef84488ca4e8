"""A run's book in Postgres: the trainer reads rows as its records and writes its records as rows, many at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Max, QuerySet
from django.utils import timezone

from experiments import models, querysets
from experiments.models import Iteration, Job, Role, Run
from experiments.services.buffer import Buffer
from experiments.services.calls import PostgresCalls
from experiments.services.durable import durably
from trainer.batching import Batcher
from trainer.benchmarks import task_scores
from trainer.config import RunConfig
from trainer.diversity import Diversity, Traits
from trainer.plan import Step
from trainer.records import (
    BenchmarkAnswer,
    Candidate,
    Fate,
    FirstBatch,
    Instruction,
    Judgement,
    Label,
    Metric,
    Origin,
    Preflight,
    Response,
    Saved,
    TuningNews,
    Verdict,
)
from trainer.roles import CheckpointInfo
from trainer.text import storable

KeptVerdict = tuple[int, Verdict, Sequence[Judgement]]
KeptCandidate = tuple[int, Candidate, Instruction | None]


class PostgresBook:
    """The book of one job. Asynchronous `keep_*` share one database thread; close the book to end it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.run: Run = job.stage.iteration.run
        self.config: RunConfig = self.run.run_config()
        self.items_done = 0
        self._kept_candidates: set[str] = set()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"book-{job.pk}")
        self.calls = PostgresCalls(self.config, job=job)
        self._keep_teacher_response: Batcher[Response, None] = Batcher(self._write_teacher_responses, executor=self._executor)
        self._keep_verdict: Batcher[KeptVerdict, None] = Batcher(self._write_verdicts, executor=self._executor)
        self._keep_candidate: Batcher[KeptCandidate, None] = Batcher(self._write_candidates, executor=self._executor)
        self._metrics: Buffer[models.Metric] = Buffer(self._write_metrics, executor=self._executor)

    def close(self) -> None:
        """Write what is still kept back, however the job ended, and end the database thread."""
        try:
            self._metrics.flush()
        finally:
            # `connection` is each thread's own: which one is meant is looked up in the thread itself.
            self._executor.submit(lambda: connection.close()).result()
            self._executor.shutdown()

    # Reading

    def train_pool(self, iteration: int) -> list[Instruction]:
        accumulate = self.config.loop.train_pool == "accumulate"
        return self._instructions(querysets.train_pool(self.run, iteration, accumulate=accumulate))

    def cache_pool(self, iteration: int) -> list[Instruction]:
        return self._instructions(querysets.cache_pool(self.run, iteration))

    def tau(self, iteration: int) -> float:
        return querysets.tau_of(self.run, iteration, default=self.config.loop.tau)

    def teacher_responses(self) -> dict[str, Response]:
        return self._responses(models.Response.objects.filter(instruction__run=self.run, role=Role.TEACHER))

    def student_responses(self, iteration: int) -> dict[str, Response]:
        return self._responses(models.Response.objects.filter(iteration=self._iteration(iteration), role=Role.STUDENT))

    def verdicts(self, iteration: int) -> dict[str, Verdict]:
        rows = models.Verdict.objects.filter(iteration=self._iteration(iteration)).select_related("instruction")
        return {row.instruction.key: _verdict(row) for row in rows}

    def candidates(self, iteration: int) -> list[Candidate]:
        rows = models.Candidate.objects.filter(iteration=self._iteration(iteration)).select_related("parent", "nearest")
        candidates = [_candidate(row) for row in rows]
        self._kept_candidates.update(candidate.key for candidate in candidates)
        return candidates

    def traits(self) -> dict[str, Traits]:
        rows = models.Traits.objects.filter(instruction__run=self.run)
        values = rows.values_list("instruction__key", "words", "language", "verb", "noun")
        return {key: Traits(words=words, language=language, verb=verb, noun=noun) for key, words, language, verb, noun in values}

    def answered_items(self, iteration: int, benchmark: str) -> frozenset[str]:
        rows = models.BenchmarkAnswer.objects.filter(iteration=self._iteration(iteration), benchmark=benchmark)
        return frozenset(rows.values_list("item", flat=True))

    def checkpoint(self, iteration: int) -> Path | None:
        row = models.Checkpoint.objects.filter(iteration__run=self.run, iteration__number=iteration).first()
        return settings.LIONWEB_DATA / row.path if row else None

    def checkpoint_folder(self, iteration: int) -> Path:
        return self.run_folder / "checkpoints"

    @property
    def run_folder(self) -> Path:
        """Where the run keeps its files, below the data folder; named by its id, never by what a person typed."""
        folder: Path = settings.LIONWEB_DATA / "runs" / str(self.run.pk)
        return folder

    # Writing, asynchronously

    async def keep_teacher_response(self, response: Response) -> None:
        await self._keep_teacher_response(response)
        self.items_done += 1

    async def keep_verdict(self, iteration: int, verdict: Verdict, judgements: Sequence[Judgement]) -> None:
        await self._keep_verdict((iteration, verdict, judgements))
        self.items_done += 1

    async def keep_candidate(self, iteration: int, candidate: Candidate, accepted: Instruction | None) -> None:
        if candidate.key in self._kept_candidates:
            return
        await self._keep_candidate((iteration, candidate, accepted))
        self._kept_candidates.add(candidate.key)
        self.items_done += accepted is not None

    def _write_teacher_responses(self, responses: Sequence[Response]) -> list[None]:
        ids = [self._ids[response.instruction] for response in responses]
        earlier = models.Response.objects.filter(instruction__in=ids, role=Role.TEACHER).exclude(failure="")
        rows = self._response_rows(self.job.stage.iteration, Role.TEACHER, responses)
        durably(lambda: self._insert(rows, instead_of=[earlier]))
        return [None] * len(responses)

    def _write_verdicts(self, kept: Sequence[KeptVerdict]) -> list[None]:
        verdicts = [self._verdict_row(number, verdict) for number, verdict, _ in kept]
        judgements = [self._judgement_row(number, judgement) for number, _, both in kept for judgement in both]
        made_in, ids = self.job.stage.iteration, [row.instruction_id for row in verdicts]
        quarantined = models.Verdict.objects.filter(iteration=made_in, instruction__in=ids, label=Label.QUARANTINED, left_out=False)
        unweighed = models.Judgement.objects.filter(
            iteration=made_in, instruction__in=models.Instruction.objects.filter(verdicts__in=quarantined)
        )
        durably(lambda: self._insert(judgements, verdicts, instead_of=[unweighed, quarantined]))
        return [None] * len(kept)

    def _write_candidates(self, kept: Sequence[KeptCandidate]) -> list[None]:
        for number, candidate, accepted in kept:
            made = [self._instruction_row(accepted, number)] if accepted else []
            durably(partial(self._insert, made, [self._candidate_row(number, candidate)]))
            if accepted:
                self._ids[accepted.key] = self.run.instructions.get(key=accepted.key).pk
        return [None] * len(kept)

    # Writing, from a synchronous step

    def keep_diversity(self, iteration: int, diversity: Diversity, traits: Mapping[str, Traits]) -> None:
        made_in = self._iteration(iteration)
        rows = [models.Traits(instruction_id=self._ids[key], **of_text.as_dict()) for key, of_text in traits.items()]
        durably(lambda: self._insert(rows))
        durably(lambda: models.Diversity.objects.update_or_create(iteration=made_in, defaults={"values": diversity.as_dict()}))

    def keep_student_responses(self, iteration: int, responses: Sequence[Response]) -> None:
        durably(lambda: self._insert(self._response_rows(self._iteration(iteration), Role.STUDENT, responses)))
        self.items_done += len(responses)

    def keep_news(self, iteration: int, news: TuningNews) -> None:
        """Write what an imitation tells; its metrics many at a time, at most a second late, and before anything else it tells."""
        if isinstance(news, Metric):
            self._metrics.add(models.Metric(iteration=self._iteration(iteration), job=self.job, **news.as_dict()))
            if self.job.step == Step.TUNING and iteration == self.job.stage.iteration.number:  # else it tunes a damaged one again
                self.items_done = news.step
            return
        self._metrics.flush()
        match news:
            case Preflight():
                self._keep_imitation(iteration, preflight=_storable(news.as_dict()))
            case FirstBatch():
                self._keep_imitation(iteration, first_batch=_storable(news.as_dict()))
            case Saved():
                self._keep_imitation(iteration, saved_step=news.step, steps=news.steps, saved_at=timezone.now())

    def _write_metrics(self, rows: Sequence[models.Metric]) -> None:
        durably(lambda: self._insert(rows))

    def _keep_imitation(self, iteration: int, **values: Any) -> None:
        made_in = self._iteration(iteration)
        durably(lambda: models.Imitation.objects.update_or_create(iteration=made_in, defaults=values))

    def keep_checkpoint(self, iteration: int, checkpoint: CheckpointInfo) -> None:
        manifest = checkpoint.path / "lionweb.json"
        made_in, told = self._iteration(iteration), json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
        values = {
            "path": str(checkpoint.path.relative_to(settings.LIONWEB_DATA)),
            "step": checkpoint.step,
            "first_loss": checkpoint.first_loss,
            "last_loss": checkpoint.last_loss,
            "size_bytes": sum(file.stat().st_size for file in checkpoint.path.rglob("*") if file.is_file()),
            "manifest": told,
            "parent": self._checkpoint_at(told.get("parent", "")),
            "created_at": timezone.now(),  # of the files: what a check found of those before is over
            "deleted_at": None,
        }
        earlier = models.Checkpoint.objects.filter(iteration=made_in).first()
        if earlier and earlier.manifest.get("files") != told.get("files"):
            values["stored_at"] = ""  # that copy is of other weights
        durably(lambda: models.Checkpoint.objects.update_or_create(iteration=made_in, defaults=values))

    @staticmethod
    def _checkpoint_at(folder: str) -> models.Checkpoint | None:
        """The checkpoint in a folder, of this run or, where a run begins with another one's, of that; None where it is none of ours."""
        if not folder or not Path(folder).is_relative_to(settings.LIONWEB_DATA):
            return None
        return models.Checkpoint.objects.filter(path=str(Path(folder).relative_to(settings.LIONWEB_DATA))).first()

    def keep_answers(self, iteration: int, benchmark: str, answers: Sequence[BenchmarkAnswer]) -> None:
        made_in = self._iteration(iteration)
        rows = [models.BenchmarkAnswer(iteration=made_in, benchmark=benchmark, **answer.as_dict()) for answer in answers]
        durably(lambda: self._insert(rows))
        self.items_done += len(answers)

    def keep_scores(self, iteration: int, benchmark: str) -> None:
        made_in = self._iteration(iteration)
        answers = [
            BenchmarkAnswer(item=row.item, task=row.task, prompt=row.prompt, gold=row.gold, reply=row.reply, correct=row.correct)
            for row in models.BenchmarkAnswer.objects.filter(iteration=made_in, benchmark=benchmark)
        ]
        rows = [
            models.BenchmarkScore(
                iteration=made_in, benchmark=benchmark, task=s.task, value=s.value, n=s.n, standard_error=s.standard_error
            )
            for s in task_scores(answers)
        ]
        durably(lambda: self._insert(rows))

    # Rows

    @staticmethod
    def _insert(*tables: Sequence[Any], instead_of: Sequence[QuerySet[Any]] = ()) -> None:
        """Add rows of one or more tables in one transaction; rows that are there already stay as they are.

        instead_of: failures of an earlier try, which give way to what is added.
        """
        with transaction.atomic():
            for earlier in instead_of:
                earlier.delete()
            for rows in tables:
                if rows:
                    type(rows[0]).objects.bulk_create(rows, ignore_conflicts=True)

    @cached_property
    def _ids(self) -> dict[str, int]:
        """Instruction key -> row id, of the whole run."""
        return dict(self.run.instructions.values_list("key", "pk"))

    @cached_property
    def _numbers(self) -> dict[int, Iteration]:
        return {iteration.number: iteration for iteration in self.run.iterations.all()}

    @cached_property
    def _next_position(self) -> list[int]:
        last = self.run.instructions.aggregate(last=Max("position"))["last"]
        return [0 if last is None else last + 1]

    def _iteration(self, number: int) -> Iteration:
        return self._numbers[number]

    def _instructions(self, rows: Iterable[models.Instruction]) -> list[Instruction]:
        records = [
            Instruction(
                key=row.key,
                text=row.text,
                input=row.input,
                origin=Origin(row.origin),
                iteration=row.iteration.number,
                parent=row.parent.key if row.parent else "",
                kind=row.kind,
            )
            for row in rows
        ]
        self._ids  # noqa: B018  read here, where the database may be asked, for the rows written later
        return records

    def _responses(self, rows: Any) -> dict[str, Response]:
        return {
            row.instruction.key: Response(
                instruction=row.instruction.key,
                text=row.text,
                failure=row.failure,
                tokens=row.tokens,
                completion=row.completion_id or "",
                cut=row.cut,
            )
            for row in rows.select_related("instruction")
        }

    def _response_rows(self, iteration: Iteration, role: str, responses: Sequence[Response]) -> list[models.Response]:
        return [
            models.Response(
                instruction_id=self._ids[r.instruction],
                iteration=iteration,
                role=role,
                text=r.text,
                failure=r.failure,
                tokens=r.tokens,
                cut=r.cut,
                completion_id=r.completion or None,
            )
            for r in responses
        ]

    def _verdict_row(self, number: int, verdict: Verdict) -> models.Verdict:
        values = verdict.as_dict()
        return models.Verdict(iteration=self._iteration(number), instruction_id=self._ids[values.pop("instruction")], **values)

    def _judgement_row(self, number: int, judgement: Judgement) -> models.Judgement:
        values = judgement.as_dict()
        completion = values.pop("completion") or None
        key = values.pop("instruction")
        return models.Judgement(iteration=self._iteration(number), instruction_id=self._ids[key], completion_id=completion, **values)

    def _candidate_row(self, number: int, candidate: Candidate) -> models.Candidate:
        return models.Candidate(
            iteration=self._iteration(number),
            key=candidate.key,
            origin=candidate.origin,
            attempt=candidate.attempt,
            parent_id=self._ids[candidate.parent],
            text=candidate.text,
            fate=candidate.fate,
            nearest_id=self._ids.get(candidate.nearest),
            similarity=candidate.similarity,
            overlap=candidate.overlap,
            prompt=candidate.prompt,
            completion_id=candidate.completion or None,
        )

    def _instruction_row(self, instruction: Instruction, number: int) -> models.Instruction:
        position = self._next_position[0]
        self._next_position[0] += 1
        return models.Instruction(
            run=self.run,
            iteration=self._iteration(number),
            key=instruction.key,
            position=position,
            text=instruction.text,
            input=instruction.input,
            origin=instruction.origin,
            parent_id=self._ids[instruction.parent],
            kind=instruction.kind,
        )


def _storable(value: Any) -> Any:
    """The texts in JSON-ready data as Postgres can hold them."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {key: _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list | tuple) else value


def _verdict(row: models.Verdict) -> Verdict:
    """As the referee gave it, but for the label: what people overruled it to is what comes of it."""
    return Verdict(
        instruction=row.instruction.key,
        label=Label(row.overruled_to or row.label),
        teacher_score=row.teacher_score,
        student_score=row.student_score,
        discrepancy=row.discrepancy,
        inconsistent=row.inconsistent,
        reason=row.reason,
        by_hand=row.by_hand,
        left_out=row.left_out,
        tries=row.tries,
    )


def _candidate(row: models.Candidate) -> Candidate:
    return Candidate(
        key=row.key,
        origin=Origin(row.origin),
        attempt=row.attempt,
        parent=row.parent.key,
        text=row.text,
        fate=Fate(row.fate),
        nearest=row.nearest.key if row.nearest else "",
        similarity=row.similarity,
        overlap=row.overlap,
        prompt=row.prompt,
        completion=row.completion_id or "",
    )
