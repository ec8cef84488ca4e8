"""A run's book as a folder of JSONL files, for the command line.

    config.json completions.jsonl attempts.jsonl summary.json checkpoints/
    iteration-0/  train_pool teacher_responses metrics answers-<benchmark> (.jsonl), scores.json, checkpoint.json
    iteration-1/  cache_pool student_responses judgements verdicts candidates traits (.jsonl), diversity.json, and the same as above

Records are appended and flushed to the disk as they come. A line that was cut off by a crash is the last of its file and is dropped.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from trainer import pools
from trainer.batching import Batcher
from trainer.benchmarks import TaskScore, task_scores
from trainer.config import RunConfig
from trainer.diversity import Diversity, Traits, diversity_from_dict
from trainer.errors import ConfigError
from trainer.folder_calls import FolderCalls
from trainer.jsonl import drop_unfinished_line, read_jsonl, write_json, write_jsonl
from trainer.records import (
    BenchmarkAnswer,
    Candidate,
    Fate,
    FirstBatch,
    Instruction,
    Judgement,
    Label,
    Metric,
    Order,
    Origin,
    Preflight,
    Record,
    Response,
    Saved,
    TuningNews,
    Verdict,
)
from trainer.roles import CheckpointInfo

AnyRecord = TypeVar("AnyRecord", bound=Record)

ENUMS: dict[str, type[Origin] | type[Label] | type[Order] | type[Fate]] = {"origin": Origin, "label": Label, "order": Order, "fate": Fate}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder for the block. Raises ConfigError where one is at work there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"Another process is at work in {folder}. Wait for it, end it, or give --out another folder.") from None
        yield


class FolderBook:
    """The book of a run in a folder. Raises ConfigError where the folder holds a run of another config."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        seeds: Sequence[Instruction],
        *,
        most_calls: int | None = None,
        most_nanodollars: int | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        folder.mkdir(parents=True, exist_ok=True)
        self._keep_config()
        for path in folder.rglob("*.jsonl"):
            drop_unfinished_line(path)
        self.calls = FolderCalls(folder / "completions.jsonl", config.endpoints, most_calls=most_calls, most_nanodollars=most_nanodollars)
        self._instructions = list(seeds)
        self._writer = ThreadPoolExecutor(1)
        self._rows: Batcher[tuple[Path, Record], None] = Batcher(self._append, executor=self._writer)
        for iteration in range(1, config.loop.iterations + 1):
            self._instructions += self._records(Instruction, iteration, "new_instructions")
        self._made_in = {i.key: i.iteration for i in self._instructions}
        self._kept_candidates: set[str] = {c.key for k in range(1, config.loop.iterations + 1) for c in self.candidates(k)}
        self.write_pool(0, "train_pool", self.train_pool(0))

    def _keep_config(self) -> None:
        path = self.folder / "config.json"
        ours = json.loads(json.dumps(self.config.as_dict()))
        if path.exists() and json.loads(path.read_text(encoding="utf-8")) != ours:
            raise ConfigError(
                f"{self.folder} holds a run of another config. Give --out another folder, or go on with the config in {path}."
            )
        write_json(path, ours)

    def close(self) -> None:
        """Wait until everything is on the disk."""
        self._writer.shutdown()

    def write_pool(self, iteration: int, name: str, pool: Iterable[Instruction]) -> None:
        """Leave a pool as a file, for whoever reads the folder."""
        write_jsonl(self._path(iteration, name), (i.as_dict() for i in pool))

    # Reading

    def train_pool(self, iteration: int) -> list[Instruction]:
        return pools.train_pool(self._instructions, iteration, config=self.config.loop)

    def cache_pool(self, iteration: int) -> list[Instruction]:
        return pools.cache_pool(self._instructions, iteration)

    def tau(self, iteration: int) -> float:
        return self.config.loop.tau

    def teacher_responses(self) -> dict[str, Response]:
        iterations = range(self.config.loop.iterations + 1)
        return {r.instruction: r for k in iterations for r in self._records(Response, k, "teacher_responses")}

    def student_responses(self, iteration: int) -> dict[str, Response]:
        return {r.instruction: r for r in self._records(Response, iteration, "student_responses")}

    def judgements(self, iteration: int) -> list[Judgement]:
        """The last of each instruction's judgements of one kind: what was quarantined may have been judged again."""
        told = self._records(Judgement, iteration, "judgements")
        return list({(j.instruction, j.order, j.referee, j.sample): j for j in told}.values())

    def verdicts(self, iteration: int) -> dict[str, Verdict]:
        return {v.instruction: v for v in self._records(Verdict, iteration, "verdicts")}

    def candidates(self, iteration: int) -> list[Candidate]:
        return self._records(Candidate, iteration, "candidates")

    def traits(self) -> dict[str, Traits]:
        lines = (line for k in range(self.config.loop.iterations + 1) for line in read_jsonl(self._path(k, "traits")))
        return {line.pop("instruction"): Traits(**line) for line in lines}

    def diversity(self, iteration: int) -> Diversity | None:
        path = self._folder(iteration) / "diversity.json"
        return diversity_from_dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def metrics(self, iteration: int) -> list[Metric]:
        return self._records(Metric, iteration, "metrics")

    def answered_items(self, iteration: int, benchmark: str) -> frozenset[str]:
        return frozenset(a.item for a in self._answers(iteration, benchmark))

    def checkpoint(self, iteration: int) -> Path | None:
        record = self.checkpoint_record(iteration)
        return self.folder / record["path"] if record else None

    def checkpoint_record(self, iteration: int) -> dict[str, Any] | None:
        """Path below the folder, step, first and last loss of an iteration's checkpoint, or None."""
        path = self._folder(iteration) / "checkpoint.json"
        record: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return record

    def checkpoint_folder(self, iteration: int) -> Path:
        return self.folder / "checkpoints"

    def scores(self, iteration: int) -> dict[str, list[TaskScore]]:
        path = self._folder(iteration) / "scores.json"
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {name: [TaskScore(**score) for score in scores] for name, scores in stored.items()}

    # Writing

    async def keep_teacher_response(self, response: Response) -> None:
        await self._rows((self._path(self._made_in[response.instruction], "teacher_responses"), response))

    async def keep_verdict(self, iteration: int, verdict: Verdict, judgements: Sequence[Judgement]) -> None:
        # The verdict last: where it is there, so are its judgements.
        rows = [*((self._path(iteration, "judgements"), j) for j in judgements), (self._path(iteration, "verdicts"), verdict)]
        await asyncio.gather(*(self._rows(row) for row in rows))

    async def keep_candidate(self, iteration: int, candidate: Candidate, accepted: Instruction | None) -> None:
        if accepted and accepted.key not in self._made_in:
            self._instructions.append(accepted)
            self._made_in[accepted.key] = iteration
            await self._rows((self._path(iteration, "new_instructions"), accepted))
        if candidate.key not in self._kept_candidates:
            self._kept_candidates.add(candidate.key)
            await self._rows((self._path(iteration, "candidates"), candidate))

    def keep_diversity(self, iteration: int, diversity: Diversity, traits: Mapping[str, Traits]) -> None:
        told = ({"instruction": key, **of_text.as_dict()} for key, of_text in traits.items())
        write_jsonl(self._path(iteration, "traits"), told, append=True)
        write_json(self._folder(iteration) / "diversity.json", diversity.as_dict())

    def keep_student_responses(self, iteration: int, responses: Sequence[Response]) -> None:
        write_jsonl(self._path(iteration, "student_responses"), (r.as_dict() for r in responses), append=True)

    def keep_news(self, iteration: int, news: TuningNews) -> None:
        match news:
            case Metric():
                write_jsonl(self._path(iteration, "metrics"), [news.as_dict()], append=True)
            case Preflight():
                write_json(self._folder(iteration) / "preflight.json", news.as_dict())
            case FirstBatch():
                write_json(self._folder(iteration) / "first_batch.json", news.as_dict())
            case Saved():
                pass  # the save itself lies below the folder of checkpoints

    def keep_checkpoint(self, iteration: int, checkpoint: CheckpointInfo) -> None:
        record = {**asdict(checkpoint), "path": str(checkpoint.path.relative_to(self.folder))}
        write_json(self._folder(iteration) / "checkpoint.json", record)

    def keep_answers(self, iteration: int, benchmark: str, answers: Sequence[BenchmarkAnswer]) -> None:
        write_jsonl(self._path(iteration, f"answers-{benchmark}"), (a.as_dict() for a in answers), append=True)

    def keep_scores(self, iteration: int, benchmark: str) -> None:
        scores = {**self.scores(iteration), benchmark: task_scores(self._answers(iteration, benchmark))}
        data = {name: [asdict(score) for score in of_tasks] for name, of_tasks in scores.items()}
        write_json(self._folder(iteration) / "scores.json", data)

    # Files

    def _path(self, iteration: int, name: str) -> Path:
        return self._folder(iteration) / f"{name}.jsonl"

    def _folder(self, iteration: int) -> Path:
        return self.folder / f"iteration-{iteration}"

    def _records(self, kind: type[AnyRecord], iteration: int, name: str) -> list[AnyRecord]:
        return [
            kind(**{k: ENUMS[k](v) if k in ENUMS else v for k, v in record.items()}) for record in read_jsonl(self._path(iteration, name))
        ]

    def _answers(self, iteration: int, benchmark: str) -> list[BenchmarkAnswer]:
        return self._records(BenchmarkAnswer, iteration, f"answers-{benchmark}")

    def _append(self, rows: Sequence[tuple[Path, Record]]) -> list[None]:
        by_path: dict[Path, list[dict[str, Any]]] = {}
        for path, record in rows:
            by_path.setdefault(path, []).append(record.as_dict())
        for path, records in by_path.items():
            write_jsonl(path, records, append=True)
        return [None] * len(rows)
