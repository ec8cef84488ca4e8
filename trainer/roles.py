"""The roles of the loop as Protocols: real ones call an endpoint or a model, tests pass fakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainer.records import BenchmarkItem, Completion, Example, Instruction, Judgement, Order, Preflight, Response, TuningNews


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """A student's saved weights: where, after which step, with which first and last loss."""

    path: Path
    step: int
    first_loss: float
    last_loss: float


class Teacher(Protocol):
    async def respond(self, instruction: Instruction) -> Response:
        """Answer an instruction; a Response with a `failure` when no usable answer came after all asks.

        Raises TeacherUnavailable where the endpoint is down, ConfigError where it refuses us.
        """
        ...


class Referee(Protocol):
    async def judge(
        self,
        instruction: Instruction,
        *,
        teacher: Response,
        student: Response,
        order: Order,
        referee: str = "",
        sample: int = 0,
        again: int = 0,
    ) -> Judgement:
        """Score both responses, read in this order, or one of them alone; scores are 1..10 or None with a `failure`.

        referee: the endpoint to ask, of several; sample: which of several judgements of one kind; again: how often the case was judged
        before and quarantined: what was said then is read again, and asked for anew.
        """
        ...


class Generator(Protocol):
    @property
    def prompt(self) -> str:
        """The prompt it asks with, in its version, as "generator 1"."""
        ...

    async def create(self, parent: Instruction, *, easy: bool, sample: int) -> Completion | None:
        """A new instruction after the parent (rarer of the same domain when easy), or None when no answer came."""
        ...


class Student(Protocol):
    """An open model that can be tuned and asked. Synchronous: it is the one that keeps a device busy."""

    def check(self) -> Preflight:
        """Whether it can be tuned here at all, without loading its weights. Raises ConfigError, OutOfMemory or NoSpace where not."""
        ...

    def imitate(
        self, examples: Sequence[Example], *, iteration: int, tell: Callable[[TuningNews], None], use_saved: bool = False
    ) -> CheckpointInfo:
        """Tune on the examples and save a checkpoint. use_saved: make the last save of a stopped tuning the checkpoint instead.

        Raises OutOfMemory, NoSpace, LossDiverged, DataWorkerDied, Cancelled.
        """
        ...

    def respond(self, instructions: Sequence[Instruction], *, done: frozenset[str], keep: Callable[[list[Response]], None]) -> None:
        """Answer each instruction not in `done`, in an order of the whole list, so that a resume gives the same texts."""
        ...

    def answer(
        self, items: Sequence[BenchmarkItem], *, done: frozenset[str], keep: Callable[[list[tuple[BenchmarkItem, str]]], None]
    ) -> None:
        """Answer each benchmark item not in `done` greedily."""
        ...
