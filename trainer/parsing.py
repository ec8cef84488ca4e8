"""Read what was asked for out of a referee's or a generator's reply, as text or as JSON, however it is dressed; never guess it.

The last pair of score lines, or the JSON object after it, counts, as the evidence may quote scores of its own. A reply whose scores
are missing, cut off, out of range or at odds with each other raises ResponseFormatError: it is asked again, then quarantined.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trainer.errors import ResponseFormatError
from trainer.json_replies import JsonReply, blank_out, find_json
from trainer.prompts import SCORE_KEYS
from trainer.text import storable

LOWEST, HIGHEST = 1.0, 10.0

_READ = 400
"""Characters of a line that are looked at for scores: they stand at its head, and no line can then be made slow to read."""

_DRESS = r"[\s*_`~#>|\"'()\[\]{}\u2022\u00b7-]*"
_MARKUP = r"[\s*_`~|\"'()\[\]{}<>]*"
_WHO = r"(?:the\s+)?assistant\s*#?\s*(?P<{name}>[12])(?!\d)(?:\s*'s)?"
_LABELLED = r"(?:(?:final|overall|total)\s+)*(?:score|rating)\s+(?:of|for)\s+" + _WHO.format(name="after")
_NAMED = _WHO.format(name="before") + r"\s+(?:(?:final|overall|total)\s+)*(?:score|rating)"
_ASIDE = r"(?:\s*\([^():=]{0,60}\))?"
_SCORED = re.compile(rf"(?:\b{_LABELLED}|\b{_NAMED}){_ASIDE}{_DRESS}[:=]{_MARKUP}", re.IGNORECASE)
_BARE = re.compile(rf"\b{_WHO.format(name='after')}{_ASIDE}{_DRESS}[:=]{_MARKUP}", re.IGNORECASE)

_NUMBER = re.compile(r"(?P<sign>-)?(?P<number>\d+(?:[.,]\d+)?)(?P<rest>.*)", re.DOTALL)
_SCALE = re.compile(rf"{_MARKUP}(?:/|out\s+of\b){_MARKUP}(?P<scale>\d+(?:[.,]\d+)?)?", re.IGNORECASE)
_SECOND_NUMBER = re.compile(r"[\s*_`]*(?:[-~,/.:+]|e[+-]?|\bto\b|\bor\b|\band\b)?[\s*_`]*\d", re.IGNORECASE)
_UNIT = re.compile(rf"{_MARKUP}(?:points?\b|pts?\b)?[\s*_`~|\"'()\[\]{{}}<>.,;!-]*", re.IGNORECASE)
_EVIDENCE = re.compile(rf"\A{_DRESS}(?:evaluation\s+)?evidence{_DRESS}:[\s*_`]*", re.IGNORECASE)
_ONLY_DRESS = re.compile(rf"{_DRESS}\Z")
_HEAD = re.compile(rf"\A{_MARKUP}")
_STUMP = re.compile(r"\A(?:(?:final|overall)\s+)?score(?:\s+(?:of|for)(?:\s+the)?(?:\s+a\w*(?:\s*#?\s*[12])?)?)?\Z", re.IGNORECASE)

_FOLDED = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2010": "-", "\u2011": "-", "\u2013": "-", "\u2014": "-", "\u2212": "-"}
    | {"\u066b": ".", "\u2044": "/", "\ua789": ":", "\u2236": ":"}
)
"""Typographic quotes and dashes, the Arabic decimal point, the fraction slash and look-alike colons as their ASCII selves."""


@dataclass(frozen=True)
class Scores:
    """What a referee gave the response it read first and the one it read second, 1..10, and why."""

    first: float
    second: float
    evidence: str


@dataclass(frozen=True)
class _Mention:
    """One score line: its number, whose score it is (1 or 2), and what stands after the label."""

    line: int
    who: int
    value: str
    labelled: bool


def parse_scores(reply: str) -> Scores:
    """The scores of the last pair of score lines and the evidence before them (or after, where none stands before), or those in JSON.

    Raises ResponseFormatError, with a sentence on what was wrong, where there are none to trust.
    """
    _refuse_without_answer(reply)
    found = find_json(reply, ("evidence", *SCORE_KEYS))
    lines = blank_out(reply, found.objects).splitlines(keepends=True)
    mentions = _mentions(lines)
    last_line_at = sum(map(len, lines[: mentions[-1].line])) if mentions else -1
    if _is_told_in_json(found, last_line_at):
        return _scores_in_json(found)
    return _scores_in_lines(reply, lines, mentions)


def parse_instruction(reply: str) -> str:
    """The instruction in a JSON object that ends the reply, else the reply itself, stripped.

    What sets out to be such an object and is none gives "": it is no instruction, and neither is its text.
    """
    found = find_json(reply, ("instruction",))
    if len(found.objects) == 1 and not found.broken and _ONLY_DRESS.match(reply, found.objects[0].end):
        values = found.objects[0].values("instruction")
        return storable(values[0]).strip() if len(values) == 1 and isinstance(values[0], str) else ""
    return "" if found.opens else reply.strip()


def _refuse_without_answer(reply: str) -> None:
    if not reply.strip():
        raise ResponseFormatError("The referee's reply is empty.")
    if reply.lstrip().startswith("<think>") and "</think>" not in reply:
        raise ResponseFormatError("The referee's reply ends inside its thoughts: it was cut off before the scores.")


def _is_told_in_json(found: JsonReply, last_line_at: int) -> bool:
    """Whether a JSON object, and no score line, is the last word of a reply.

    Raises ResponseFormatError where that object cannot be told from what it quotes: it is broken, or something before it is. A reply
    that opens with JSON must be sound as a whole.
    """
    told = bool(found.objects) and found.objects[-1].start > last_line_at
    if found.broken and (told or found.opens or max(found.broken) > last_line_at):
        raise ResponseFormatError("The JSON of the referee's reply is cut off or not valid.")
    return told


def _scores_in_json(found: JsonReply) -> Scores:
    first, second = ([_as_text(value) for given in found.objects for value in given.values(key)] for key in SCORE_KEYS)
    _refuse_missing({who for who, told in ((1, first), (2, second)) if not told})
    evidence = next((value for value in found.objects[-1].values("evidence") if isinstance(value, str)), "")
    return Scores(_agreed(1, first), _agreed(2, second), storable(evidence).strip())


def _as_text(value: Any) -> str:
    """A score in JSON as it would stand behind a label."""
    if isinstance(value, str):
        return _HEAD.sub("", _plain(value))
    if isinstance(value, float):
        return f"{value:.9f}"
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else type(value).__name__


def _scores_in_lines(reply: str, lines: list[str], mentions: list[_Mention]) -> Scores:
    """From score lines; `lines` are the reply's, with their ends, its JSON blanked out."""
    _refuse_stump(lines)
    pair = _last_pair(mentions, lines)
    first, second = (_agreed(who, [mention.value for mention in pair if mention.who == who]) for who in (1, 2))
    before = reply[: sum(map(len, lines[: pair[0].line]))]
    after = reply[sum(map(len, lines[: pair[-1].line + 1])) :]
    evidence = "\n".join((before.strip() or after).splitlines()).strip()
    return Scores(first, second, _EVIDENCE.sub("", evidence).strip())


