"""Decontamination: no new instruction may overlap with an item of a benchmark the student is measured on.

Two rules, each of them enough: 13 words in a row stand in an item too (passages and options included), or the ROUGE-L F1 to an item's
question is above 0.7. Words are the tokens of `trainer.similarity`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from trainer.similarity import SimilarityIndex, tokenize

WORDS_IN_A_ROW = 13
LIMIT = 0.7


@dataclass(frozen=True, kw_only=True)
class HeldOutItem:
    """An item of a benchmark. name: as people are shown it, "vicuna80 12"; question: what is asked; text: all of it."""

    name: str
    question: str
    text: str


class HeldOut:
    """The items of some benchmarks, asked for the one that a text overlaps with."""

    def __init__(self, items: Iterable[HeldOutItem] = ()) -> None:
        self._runs: dict[int, str] = {}
        """A run's hash -> the first item it stands in: of a million runs the words themselves would take ten times the memory."""
        self._questions = SimilarityIndex()
        self._size = 0
        for item in items:
            self._size += 1
            self._questions.add(item.name, item.question)
            for words in _runs(tokenize(item.text)):
                self._runs.setdefault(hash(words), item.name)

    def __len__(self) -> int:
        return self._size

    def overlap(self, text: str) -> str:
        """The item a text overlaps with, and how, in words; "" where there is none."""
        for words in _runs(tokenize(text)):
            if hash(words) in self._runs:
                return f"{self._runs[hash(words)]}: {WORDS_IN_A_ROW} words in a row, {' '.join(words)!r}"
        nearest = self._questions.nearest(text, at_least=LIMIT)
        if nearest is not None and nearest[1] > LIMIT:
            return f"{nearest[0]}: ROUGE-L {nearest[1]:.2f} to its question"
        return ""


def _runs(tokens: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for start in range(len(tokens) - WORDS_IN_A_ROW + 1):
        yield tuple(tokens[start : start + WORDS_IN_A_ROW])
