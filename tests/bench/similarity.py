"""The similarity filter of an iteration as long as the paper's last: its time, its speed beside rouge_score, and its decisions.

Every new text is held against all known ones, and becomes known itself where it is kept. On one core.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from statistics import median
from time import monotonic, process_time

from rouge_score import rouge_scorer
from rouge_score.tokenizers import DefaultTokenizer

from tests.bench.corpus import Writer
from tests.bench.report import Bar, Figure, say
from trainer.config import LoopConfig
from trainer.similarity import SimilarityIndex

NEW, KNOWN = 6_000, 58_000
POOLS = (50_000, 100_000, 200_000)
"""Known texts of the iterations whose costs are compared; their words are as many as in real text of that length: see `corpus.py`."""
ROUNDS = 3
LIMIT = LoopConfig().similarity
ORACLE_S = 900
"""So long the oracle may work; the sample is what it gets through, of SAMPLE pairs at most."""
SAMPLE = 1_000_000
BLOCK = 100


def measure() -> Iterator[Figure]:
    writer = Writer(1)
    known = writer.texts(KNOWN)
    new = writer.texts(NEW, like=known)
    say(f"filtering {NEW:,} new texts against {KNOWN:,} known ones")
    started, worked = monotonic(), process_time()
    kept = filter_new(new, known)
    took, worked = monotonic() - started, process_time() - worked
    pairs = NEW * KNOWN + kept * NEW // 2  # a kept text is known to those after it
    yield Figure(name="similarity", value=took, unit="s", bar=Bar(at_most=20))

    say(f"{took:.1f} s, {worked:.1f} s of them on a processor; {kept:,} kept. rouge_score on a sample")
    oracle = Oracle()
    index = SimilarityIndex((str(place), text) for place, text in enumerate(known))
    differing, seen, near, oracle_s = compare_decisions(new, known, index, oracle)
    say(f"{seen:,} pairs in {oracle_s:.0f} s, {near:,} of them at the limit or above; {differing} decided otherwise")
    ratio = (oracle_s / seen) / (took / pairs)
    against = f"rouge_score on cut texts, {seen:,} pairs: {seen / oracle_s:,.0f} pairs/s"
    yield Figure(name="similarity_speed", value=pairs / took, unit="pairs/s", bar=Bar(ratio_at_least=1000), against=against, ratio=ratio)
    yield Figure(name="similarity_sample", value=seen, unit="pairs", bar=Bar(at_least=SAMPLE), against="rouge_score's decisions")
    yield Figure(
        name="similarity_decisions", value=differing, unit="decisions other than rouge_score's", bar=Bar(at_most=0),
        against=f"rouge_score on {seen:,} pairs, {near:,} of them similar",
    )  # fmt: skip
    yield from measure_growth()


def filter_new(new: list[str], known: list[str]) -> int:
    """What generation does: a text too similar to a known one goes, any other becomes known. Gives how many were kept."""
    index = SimilarityIndex((str(place), text) for place, text in enumerate(known))
    for place, text in enumerate(new):
        if index.nearest(text, at_least=LIMIT) is None:
            index.add(f"new {place}", text)
    return len(index) - len(known)


def measure_growth() -> Iterator[Figure]:
    """What an iteration takes, from nothing to the last decision, as the pool grows."""
    writer = Writer(3, words=30_000)
    known = writer.texts(max(POOLS))
    new = writer.texts(NEW, like=known)
    took: dict[int, list[float]] = {size: [] for size in POOLS}
    for _ in range(ROUNDS):
        for size in POOLS:
            worked = process_time()
            filter_new(new, known[:size])
            took[size].append(process_time() - worked)
    seconds = {size: median(times) for size, times in took.items()}
    say(", ".join(f"{size:,} known: {s:.1f} s" for size, s in seconds.items()))
    first, last = min(POOLS), max(POOLS)
    yield Figure(
        name="similarity_growth", value=seconds[last] / seconds[first], unit=f"x the time at {last / first:g} x the pool",
        bar=Bar(at_most=0.75 * last / first), against=", ".join(f"{size:,}: {s:.2f} s" for size, s in seconds.items()),
    )  # fmt: skip


class Oracle:
    """rouge_score's own scorer, on texts that it cut into tokens once, as the authors of the paper use it."""

    def __init__(self) -> None:
        self._tokens: dict[str, list[str]] = {}
        self._cut = DefaultTokenizer(use_stemmer=False).tokenize

    def tokens(self, text: str) -> list[str]:
        if text not in self._tokens:
            self._tokens[text] = self._cut(text)
        return self._tokens[text]

    def is_similar(self, known: list[str], new: list[str]) -> bool:
        return bool(rouge_scorer._score_lcs(known, new).fmeasure >= LIMIT)


def compare_decisions(new: list[str], known: list[str], index: SimilarityIndex, oracle: Oracle) -> tuple[int, int, int, float]:
    """Decisions that differ, pairs seen, those of them at the limit or above, and the seconds the oracle took for them.

    Blocks of new x known texts drawn at random, and with each block what the index finds anywhere near the limit. What generation
    asks, the nearest from the limit on, is held against the oracle's own decisions of all pairs of a text.
    """
    rng = random.Random(2)
    differing = seen = near = 0
    oracle_s = 0.0
    while oracle_s < ORACLE_S and seen < SAMPLE:
        some_new = rng.sample(new, BLOCK)
        places = rng.sample(range(len(known)), BLOCK)
        around = [(text, int(key)) for text in some_new for key, _ in index.above(text, LIMIT - 0.1)]
        similar = {(text, int(key)) for text in some_new for key, _ in index.above(text, LIMIT)}
        pairs = [*product(some_new, places), *around]
        cut = [(oracle.tokens(known[place]), oracle.tokens(text)) for text, place in pairs]
        started = monotonic()
        decided = [oracle.is_similar(one, other) for one, other in cut]
        oracle_s += monotonic() - started
        differing += sum(is_similar != (pair in similar) for pair, is_similar in zip(pairs, decided, strict=True))
        too_similar = {text for (text, _), is_similar in zip(pairs, decided, strict=True) if is_similar}
        for text in some_new:
            nearest = index.nearest(text, at_least=LIMIT)
            differing += (nearest is not None) != (text in too_similar)
            differing += nearest is not None and (text, int(nearest[0])) not in similar
        seen, near = seen + len(pairs), near + sum(decided)
    return differing, seen, near, oracle_s