def _refuse_stump(lines: list[str]) -> None:
    """A reply that stops inside a score's label was cut off."""
    last = next((line for line in reversed(lines) if line.strip()), "")
    if _STUMP.match(_plain(last).strip(" *_`#>-\t\r\n")):
        raise ResponseFormatError(f"The referee's reply ends inside a score line: {last.strip()!r}.")


def _mentions(lines: list[str]) -> list[_Mention]:
    """The score lines in order. Lines that say 'score' are preferred to bare 'Assistant 1: 8' ones."""
    found = [mention for number, line in enumerate(lines) for mention in _in_line(number, _plain(line))]
    labelled = [mention for mention in found if mention.labelled]
    return labelled or found


def _in_line(number: int, line: str) -> Iterator[_Mention]:
    """The score of a line that begins with a score's label; both of them where both stand on that line."""
    start = re.match(_DRESS, line)
    offset = start.end() if start else 0
    labelled = bool(_SCORED.match(line, offset))
    pattern = _SCORED if labelled else _BARE
    if not pattern.match(line, offset):
        return
    labels = list(pattern.finditer(line, offset))
    for label, following in zip(labels, [*labels[1:], None], strict=True):
        groups = label.groupdict()
        value = line[label.end() : following.start() if following else None]
        if labelled or _is_only_a_number(value):
            yield _Mention(number, int(groups["after"] or groups.get("before") or 0), value, labelled)


