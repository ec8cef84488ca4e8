"""ROUGE-L between instructions, fast enough to compare every new one with every known one.

F1 = 2 P R / (P + R) with P = LCS / m and R = LCS / n over the tokens of two texts: the value of the `rouge_score` package to the
last bit, from an integer LCS by rapidfuzz's bit-parallel algorithm. What keeps it quick changes no decision:
1. Two texts cannot have a longer common subsequence than they have tokens in common, counted with repeats. The index knows which
   texts hold a token, so one count over those lists bounds the F1 of every known text (and texts far longer or shorter bound low).
2. Known texts are compared in falling order of that bound, and no further than the best score found.
3. Who asks for similar ones from some score on need not count all tokens: a text that reaches it must hold one of the query's rarer
   ones, so that the longest lists, those of common words, are not read. This is prefix filtering (Chaudhuri et al., ICDE 2006).
4. A text is held as a str with one character for each token, which rapidfuzz reads in place.
"""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappush, heappushpop
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import Indel

_LATIN_TOKEN = re.compile(r"[a-z0-9]+")
_BEYOND_LATIN = re.compile(r"[^\W_\x00-\u024f\u0250-\u02ff\u1d00-\u1dbf\u1e00-\u1eff\u2070-\u209f\u2c60-\u2c7f\ua720-\ua7ff\ufb00-\ufb06]")
_UNSPACED = re.compile(
    r"[\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Myanmar, Khmer
    r"\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # iteration marks, kana
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # Han
)

_UNKNOWN = 0
"""The id of a query's token that no known text has: it can match nothing, so all of them may share it."""

_STEP = 0.9
"""Each round of comparisons goes down to this share of the bound of the last: smaller rounds stop sooner, larger ones are fewer."""

_SLACK = 1e-9
"""Bounds are compared with this much room, far above rounding and far below the gap between two different F1 values."""

_Encoded = str | list[int]

Occurrence = int | tuple[int, int]
"""A token's id where it stands for the first time in a text; with n where it stands there for the (n + 1)th."""

Key = TypeVar("Key", int, str)


def tokenize(text: str) -> list[str]:
    """Lower-case tokens: runs of [a-z0-9], as `rouge_score` cuts them, for text in Latin letters.

    Text with any other script has words of letters, marks and digits instead, and a token for each character of the scripts
    that write no spaces (Chinese, Japanese kana, Thai, Lao, Khmer, Myanmar).
    """
    lowered = text.lower()
    if lowered.isascii() or not _BEYOND_LATIN.search(lowered):
        return _LATIN_TOKEN.findall(lowered)
    return list(_unicode_tokens(unicodedata.normalize("NFKC", lowered)))


def _unicode_tokens(text: str) -> Iterator[str]:
    word = ""
    for character in text:
        kind = unicodedata.category(character)[0]
        alone = kind != "M" and bool(_UNSPACED.match(character))
        if word and (alone or kind not in "LNM" or (kind != "M" and _UNSPACED.match(word))):
            yield word
            word = ""
        if kind in "LN" or (kind == "M" and word):
            word += character
    if word:
        yield word


def rouge_l(first: str, second: str) -> float:
    """ROUGE-L F1 of two texts, 0..1; 0 where either has no token."""
    one, other = tokenize(first), tokenize(second)
    if not one or not other:
        return 0.0
    distance = Indel.distance(one, other)
    return float(_f1(np.array([distance]), len(one), np.array([len(other)]))[0])


def most_similar(text: str, items: Iterable[tuple[Key, str]], *, most: int) -> list[tuple[Key, float]]:
    """The items (key, text) most like a text with their ROUGE-L F1, the most similar first; those that share no token are left out.

    For one question to a pool that is read but once. Ties go to the item that came first.
    """
    tokens = tokenize(text)
    best: list[tuple[float, int, Key]] = []
    for place, (key, other) in enumerate(items):
        theirs = tokenize(other)
        if not tokens or not theirs:
            continue
        bound = 2 * min(len(tokens), len(theirs)) / (len(tokens) + len(theirs))
        if len(best) == most and bound < best[0][0] - _SLACK:
            continue
        score = float(_f1(np.array([Indel.distance(tokens, theirs)]), len(tokens), np.array([len(theirs)]))[0])
        if score > 0:
            entry = (score, -place, key)
            heappush(best, entry) if len(best) < most else heappushpop(best, entry)
    return [(key, score) for score, _, key in sorted(best, key=lambda entry: (-entry[0], -entry[1]))]


