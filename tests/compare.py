"""The same records from both books, so that a run in the database can be held against one in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.models import Candidate, Instruction, Judgement, Response, Run, Verdict
from trainer.config import RunConfig
from trainer.folder import FolderBook
from trainer.records import Instruction as InstructionRecord


def of_folder(folder: Path, config: RunConfig, seeds: Sequence[InstructionRecord]) -> dict[str, Any]:
    """Pools, responses, judgements, verdicts and candidates of a run in a folder."""
    book = FolderBook(folder, config, seeds)
    iterations = range(config.loop.iterations + 1)
    everything = book.cache_pool(config.loop.iterations + 1)
    return {
        "instructions": [(i.key, i.text, str(i.origin), i.iteration, i.parent or None, i.kind) for i in everything],
        "teacher": sorted((r.instruction, r.text, r.failure) for r in book.teacher_responses().values()),
        "student": sorted((k, r.instruction, r.text) for k in iterations for r in book.student_responses(k).values()),
        "judgements": sorted(
            (k, j.instruction, str(j.order), _score(j.teacher_score), _score(j.student_score))
            for k in iterations
            for j in book.judgements(k)
        ),
        "verdicts": sorted((k, v.instruction, str(v.label), _score(v.discrepancy)) for k in iterations for v in book.verdicts(k).values()),
        "candidates": sorted((k, c.key, c.parent, c.text, str(c.fate)) for k in iterations for c in book.candidates(k)),
    }


def of_database(run: Run) -> dict[str, Any]:
    """The same of a run in the database."""
    instructions = Instruction.objects.filter(run=run).order_by("position")
    responses = Response.objects.filter(instruction__run=run)
    return {
        "instructions": list(instructions.values_list("key", "text", "origin", "iteration__number", "parent__key", "kind").iterator()),
        "teacher": sorted(responses.filter(role="teacher").values_list("instruction__key", "text", "failure")),
        "student": sorted(responses.filter(role="student").values_list("iteration__number", "instruction__key", "text")),
        "judgements": sorted(
            (k, key, order, _score(teacher), _score(student))
            for k, key, order, teacher, student in Judgement.objects.filter(instruction__run=run).values_list(
                "iteration__number", "instruction__key", "order", "teacher_score", "student_score"
            )
        ),
        "verdicts": sorted(
            (k, key, label, _score(d))
            for k, key, label, d in Verdict.objects.filter(instruction__run=run).values_list(
                "iteration__number", "instruction__key", "label", "discrepancy"
            )
        ),
        "candidates": sorted(
            Candidate.objects.filter(iteration__run=run).values_list("iteration__number", "key", "parent__key", "text", "fate")
        ),
    }


def _score(score: float | None) -> str:
    return "none" if score is None else f"{score:.9f}"
