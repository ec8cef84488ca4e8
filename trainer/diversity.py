"""How varied the new instructions of an iteration are, beside the seeds, and an alarm when they are not.

1. distinct-n: different n-grams of words over all n-grams (Li et al., arXiv 1510.03055). The share falls with the length of what is
   counted, so both sides are counted over equally many n-grams.
2. Nearest neighbour: the mean ROUGE-L F1 of a text to the one most like it, within samples of equal size.
3. Traits of each text: its length in words, its language, its root verb and that verb's object (the paper's Figure 3).

Words are the tokens of `trainer.similarity`; of a long text its beginning is looked at. An instruction is
its task alone: seeds come with inputs, what a generator writes has none. Samples are drawn from the run's seed: the same run
gives the same numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median, stdev
from typing import Any

from trainer.language import language_of
from trainer.records import Instruction, Record
from trainer.root_words import root_words
from trainer.seeds import stream
from trainer.similarity import SimilarityIndex, tokenize

MOST_COMPARED = 500
"""Texts of a sample for the nearest neighbours."""
LONGEST_COMPARED = 2_000
"""Characters of each of them that are compared, so that a pool of books takes no longer."""
MOST_COUNTED = 50_000
"""N-grams over which distinct-n is taken at most."""

LEAST = 20
"""With fewer new instructions, or fewer seeds, there is no alarm: too few to tell."""
FALL = 0.7
"""An alarm where distinct-2 is below this share of the seeds'."""
RISE = 0.15
"""An alarm where the mean nearest neighbour is closer by this much ROUGE-L than among the seeds."""
ONE_KIND = 0.5
"""An alarm where more than this share has one root verb, or is in a language the seeds hardly have."""
LENGTHS = (0.5, 2.0)
"""An alarm where the median length lies outside these shares of the seeds'."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits(Record):
    """What kind of text an instruction is. language: ISO 639-1, "" where it cannot be told; verb, noun: "" where there is none."""

    words: int
    language: str = ""
    verb: str = ""
    noun: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread(Record):
    """How unlike each other some texts are. None where there is too little to say.

    ngrams: how many bigrams distinct_2 is over (distinct_1 over as many words); compared: texts whose nearest neighbour was looked for;
    nearest: their mean ROUGE-L F1 to it, 0..1; deviation: of the sample.
    """

    ngrams: int = 0
    distinct_1: float | None = None
    distinct_2: float | None = None
    compared: int = 0
    nearest: float | None = None
    deviation: float | None = None

    @property
    def nearest_half(self) -> float | None:
        """Half the width of the 95 % interval of `nearest`."""
        return 1.96 * self.deviation / math.sqrt(self.compared) if self.deviation is not None and self.compared > 1 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Diversity(Record):
    """What an iteration made, beside the seeds at the same sizes. alarms: what collapsed, a sentence each."""

    made: int
    new: Spread = field(default_factory=Spread)
    seeds: Spread = field(default_factory=Spread)
    alarms: tuple[str, ...] = ()


def diversity_from_dict(data: Mapping[str, Any]) -> Diversity:
    """What `Diversity.as_dict` gave, as the record again."""
    spreads = {name: Spread(**data[name]) for name in ("new", "seeds")}
    return Diversity(**{**data, **spreads, "alarms": tuple(data["alarms"])})


def traits_of(text: str) -> Traits:
    """The traits of one text. Root words are told of English, and of what is too short to have a language."""
    language, words = language_of(text), len(tokenize(text))
    if language not in ("", "en"):
        return Traits(words=words, language=language)
    root = root_words(text)
    return Traits(words=words, language=language, verb=root.verb, noun=root.noun)


def measure(
    new: Sequence[Instruction], seeds: Sequence[Instruction], *, traits: Callable[[Instruction], Traits], seed: int, iteration: int
) -> Diversity:
    """The diversity of an iteration's new instructions. For iteration 0 `new` are the seeds themselves."""
    ours, theirs = (_shuffled(pool, seed, iteration) for pool in (new, seeds))
    most = min(len(ours), len(theirs), MOST_COMPARED)
    counted = min(_bigrams(ours), _bigrams(theirs), MOST_COUNTED)
    mine, reference = (_spread(texts, ngrams=counted, compared=most) for texts in (ours, theirs))
    alarms = () if new == seeds or min(len(new), len(seeds)) < LEAST else tuple(_alarms(new, seeds, mine, reference, traits))
    return Diversity(made=len(new), new=mine, seeds=reference, alarms=alarms)


