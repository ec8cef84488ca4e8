"""Numbers as people type them: 1,000 is read, and what could mean two things is asked back rather than guessed."""

from __future__ import annotations

import re
from decimal import Decimal

NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+|\d{1,3}(,\d{3})+(\.\d*)?)", re.ASCII)
DIGITS_AND_MARKS = re.compile(r"-?[\d,. ]*\d[\d,. ]*", re.ASCII)


class NotANumberError(ValueError):
    """What was typed is no number, or could be two of them; the text is one that a form can show."""


def read_number(typed: str, *, wanted: str) -> Decimal | None:
    """The number that was typed, None where nothing was. wanted: what is to be given, in words. Raises NotANumberError."""
    text = typed.strip()
    if not text:
        return None
    if NUMBER.fullmatch(text):
        return Decimal(text.replace(",", ""))
    if DIGITS_AND_MARKS.fullmatch(text):
        raise NotANumberError(f"{text} can be read in more than one way. Write decimals as in 1.50 and thousands as in 1,000 or 1000.")
    raise NotANumberError(f"Give {wanted}.")


def read_dollars(typed: str, *, wanted: str) -> Decimal | None:
    """As `read_number`, of money: a dollar sign may stand before it."""
    return read_number(typed.strip().removeprefix("$"), wanted=wanted)


def read_whole_number(typed: str, *, wanted: str) -> int | None:
    """As `read_number`, of what is counted."""
    number = read_number(typed, wanted=wanted)
    if number is None:
        return None
    if number != number.to_integral_value():
        raise NotANumberError(f"Give {wanted}.")
    return int(number)
