"""Texts like those of instruction pools: a few openings, words by Zipf, ragged lengths, and near-copies."""

from __future__ import annotations

import random
from itertools import accumulate

OPENINGS = (
    "write a short story about",
    "describe",
    "explain the difference between",
    "give three examples of",
    "rewrite the sentence:",
    "classify the following as",
    "summarize",
    "translate into french:",
    "what is",
    "list the steps to",
    "create a poem about",
    "how would you",
)
WORDS = 12_000
"""Real text has more of them the longer it is: the 700,000 words of AGIEval, BBH and ChatGPT's Vicuna answers are 20,400 different ones,
as many drawn from 30,000 by Zipf are 24,700. Pools beyond 58,000 texts are drawn from those."""
COPIES = 0.25
"""This share of the texts is an earlier one with a word or a few changed, as a generator's answers are."""


class Writer:
    """Draws texts; the same ones for the same seed."""

    def __init__(self, seed: int, *, words: int = WORDS) -> None:
        self.rng = random.Random(seed)
        letters = random.Random(0)
        self._words = ["".join(letters.choices("etaoinshrdlucmfwypvbgk", k=letters.randint(2, 9))) for _ in range(words)]
        self._weights = list(accumulate(1 / (rank + 3) for rank in range(words)))

    def words(self, count: int) -> list[str]:
        return self.rng.choices(self._words, cum_weights=self._weights, k=count)

    def text(self) -> str:
        """An instruction: 14 words in the middle, a tenth of them above 40."""
        return " ".join([self.rng.choice(OPENINGS), *self.words(max(2, round(self.rng.lognormvariate(2.3, 0.8))))])

    def near_copy(self, text: str) -> str:
        words = text.split()
        for _ in range(self.rng.randint(1, max(1, len(words) // 2))):
            words[self.rng.randrange(len(words))] = self.words(1)[0]
        return " ".join(words)

    def texts(self, count: int, *, like: list[str] | None = None) -> list[str]:
        """`count` texts, some of them near-copies of `like`, or of each other where that is not given."""
        made: list[str] = []
        for _ in range(count):
            copied = like or made
            made.append(self.near_copy(self.rng.choice(copied)) if copied and self.rng.random() < COPIES else self.text())
        return made
