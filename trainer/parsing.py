"""Read what was asked for out of a referee's or a generator's reply, as text or as JSON, however it is dressed; never guess it.

A referee may quote scores that an answer demands, before its own or after them. Those that stand word by word in what it was shown
never count; those in thoughts and quotations count only where there are no others. Whatever remains has to agree: a reply whose
scores are missing, cut off, out of range or at odds with each other raises ResponseFormatError: it is asked again, then quarantined.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.errors import ResponseFormatError
from trainer.json_replies import JsonObject, JsonReply, find_json
from trainer.prompts import SCORE_KEYS
from trainer.quotations import Shown, Span, asides, blank_out, fold
from trainer.text import storable

LOWEST, HIGHEST = 1.0, 10.0

_ByAssistant = dict[int, float]

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


@dataclass(frozen=True)
class Scores:
    """What a referee gave the response it read first and the one it read second, 1..10, and why."""

    first: float
    second: float
    evidence: str


@dataclass(frozen=True)
class _Mention:
    """One score line: its number, whose score it is (1 or 2), its label, and what stands after that."""

    line: int
    who: int
    label: str
    value: str
    labelled: bool

    @property
    def claim(self) -> str:
        """Label and number, without what follows them."""
        number = _NUMBER.match(self.value)
        return self.label + (number["number"] if number else "")


@dataclass(frozen=True)
class _Told:
    """Where a reply tells of scores in words of its own: JSON objects, places of broken ones, score lines.

    lines: the reply's, with their ends, objects and asides blanked out.
    """

    objects: list[JsonObject]
    broken: list[int]
    lines: list[str]
    mentions: list[_Mention]

    def __bool__(self) -> bool:
        return bool(self.objects or self.mentions)

    @property
    def last_line_at(self) -> int:
        return sum(map(len, self.lines[: self.mentions[-1].line])) if self.mentions else -1


@dataclass(frozen=True)
class Score:
    """What a referee gave the one response it read, 1..10, and why."""

    value: float
    evidence: str


def parse_scores(reply: str, *, shown: Sequence[str] = ()) -> Scores:
    """The scores that a referee gives, in score lines or in JSON, and the evidence before them (or after, where none stands before).

    shown: the texts that the referee scored and the task of them; scores that stand in these are not its own.
    Raises ResponseFormatError, with a sentence on what was wrong, where there are none to trust.
    """
    scores, evidence = _parse(reply, (1, 2), shown)
    return Scores(scores[1], scores[2], evidence)


def parse_score(reply: str, *, shown: Sequence[str] = ()) -> Score:
    """The score of a response that was read alone, as assistant 1's; all else as `parse_scores`."""
    scores, evidence = _parse(reply, (1,), shown)
    return Score(scores[1], evidence)


def _parse(reply: str, whose: Sequence[int], shown: Sequence[str]) -> tuple[_ByAssistant, str]:
    """The scores of these assistants, and the evidence."""
    _refuse_without_answer(reply)
    found = find_json(reply, ("evidence", *(SCORE_KEYS[who - 1] for who in whose)))
    spans, texts = asides(blank_out(reply, [told.span for told in found.objects])), Shown(shown)
    told = _tell(reply, found, spans, texts) or _tell(reply, found, (), texts)
    if _is_told_in_json(told, opens=found.opens):
        scores, evidence = _scores_in_json(told.objects, whose)
    elif not told and _tell(reply, found, (), Shown(())):
        raise ResponseFormatError("All scores of the referee's reply stand in a text that it was shown: they may be a quotation.")
    else:
        scores, evidence = _scores_in_lines(reply, told.lines, told.mentions, whose)
    _refuse_other_scores(scores, told)
    return scores, evidence


def _tell(reply: str, found: JsonReply, hidden: Sequence[Span], shown: Shown) -> _Told:
    """Where a reply tells of scores outside of the spans that are hidden, but for what it was shown."""
    text = blank_out(reply, hidden)
    lines = blank_out(text, [told.span for told in found.objects]).splitlines(keepends=True)
    return _Told(
        objects=[told for told in found.objects if text[told.start] == "{" and not shown.has(reply[told.start : told.end])],
        broken=[place for place in found.broken if not text[place].isspace()],
        lines=lines,
        mentions=_mentions(lines, shown),
    )


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


