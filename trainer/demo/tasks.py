"""Twenty kinds of small text task, in two families, whose answers are computed.

An instruction reads `kind: value`, two words, so that ROUGE-L finds only repeats too similar. Values are 3 to 6 characters from
a-j or 0-9; each kind has three neighbouring lengths. One value in eight is held out of every pool by its hash: those are for the
benchmark alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

LETTERS = "abcdefghij"
DIGITS = "0123456789"
VOWELS = "aei"

HELD_OUT_SHARE = 8
"""One value in this many is held out."""


@dataclass(frozen=True)
class Kind:
    """A kind of task: its family's alphabet, the lengths of its values, and what answers it."""

    name: str
    family: str
    alphabet: str
    lengths: tuple[int, int, int]
    solve: Callable[[str], str]


def _each(replacement: str, alphabet: str) -> Callable[[str], str]:
    """Replace every character of the alphabet by the one at its place in `replacement`."""
    table = str.maketrans(alphabet, replacement)
    return lambda value: value.translate(table)


_TEXT: Mapping[str, Callable[[str], str]] = {
    "copy": lambda value: value,
    "upper": str.upper,
    "shift": _each(LETTERS[1:] + LETTERS[0], LETTERS),
    "back": _each(LETTERS[-1] + LETTERS[:-1], LETTERS),
    "numbers": _each(DIGITS, LETTERS),
    "mask": lambda value: "".join("_" if letter in VOWELS else letter for letter in value),
    "mirror": _each(LETTERS[::-1], LETTERS),
    "sound": lambda value: "".join("v" if letter in VOWELS else "c" for letter in value),
    "ends": lambda value: value[0] + value[-1],
    "rotate": lambda value: value[1:] + value[0],
    "swap": lambda value: value[-1] + value[1:-1] + value[0],
    "reverse": lambda value: value[::-1],
}
_NUMBER: Mapping[str, Callable[[str], str]] = {
    "parity": _each("eo" * 5, DIGITS),
    "next": _each(DIGITS[1:] + DIGITS[0], DIGITS),
    "prev": _each(DIGITS[-1] + DIGITS[:-1], DIGITS),
    "letters": _each(LETTERS, DIGITS),
    "compl": _each(DIGITS[::-1], DIGITS),
    "size": _each("s" * 5 + "b" * 5, DIGITS),
    "twice": _each("0246802468", DIGITS),
    "mod": _each("0120120120", DIGITS),
}


def _kinds(family: str, alphabet: str, solvers: Mapping[str, Callable[[str], str]]) -> dict[str, Kind]:
    lengths = ((3, 4, 5), (4, 5, 6))
    return {name: Kind(name, family, alphabet, lengths[place % 2], solve) for place, (name, solve) in enumerate(solvers.items())}


KINDS: Mapping[str, Kind] = _kinds("text", LETTERS, _TEXT) | _kinds("digits", DIGITS, _NUMBER)


def kind_of(text: str) -> Kind | None:
    """The kind of an instruction, or None where it is none of these tasks."""
    name, colon, value = text.strip().partition(": ")
    kind = KINDS.get(name)
    if kind is None or not colon or not 3 <= len(value) <= 6 or not all(character in kind.alphabet for character in value):
        return None
    return kind


def answer(text: str) -> str | None:
    """The exact answer to an instruction, or None where it is none of these tasks."""
    kind = kind_of(text)
    return kind.solve(text.strip().partition(": ")[2]) if kind else None


def is_held_out(text: str) -> bool:
    """Whether an instruction is kept for the benchmark; decided by its hash, the same everywhere and for ever."""
    return hashlib.sha256(f"held out {text}".encode()).digest()[0] % HELD_OUT_SHARE == 0


def make_instruction(kind: Kind, rng: random.Random, *, length: int = 0, held_out: bool = False) -> str:
    """A random instruction of a kind, of one of its lengths (any, where `length` is 0), on the wanted side of the hold-out."""
    while True:
        value = "".join(rng.choices(kind.alphabet, k=length or rng.choice(kind.lengths)))
        text = f"{kind.name}: {value}"
        if is_held_out(text) == held_out:
            return text


def family_of(kind: Kind) -> list[Kind]:
    """The other kinds of a kind's family, in the order of KINDS."""
    return [other for other in KINDS.values() if other.family == kind.family and other.name != kind.name]
