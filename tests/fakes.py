"""Roles that need no model: what each would say is computed from the instruction, so that a test knows the truth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from trainer.contamination import HeldOut
from trainer.records import BenchmarkItem, Completion, Example, Instruction, Judgement, Metric, Order, Preflight, Response, TuningNews
from trainer.roles import CheckpointInfo


def completion(text: str, *, key: str = "0" * 64, finish_reason: str = "stop") -> Completion:
    return Completion(
        key=key,
        endpoint="fake",
        model="fake",
        request={},
        text=text,
        finish_reason=finish_reason,
        prompt_tokens=1,
        completion_tokens=len(text.split()),
        latency_s=0.0,
    )


class FakeTeacher:
    """Answers in capitals; gives no usable answer to the keys in `failing`."""

    def __init__(self, *, failing: frozenset[str] = frozenset()) -> None:
        self.asked: list[str] = []
        self._failing = failing

    async def respond(self, instruction: Instruction) -> Response:
        self.asked.append(instruction.key)
        await asyncio.sleep(0)
        if instruction.key in self._failing:
            return Response(instruction=instruction.key, text="", failure="The reply was empty.")
        return Response(instruction=instruction.key, text=instruction.prompt.upper())


class FakeReferee:
    """Scores by a table of (teacher, student) for each key (elsewhere half the keys are hard), plus `bias` for whoever comes first.

    Keys in `unreadable` get no score.
    """

    def __init__(
        self, scores: dict[str, tuple[float, float]] | None = None, *, bias: float = 0.0, unreadable: frozenset[str] = frozenset()
    ) -> None:
        self.asked: list[tuple[str, Order]] = []
        self.again: list[int] = []
        self._scores = scores or {}
        self._bias = bias
        self._unreadable = unreadable

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
        self.asked.append((instruction.key, order))
        self.again.append(again)
        await asyncio.sleep(0)
        if instruction.key in self._unreadable:
            return Judgement(
                instruction=instruction.key, order=order, teacher_score=None, student_score=None, evidence="?", failure="There is no score."
            )
        good = 9.0 if crc32(instruction.key.encode()) % 2 else 3.0
        of_teacher, of_student = self._scores.get(instruction.key, (9.0, good))
        if order is Order.TEACHER_FIRST:
            of_teacher += self._bias
        else:
            of_student += self._bias
        return Judgement(instruction=instruction.key, order=order, teacher_score=of_teacher, student_score=of_student, evidence="Because.")


class FakeGenerator:
    """Writes a text from the parent's text and the sample number; `write` may say something else."""

    prompt = "generator 1"

    def __init__(self, write: Callable[[Instruction, bool, int], str | None] | None = None) -> None:
        self.asked: list[tuple[str, bool, int]] = []
        self._write = write or (lambda parent, easy, sample: f"{'rare' if easy else 'like'} {sample} {sample % 9973}")

    async def create(self, parent: Instruction, *, easy: bool, sample: int) -> Completion | None:
        self.asked.append((parent.key, easy, sample))
        await asyncio.sleep(0)
        text = self._write(parent, easy, sample)
        return None if text is None else completion(text)


class FakeStudent:
    """Knows by heart what it was tuned on, and nothing else; its memory is a text file in the checkpoint."""

    def __init__(self, folder: Path, start: Path | None) -> None:
        self._folder = folder
        self._known: dict[str, str] = {}
        if start:
            pairs = (tuple(line.split("\t")) for line in (start / "memory.txt").read_text().splitlines())
            self._known = dict(pairs)

    def check(self) -> Preflight:
        return Preflight(model="fake", method="full", precision="fp32", parameters=1, trainable=1, device="cpu")

    def imitate(
        self, examples: Sequence[Example], *, iteration: int, tell: Callable[[TuningNews], None], use_saved: bool = False
    ) -> CheckpointInfo:
        self._known |= {example.instruction.prompt: example.response for example in examples}
        checkpoint = self._folder / f"iteration-{iteration}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "memory.txt").write_text("".join(f"{question}\t{answer}\n" for question, answer in self._known.items()))
        tell(Metric(step=1, steps=1, loss=0.5, learning_rate=0.1))
        return CheckpointInfo(path=checkpoint, step=1, first_loss=1.0, last_loss=0.5)

    def respond(self, instructions: Sequence[Instruction], *, done: frozenset[str], keep: Callable[[list[Response]], None]) -> None:
        for instruction in instructions:
            if instruction.key not in done:
                text = self._known.get(instruction.prompt, "no idea")
                keep([Response(instruction=instruction.key, text=text, tokens=len(text.split()))])

    def answer(
        self, items: Sequence[BenchmarkItem], *, done: frozenset[str], keep: Callable[[list[tuple[BenchmarkItem, str]]], None]
    ) -> None:
        keep([(item, self._known.get(item.prompt, "")) for item in items if item.key not in done])


@dataclass
class FakeDesk:
    """A desk with fakes for every role."""

    folder: Path
    teacher: FakeTeacher = field(default_factory=FakeTeacher)
    referee: FakeReferee = field(default_factory=FakeReferee)
    generator: FakeGenerator = field(default_factory=FakeGenerator)
    notes: list[str] = field(default_factory=list)
    use_saved: bool = False

    @asynccontextmanager
    async def _roles(self) -> AsyncIterator[FakeDesk]:
        yield self

    def roles(self) -> AbstractAsyncContextManager[FakeDesk]:
        return self._roles()

    def student(self, *, iteration: int, start: Path | None) -> FakeStudent:
        return FakeStudent(self.folder / "checkpoints", start)

    def held_out(self) -> HeldOut:
        return HeldOut()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run(work)

    def note(self, text: str) -> None:
        self.notes.append(text)
