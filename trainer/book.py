"""The book a run is written in: what a step reads from it, and how each result gets into it.

Two books exist: a folder of JSONL files (`trainer.folder`) and Postgres (`experiments.services.book`). Every step asks the book which
items are not done, does those and writes each as it comes, so that going on after a crash is nothing special.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from trainer.calls import Calls
from trainer.diversity import Diversity, Traits
from trainer.records import BenchmarkAnswer, Candidate, Instruction, Judgement, Response, TuningNews, Verdict
from trainer.roles import CheckpointInfo


class Book(Protocol):
    """Reads happen before a step's asynchronous work begins; `keep_*` makes records durable and may be called twice with the same ones."""

    @property
    def calls(self) -> Calls: ...

    def train_pool(self, iteration: int) -> list[Instruction]:
        """What the student is tuned on in this iteration, in order."""
        ...

    def cache_pool(self, iteration: int) -> list[Instruction]:
        """What the student is judged on in this iteration (1..K): everything made before it, in order."""
        ...

    def tau(self, iteration: int) -> float:
        """The threshold of an iteration: the config's, unless a person has set another from some iteration on."""
        ...

    def teacher_responses(self) -> Mapping[str, Response]: ...

    def student_responses(self, iteration: int) -> Mapping[str, Response]: ...

    def verdicts(self, iteration: int) -> Mapping[str, Verdict]: ...

    def candidates(self, iteration: int) -> Sequence[Candidate]: ...

    def traits(self) -> Mapping[str, Traits]:
        """What kind of text each instruction is, of those it was found out for."""
        ...

    def answered_items(self, iteration: int, benchmark: str) -> frozenset[str]: ...

    def checkpoint(self, iteration: int) -> Path | None:
        """The finished checkpoint of an iteration's imitation, or None."""
        ...

    def checkpoint_folder(self, iteration: int) -> Path:
        """Where the checkpoint of this iteration is to be made."""
        ...

    async def keep_teacher_response(self, response: Response) -> None: ...

    async def keep_verdict(self, iteration: int, verdict: Verdict, judgements: Sequence[Judgement]) -> None: ...

    async def keep_candidate(self, iteration: int, candidate: Candidate, accepted: Instruction | None) -> None: ...

    def keep_diversity(self, iteration: int, diversity: Diversity, traits: Mapping[str, Traits]) -> None:
        """How varied an iteration's new instructions are (0: the seeds), and the traits of instructions that had none."""
        ...

    def keep_student_responses(self, iteration: int, responses: Sequence[Response]) -> None: ...

    def keep_news(self, iteration: int, news: TuningNews) -> None: ...

    def keep_checkpoint(self, iteration: int, checkpoint: CheckpointInfo) -> None: ...

    def keep_answers(self, iteration: int, benchmark: str, answers: Sequence[BenchmarkAnswer]) -> None: ...

    def keep_scores(self, iteration: int, benchmark: str) -> None:
        """All items are answered: write the scores of the benchmark down."""
        ...
