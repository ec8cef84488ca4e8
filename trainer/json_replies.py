"""JSON objects in a model's reply: bare, fenced, in the middle of prose; and places that only look like one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.quotations import Span, blank_out

_THOUGHTS = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
_FIRST = re.compile(r"\s*(?:`{3,}\s*\w*\s*)?(?P<brace>\{)")
_MOST_BROKEN = 20
"""Where so many objects cannot be read, the rest is not looked at: no reply can then be made slow to read."""

_decode = json.JSONDecoder(object_pairs_hook=tuple, strict=False).raw_decode
"""Keeps each pair of an object, so that a key that is there twice is seen; line breaks in strings are let pass."""


@dataclass(frozen=True)
class JsonObject:
    """An object at text[start:end], as its pairs of key and value."""

    start: int
    end: int
    pairs: tuple[tuple[str, Any], ...]

    @property
    def span(self) -> Span:
        return self.start, self.end

    def values(self, key: str) -> list[Any]:
        """All values of a key, in order: more than one where the reply repeats it."""
        return [value for name, value in self.pairs if name == key]


@dataclass(frozen=True)
class JsonReply:
    """The objects in a reply that have one of the keys asked for.

    broken: places of objects that cannot be read, and of such keys outside of all objects. opens: the reply begins with such an object,
    whole or broken.
    """

    objects: list[JsonObject]
    broken: list[int]
    opens: bool


def find_json(text: str, keys: Sequence[str]) -> JsonReply:
    """Look for objects with any of these keys, one after another, what is inside of one left alone; thoughts at the head are skipped."""
    key = re.compile(rf'"(?:{"|".join(map(re.escape, keys))})"\s*:')
    begins = re.compile(rf"(?P<brace>\{{)\s*{key.pattern}")
    thoughts = _THOUGHTS.match(text)
    head = thoughts.end() if thoughts else 0
    first = _FIRST.match(text, head)
    read, broken = _read_objects(text, first or begins.search(text, head), begins)
    objects = [found for found in read if any(name in keys for name, _ in found.pairs)]
    opens_at = first.start("brace") if first else -1
    opens = opens_at in [found.start for found in objects] or begins.match(text, max(0, opens_at)) is not None
    loose = [match.start() for match in key.finditer(blank_out(text, [found.span for found in objects]), head)]
    return JsonReply(objects, broken + loose, opens)


def _read_objects(text: str, match: re.Match[str] | None, begins: re.Pattern[str]) -> tuple[list[JsonObject], list[int]]:
    """Every object from the first match on, and where one begins that cannot be read."""
    objects: list[JsonObject] = []
    broken: list[int] = []
    while match and len(broken) < _MOST_BROKEN:
        start, at = match.start("brace"), match.end()
        try:
            pairs, at = _decode(text, start)
            objects.append(JsonObject(start, at, pairs))
        except (ValueError, RecursionError):
            broken.append(start)
        match = begins.search(text, at)
    return objects, broken