def _shuffled(pool: Sequence[Instruction], seed: int, iteration: int) -> list[str]:
    texts = [instruction.text[:LONGEST_COMPARED] for instruction in pool]
    stream(seed, "diversity", iteration).shuffle(texts)
    return texts


def _bigrams(texts: Iterable[str]) -> int:
    """How many bigrams the texts have, as far as they are counted."""
    total = 0
    for text in texts:
        total += max(0, len(tokenize(text)) - 1)
        if total >= MOST_COUNTED:
            break
    return total


def _spread(texts: Sequence[str], *, ngrams: int, compared: int) -> Spread:
    nearest = nearest_neighbours(texts[:compared])
    return Spread(
        ngrams=ngrams,
        distinct_1=distinct(texts, 1, most=ngrams),
        distinct_2=distinct(texts, 2, most=ngrams),
        compared=len(nearest),
        nearest=fmean(nearest) if nearest else None,
        deviation=stdev(nearest) if len(nearest) > 1 else None,
    )


def distinct(texts: Iterable[str], n: int, *, most: int) -> float | None:
    """Different n-grams over all, of the first `most` n-grams; n is 1 or 2. None where there is not one."""
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        tokens = tokenize(text)
        for ngram in [(token,) for token in tokens] if n == 1 else pairwise(tokens):
            if total == most:
                break
            seen.add(ngram)
            total += 1
    return len(seen) / total if total else None


def nearest_neighbours(texts: Sequence[str]) -> list[float]:
    """ROUGE-L F1 of each text to the one most like it among the others; empty for fewer than two."""
    if len(texts) < 2:
        return []
    index = SimilarityIndex((str(place), text) for place, text in enumerate(texts))
    return [next(score for key, score in index.top(text, 2) if key != str(place)) for place, text in enumerate(texts)]


def _alarms(
    new: Sequence[Instruction], seeds: Sequence[Instruction], mine: Spread, reference: Spread, traits: Callable[[Instruction], Traits]
) -> Iterable[str]:
    if mine.distinct_2 is not None and reference.distinct_2 is not None and mine.distinct_2 < FALL * reference.distinct_2:
        yield f"They repeat their words: distinct-2 is {mine.distinct_2:.2f}, among as many of the seeds {reference.distinct_2:.2f}."
    if mine.nearest is not None and reference.nearest is not None and mine.nearest > reference.nearest + RISE:
        yield f"They are close to each other: nearest neighbour at ROUGE-L {mine.nearest:.2f}, among the seeds {reference.nearest:.2f}."
    ours, theirs = [traits(i) for i in new], [traits(i) for i in seeds]
    yield from _too_much_of_one([t.verb for t in ours], [t.verb for t in theirs], "have the root verb")
    yield from _too_much_of_one([t.language for t in ours], [t.language for t in theirs], "are in the language")
    length, usual = median(t.words for t in ours), median(t.words for t in theirs)
    if usual and not LENGTHS[0] <= length / usual <= LENGTHS[1]:
        yield f"Their length has changed: {length:g} words in the median, of the seeds {usual:g}."


def _too_much_of_one(new: Sequence[str], seeds: Sequence[str], words: str) -> Iterable[str]:
    """Where more than half share what less than half as many of the seeds do."""
    commonest, count = Counter(value for value in new if value).most_common(1)[0] if any(new) else ("", 0)
    share, before = count / len(new), seeds.count(commonest) / len(seeds)
    if share > ONE_KIND and share > 2 * before:
        yield f"{share:.0%} {words} {commonest!r}, of the seeds {before:.0%}."
