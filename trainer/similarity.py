"""ROUGE-L between instructions, fast enough to compare every new one with every known one.

F1 = 2 P R / (P + R) with P = LCS / m and R = LCS / n over the tokens of two texts: the value of the `rouge_score` package to the
last bit, from an integer LCS by rapidfuzz's bit-parallel algorithm. Three things keep it quick, and none changes a decision:
1. A text is held as a str with one character for each token, which rapidfuzz reads in place.
2. F1 <= 2 min(m, n) / (m + n), so known texts are kept by length, and lengths that cannot win are never looked at.
3. What is left is computed by the matrix, a piece at a time, so that memory stays flat.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

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

_PIECE = 4096
"""Known texts a matrix piece covers; with `_ROWS` queries of 4 bytes it stays below 2 MB."""

_ROWS = 64
_SLACK = 1e-9
"""Bounds are compared with this much room, far above rounding and far below the gap between two different F1 values."""

_Encoded = str | list[int]


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
    distance = Indel.distance(one, other)
    return float(_f1(np.array([distance], dtype=np.int32), np.array([len(one)]), len(other))[0])


@dataclass
class _Bucket:
    """Known texts of one length, and each one's place in the order of adding."""

    texts: list[_Encoded] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def pieces(self) -> Iterator[tuple[int, list[_Encoded]]]:
        """The texts, a piece at a time, each with the index at which it starts."""
        for start in range(0, len(self.texts), _PIECE):
            yield start, self.texts[start : start + _PIECE]


