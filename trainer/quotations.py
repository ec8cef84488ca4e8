"""What a reply says in words that are not its own: asides (thoughts, quotations), and what it repeats of the texts it was shown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

Span = tuple[int, int]

_ASIDE = re.compile(
    r"<think>(?:(?!<think>).)*?</think>"
    r"|^[ \t]*>[^\r\n]*"
    r'|(?<!\w)"(?=\S)[^"]*(?<=\S)"(?!\w)'  # an inch mark opens and closes nothing
    r"|\u201c[^\u201c\u201d]*\u201d"
    r"|\u00ab[^\u00ab\u00bb]*\u00bb",
    re.DOTALL | re.MULTILINE,
)
_MARKS = '"\u201c\u00ab'
_WORD = re.compile(r"\d+(?:[.,]\d+)?|[^\W\d_]+")

_FOLDED = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2010": "-", "\u2011": "-", "\u2013": "-", "\u2014": "-", "\u2212": "-"}
    | {"\u00ab": '"', "\u00bb": '"', "\u066b": ".", "\u2044": "/", "\ua789": ":", "\u2236": ":"}
)
"""Typographic quotes and dashes, the Arabic decimal point, the fraction slash and look-alike colons as their ASCII selves."""


def asides(text: str) -> list[Span]:
    """Where thoughts, block quotes and the insides of quotation marks stand, in order.

    A code fence is none: a verdict may well stand in one. Neither are thoughts that lack a tag: to quote a tag would hide a verdict.
    """
    found = _ASIDE.finditer(text)
    return [(match.start() + 1, match.end() - 1) if match[0][0] in _MARKS else match.span() for match in found]


def blank_out(text: str, spans: Sequence[Span]) -> str:
    """The text with spaces in place of these spans, in order; every other character, and each end of a line, stays where it is."""
    parts, at = [], 0
    for start, end in spans:
        parts += [text[at:start], re.sub(r"\S", " ", text[start:end])]
        at = end
    return "".join([*parts, text[at:]])


class Shown:
    """The texts that a reply was written about, to tell what it quotes of them: whatever the spaces, the markup and the letters' form."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._words = " | ".join(map(_words, texts))

    def has(self, text: str) -> bool:
        """Whether the text stands in one of them, word by word."""
        words = _words(text)
        return bool(words.strip()) and words in self._words


def _words(text: str) -> str:
    """Words and numbers alone, each between two spaces."""
    return f" {' '.join(word.replace(',', '.') for word in _WORD.findall(fold(text).casefold()))} "


def fold(text: str) -> str:
    """The text with full-width forms folded and every script's digits as 0-9."""
    folded = unicodedata.normalize("NFKC", text).translate(_FOLDED)
    if folded.isascii():
        return folded
    return "".join(_ascii_digit(character) for character in folded)


def _ascii_digit(character: str) -> str:
    value = unicodedata.digit(character, None)
    return character if value is None else str(value)