class SimilarityIndex:
    """Known texts under their keys, growing one by one, asked for the ones most like a new text.

    Ties go to the text that was added first. A text without tokens scores 0 against everything.
    """

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        self._ids: dict[str, int] = {}
        self._keys: list[str] = []
        self._texts: list[_Encoded] = []
        self._lengths = array("i")
        self._holders: dict[Occurrence, array[int]] = {}
        """The places of the texts that hold an occurrence, ascending."""
        self._counts = np.zeros(0, dtype=np.int32)
        """Zero for each place; a search counts in it and leaves it as it was."""
        self.extend(items)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: str, text: str) -> None:
        """Make a text known. Keys are not checked: one added twice is known twice."""
        ids = [self._ids.setdefault(token, len(self._ids) + 1) for token in tokenize(text)]
        place = len(self._keys)
        for occurrence in _occurrences(ids):
            if (holders := self._holders.get(occurrence)) is None:
                holders = self._holders[occurrence] = array("i")
            holders.append(place)
        self._keys.append(key)
        self._texts.append(_encode(ids))
        self._lengths.append(len(ids))

    def extend(self, items: Iterable[tuple[str, str]]) -> None:
        """Add (key, text) pairs in order."""
        for key, text in items:
            self.add(key, text)

    def nearest(self, text: str, *, at_least: float = 0.0) -> tuple[str, float] | None:
        """The key of the most similar known text and its score; None where no known text reaches `at_least`."""
        best = self._top_from(text, at_least) if at_least > 0 else self.top(text, 1)
        return best[0] if best else None

    def _top_from(self, text: str, at_least: float) -> list[tuple[str, float]]:
        """The most similar known text, where its score is `at_least` or more."""
        ids = self._query(text)
        places, bounds = self._reaching(ids, at_least)
        falling = np.argsort(-bounds, kind="stable")
        found: list[tuple[float, int]] = []
        for start, end in _spans(len(falling)):
            some = falling[start:end]
            if found and -found[0][0] > bounds[some[0]] + _SLACK:
                break
            found = sorted(found + self._compared(ids, places[some]))[:1]
        return self._shown([pair for pair in found if -pair[0] >= at_least])

    def _reaching(self, ids: list[int], at_least: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The places of all texts that may reach a score, ascending, and the highest F1 each can have: (K,) both.

        A text of n tokens shares at least `at_least / 2 * (m + n)` with one of m that it reaches the score with, and n itself is no
        smaller than that. So it holds one of any m - least + 1 of the query's occurrences: the rarest are looked up, and each text
        found may hold all of the others.
        """
        m = len(ids)
        holders = sorted((self._holders[o] for o in _occurrences(ids) if o in self._holders), key=len)
        least = max(1, math.ceil(at_least * m / (2 - at_least) - _SLACK))
        if len(holders) < least:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        looked_up = [np.frombuffer(places, dtype=np.int32) for places in holders[: len(holders) - least + 1]]
        if self._counts.size < len(self._keys):
            self._counts = np.zeros(2 * len(self._keys), dtype=np.int32)
        for places in looked_up:
            self._counts[places] += 1  # no place stands twice in one list
        places = np.concatenate(looked_up)
        shared = self._counts[places].astype(np.int64) + (least - 1)
        self._counts[places] = 0
        lengths = np.frombuffer(self._lengths, dtype=np.int32)[places]
        bounds = 2 * np.minimum(shared, lengths) / (lengths + m)
        near = bounds >= at_least - _SLACK
        found, first = np.unique(places[near], return_index=True)
        return found.astype(np.int64), bounds[near][first]

    def nearest_many(self, texts: Sequence[str]) -> list[tuple[str, float] | None]:
        """`nearest` of each text, in order."""
        return [self.nearest(text) for text in texts]

    def top(self, text: str, n: int) -> list[tuple[str, float]]:
        """The n most similar known texts with their scores, the most similar first."""
        ids = self._query(text)
        bounds = self._bounds(ids)
        found: list[tuple[float, int]] = []
        for places, low in _rounds(bounds):
            found = sorted(found + self._compared(ids, places))[: max(n, 0)]
            if len(found) >= n and (n < 1 or -found[-1][0] >= low):
                break
        if len(found) < n:  # The rest share no token with the text.
            others = np.flatnonzero(bounds == 0)[: n - len(found)]
            found += [(0.0, place) for place in others.tolist()]
        return self._shown(found)

    def above(self, text: str, limit: float) -> list[tuple[str, float]]:
        """All known texts whose score is `limit` or more, the most similar first."""
        if limit <= 0:
            return self.top(text, len(self))
        ids = self._query(text)
        found = self._compared(ids, np.flatnonzero(self._bounds(ids) >= limit - _SLACK))
        return self._shown(sorted(pair for pair in found if -pair[0] >= limit))

    def _query(self, text: str) -> list[int]:
        return [self._ids.get(token, _UNKNOWN) for token in tokenize(text)]

    def _bounds(self, ids: list[int]) -> NDArray[np.float64]:
        """The highest F1 each of the N known texts can have with a query: (N,). It is 0 exactly where the F1 is 0."""
        held = [np.frombuffer(self._holders[o], dtype=np.int32) for o in _occurrences(ids) if o in self._holders]
        if not held:
            return np.zeros(len(self._keys))
        shared = np.bincount(np.concatenate(held), minlength=len(self._keys))
        bounds: NDArray[np.float64] = 2 * shared / (np.frombuffer(self._lengths, dtype=np.int32) + len(ids))
        return bounds

    def _compared(self, ids: list[int], places: NDArray[np.int64]) -> list[tuple[float, int]]:
        """(minus F1, place) of the known texts at these places, each of which shares a token with the query."""
        if not places.size:
            return []
        texts = [self._texts[place] for place in places.tolist()]
        distances = process.cdist([_encode(ids)], texts, scorer=Indel.distance, dtype=np.int32)[0]
        lengths = np.frombuffer(self._lengths, dtype=np.int32)[places].astype(np.int64)
        return list(zip((-_f1(distances, len(ids), lengths)).tolist(), places.tolist(), strict=True))

    def _shown(self, found: list[tuple[float, int]]) -> list[tuple[str, float]]:
        return [(self._keys[place], abs(negative)) for negative, place in found]


def _occurrences(ids: list[int]) -> Iterable[Occurrence]:
    """Each token id, and the second time with a 1, the third with a 2, so that common ones are counted with repeats."""
    return ids if len(set(ids)) == len(ids) else _with_repeats(ids)


def _with_repeats(ids: list[int]) -> Iterator[Occurrence]:
    seen: Counter[int] = Counter()
    for token in ids:
        yield (token, seen[token]) if seen[token] else token
        seen[token] += 1


def _spans(size: int) -> Iterator[tuple[int, int]]:
    """0..size in pieces, each twice as long as the one before."""
    start, length = 0, 64
    while start < size:
        yield start, start + length
        start, length = start + length, 2 * length


def _rounds(bounds: NDArray[np.float64]) -> Iterator[tuple[NDArray[np.int64], float]]:
    """The places with a bound above 0, in rounds of falling bounds, each with the bound that all the rest are below."""
    positive = bounds[bounds > 0]
    if not positive.size:
        return
    least, low, high = float(positive.min()), float(positive.max()), np.inf
    while high > least:
        yield np.flatnonzero((bounds >= low - _SLACK) & (bounds < high)), low
        high = low - _SLACK
        low = max(low * _STEP, least)


def _encode(ids: list[int]) -> _Encoded:
    """One character a token; a list of ids for the text that has a token beyond the last character there is."""
    if max(ids, default=0) <= sys.maxunicode:
        return "".join(map(chr, ids))
    return ids


def _f1(distances: NDArray[np.integer], m: int, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """ROUGE-L F1 (K,) from Indel distances (K,) of a text of m tokens to texts of `lengths` (K,), none of them 0.

    The operations are those of `rouge_score`, in their order.
    """
    lcs = (m + lengths - distances) // 2
    precision, recall = lcs / m, lcs / lengths
    total = precision + recall
    f1: NDArray[np.float64] = np.where(lcs > 0, 2 * precision * recall / np.where(lcs > 0, total, 1.0), 0.0)
    return f1