class SimilarityIndex:
    """Known texts under their keys, growing one by one, asked for the ones most like a new text.

    Ties go to the text that was added first. A text without tokens scores 0 against everything.
    """

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        self._ids: dict[str, int] = {}
        self._keys: list[str] = []
        self._buckets: dict[int, _Bucket] = {}
        self.extend(items)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: str, text: str) -> None:
        """Make a text known. Keys are not checked: one added twice is known twice."""
        tokens = tokenize(text)
        ids = [self._ids.setdefault(token, len(self._ids) + 1) for token in tokens]
        bucket = self._buckets.setdefault(len(ids), _Bucket())
        bucket.texts.append(_encode(ids))
        bucket.places.append(len(self._keys))
        self._keys.append(key)

    def extend(self, items: Iterable[tuple[str, str]]) -> None:
        """Add (key, text) pairs in order."""
        for key, text in items:
            self.add(key, text)

    def nearest(self, text: str) -> tuple[str, float] | None:
        """The key of the most similar known text and its score; None while nothing is known."""
        return self.nearest_many([text])[0]

    def nearest_many(self, texts: Sequence[str]) -> list[tuple[str, float] | None]:
        """`nearest` of each text, in order, many times faster than one by one."""
        if not self._keys:
            return [None] * len(texts)
        queries = [self._query(text) for text in texts]
        order = sorted(range(len(queries)), key=lambda index: len(queries[index]))
        found: list[tuple[str, float] | None] = [None] * len(queries)
        for start in range(0, len(order), _ROWS):
            rows = order[start : start + _ROWS]
            places, scores = self._best([queries[row] for row in rows])
            for row, place, score in zip(rows, places.tolist(), scores.tolist(), strict=True):
                found[row] = (self._keys[place], score)
        return found

    def top(self, text: str, n: int) -> list[tuple[str, float]]:
        """The n most similar known texts with their scores, the most similar first."""
        return self._scored(text, 0.0)[: max(n, 0)]

    def above(self, text: str, limit: float) -> list[tuple[str, float]]:
        """All known texts whose score is `limit` or more, the most similar first."""
        return self._scored(text, limit)

    def _best(self, queries: list[_Encoded]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Place and score of the best known text for each of R queries of similar lengths: (R,), (R,)."""
        lengths = np.array([len(query) for query in queries], dtype=np.int64)
        places = np.zeros(len(queries), dtype=np.int64)
        scores = np.zeros(len(queries))  # All start at the first known text with 0: right if nothing shares a token.
        middle = int(lengths[len(lengths) // 2])
        for length in sorted(self._buckets, key=lambda length: -_bound(middle, length)):
            bounds = _bounds(lengths, length)
            if length == 0:
                continue
            bucket = self._buckets[length]
            for start, texts in bucket.pieces():
                open_rows = np.flatnonzero(bounds >= scores - _SLACK)
                if not open_rows.size:
                    break
                cutoff = _most_distance(lengths[open_rows], length, scores[open_rows])
                distances = _distances([queries[row] for row in open_rows], texts, cutoff)
                nearest = distances.argmin(axis=1)  # Of one length, the least distance is the highest F1; the first of equals.
                f1 = _f1(distances[np.arange(open_rows.size), nearest], lengths[open_rows], length)
                known = np.array([bucket.places[start + column] for column in nearest.tolist()], dtype=np.int64)
                _improve(places, scores, open_rows, known, f1)
        return places, scores

    def _scored(self, text: str, limit: float) -> list[tuple[str, float]]:
        query = self._query(text)
        length = np.array([len(query)], dtype=np.int64)
        hits: list[tuple[float, int]] = []
        for known_length, bucket in self._buckets.items():
            if _bound(len(query), known_length) < limit - _SLACK:
                continue
            cutoff = _most_distance(length, known_length, np.array([limit]))
            for start, texts in bucket.pieces():
                scores = _f1(_distances([query], texts, cutoff)[0], length, known_length)
                hits.extend((-float(scores[column]), bucket.places[start + column]) for column in np.flatnonzero(scores >= limit).tolist())
        return [(self._keys[place], -negative + 0.0) for negative, place in sorted(hits)]

    def _query(self, text: str) -> _Encoded:
        return _encode([self._ids.get(token, _UNKNOWN) for token in tokenize(text)])


def _encode(ids: list[int]) -> _Encoded:
    """One character a token; a list of ids for the text that has a token beyond the last character there is."""
    if max(ids, default=0) <= sys.maxunicode:
        return "".join(map(chr, ids))
    return ids


def _bound(m: int, n: int) -> float:
    """The highest F1 that texts of m and n tokens can have."""
    return 2 * min(m, n) / (m + n) if m and n else 0.0


def _bounds(lengths: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    return np.array([_bound(int(m), n) for m in lengths])


def _most_distance(lengths: NDArray[np.int64], n: int, scores: NDArray[np.float64]) -> int:
    """The largest Indel distance with which any of the queries could still reach its score."""
    return int(np.max((lengths + n) * (1 - scores)) + 1e-6)


def _distances(queries: list[_Encoded], texts: list[_Encoded], cutoff: int) -> NDArray[np.int32]:
    """Indel distances (R, K); whatever is above the cutoff may read cutoff + 1."""
    if len(queries) > 1:  # Without a cutoff rapidfuzz compares many queries in one vector instruction.
        return process.cdist(queries, texts, scorer=Indel.distance, dtype=np.int32)
    return process.cdist(queries, texts, scorer=Indel.distance, dtype=np.int32, score_cutoff=max(cutoff, 0))


def _f1(distances: NDArray[np.int32], lengths: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """ROUGE-L F1 (K,) from Indel distances (K,) to texts of n tokens, with the very operations of `rouge_score`, in their order.

    lengths: (K,), or (1,) where all distances are of one query.
    """
    lcs = (lengths + n - distances) // 2
    precision, recall = lcs / np.maximum(lengths, 1), lcs / max(n, 1)
    return np.where(lcs > 0, 2 * precision * recall / np.where(lcs > 0, precision + recall, 1.0), 0.0)


def _improve(
    places: NDArray[np.int64], scores: NDArray[np.float64], rows: NDArray[np.int64], known: NDArray[np.int64], f1: NDArray[np.float64]
) -> None:
    """Put what was found for these rows into places and scores (in place) where it beats, or ties and was added earlier."""
    better = (f1 > scores[rows]) | ((f1 == scores[rows]) & (known < places[rows]))
    places[rows[better]] = known[better]
    scores[rows[better]] = f1[better]