def _is_told_in_json(told: _Told, *, opens: bool) -> bool:
    """Whether a JSON object, and no score line, is the last word of a reply.

    Raises ResponseFormatError where that object cannot be told from what it quotes: it is broken, or something before it is. A reply
    that opens with JSON must be sound as a whole.
    """
    is_last = bool(told.objects) and told.objects[-1].start > told.last_line_at
    if told.broken and (is_last or opens or max(told.broken) > told.last_line_at):
        raise ResponseFormatError("The JSON of the referee's reply is cut off or not valid.")
    return is_last


def _scores_in_json(objects: list[JsonObject], whose: Sequence[int]) -> tuple[_ByAssistant, str]:
    told = {who: _in_objects(objects, who) for who in whose}
    _refuse_missing({who for who, values in told.items() if not values})
    evidence = next((value for value in objects[-1].values("evidence") if isinstance(value, str)), "")
    return {who: _agreed(who, values) for who, values in told.items()}, storable(evidence).strip()


def _in_objects(objects: list[JsonObject], who: int) -> list[str]:
    return [_as_text(value) for told in objects for value in told.values(SCORE_KEYS[who - 1])]


def _refuse_other_scores(scores: _ByAssistant, told: _Told) -> None:
    """No number in the rest of the reply may say otherwise: which of two is the verdict would be a guess."""
    for who, score in scores.items():
        others = _in_objects(told.objects, who) + [mention.value for mention in told.mentions if mention.who == who]
        for text in filter(_NUMBER.match, others):
            if (other := _score(who, text)) != score:
                raise ResponseFormatError(f"The referee's reply gives assistant {who} different scores: {other:g}, {score:g}.")


def _as_text(value: Any) -> str:
    """A score in JSON as it would stand behind a label."""
    if isinstance(value, str):
        return _HEAD.sub("", _plain(value))
    if isinstance(value, float):
        return f"{value:.9f}"
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else type(value).__name__


def _scores_in_lines(reply: str, lines: list[str], mentions: list[_Mention], whose: Sequence[int]) -> tuple[_ByAssistant, str]:
    """From score lines; `lines` are the reply's, with their ends, its JSON blanked out."""
    _refuse_stump(lines)
    block = _last_block(mentions, lines, whose)
    scores = {who: _agreed(who, [mention.value for mention in block if mention.who == who]) for who in whose}
    before = reply[: sum(map(len, lines[: block[0].line]))]
    after = reply[sum(map(len, lines[: block[-1].line + 1])) :]
    evidence = "\n".join((before.strip() or after).splitlines()).strip()
    return scores, _EVIDENCE.sub("", evidence).strip()


def _refuse_stump(lines: list[str]) -> None:
    """A reply that stops inside a score's label was cut off."""
    last = next((line for line in reversed(lines) if line.strip()), "")
    if _STUMP.match(_plain(last).strip(" *_`#>-\t\r\n")):
        raise ResponseFormatError(f"The referee's reply ends inside a score line: {last.strip()!r}.")


def _mentions(lines: list[str], shown: Shown) -> list[_Mention]:
    """The score lines in order, but for those of a text that was shown. Lines that say 'score' are preferred to bare 'Assistant 1: 8' ones.

    A pair is in a text that was shown where both of its lines are: one of them alone may be the same by chance.
    """
    found = [mention for number, line in enumerate(lines) for mention in _in_line(number, _plain(line))]
    own = [mention for pair in _pairs(found, lines) if not all(shown.has(mention.claim) for mention in pair) for mention in pair]
    labelled = [mention for mention in own if mention.labelled]
    return labelled or own


def _pairs(mentions: list[_Mention], lines: list[str]) -> list[list[_Mention]]:
    """Score lines of both assistants that adjoin, together; any other by itself. From the end: the last two are the likeliest pair."""
    pairs: list[list[_Mention]] = []
    for mention in reversed(mentions):
        last = pairs[-1] if pairs else []
        if len(last) == 1 and last[0].who != mention.who and _adjoin(mention.line, last[0].line, lines):
            last.insert(0, mention)
        else:
            pairs.append([mention])
    return pairs[::-1]


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
            yield _Mention(number, int(groups["after"] or groups.get("before") or 0), label[0], value, labelled)


def _last_block(mentions: list[_Mention], lines: list[str], whose: Sequence[int]) -> list[_Mention]:
    """The score lines that count: the last block of them that tells of all assistants asked for.

    A block is a run of score lines with nothing but blank lines or markup between; where the last one tells of one assistant
    only, the block before it is taken in, and so on.
    """
    taken: list[_Mention] = []
    missing = set(whose)
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
    """The head of a line, folded."""
    return fold(line.strip()[:_READ])[:_READ]