def _last_pair(mentions: list[_Mention], lines: list[str]) -> list[_Mention]:
    """The score lines that count: the last block of them that tells of both assistants.

    A block is a run of score lines with nothing but blank lines or markup between; where the last one tells of one assistant
    only, the block before it is taken in, and so on.
    """
    taken: list[_Mention] = []
    missing = {1, 2}
    for mention in reversed(mentions):
        if not missing and not _adjoin(mention.line, taken[-1].line, lines):
            break
        taken.append(mention)
        missing.discard(mention.who)
    _refuse_missing(missing)
    return taken[::-1]


def _refuse_missing(missing: set[int]) -> None:
    if missing:
        raise ResponseFormatError(f"The referee's reply has no score for assistant {' and '.join(map(str, sorted(missing)))}.")


def _adjoin(above: int, below: int, lines: list[str]) -> bool:
    return all(_ONLY_DRESS.match(line) for line in lines[above + 1 : below])


def _agreed(who: int, told: list[str]) -> float:
    values = [_score(who, text) for text in told]
    if len(set(values)) > 1:
        shown = ", ".join(f"{value:g}" for value in values)
        raise ResponseFormatError(f"The referee's reply gives assistant {who} different scores: {shown}.")
    return values[0]


def _score(who: int, text: str) -> float:
    """The number at the head of `text`, on a scale of ten."""
    shown = text.strip()[:60]
    match = _NUMBER.match(text)
    if not match:
        said = f"is not a number: {shown!r}" if shown else "is missing: the line ends before it"
        raise ResponseFormatError(f"The score of assistant {who} {said}.")
    value = float(match["number"].replace(",", "."))
    rest = match["rest"]
    scale = _SCALE.match(rest)
    if scale:
        if scale["scale"] is None or float(scale["scale"].replace(",", ".")) != HIGHEST:
            raise ResponseFormatError(f"The score of assistant {who} is not out of ten: {shown!r}.")
        rest = rest[scale.end() :]
    if _SECOND_NUMBER.match(rest) or rest.lstrip(" *_`").startswith("%"):
        raise ResponseFormatError(f"The score of assistant {who} is not one number: {shown!r}.")
    if match["sign"] or not LOWEST <= value <= HIGHEST:
        raise ResponseFormatError(f"The score of assistant {who} is outside 1 to 10: {shown!r}.")
    return value


def _is_only_a_number(text: str) -> bool:
    match = _NUMBER.match(text)
    if not match:
        return not text.strip()
    rest = match["rest"]
    scale = _SCALE.match(rest)
    return bool(_UNIT.fullmatch(rest[scale.end() :] if scale else rest))


def _plain(line: str) -> str:
    """The head of a line with full-width forms folded and every script's digits as 0-9."""
    folded = unicodedata.normalize("NFKC", line[:_READ])[:_READ].translate(_FOLDED)
    if folded.isascii():
        return folded
    return "".join(_ascii_digit(character) for character in folded)


def _ascii_digit(character: str) -> str:
    value = unicodedata.digit(character, None)
    return character if value is None else str(value)
