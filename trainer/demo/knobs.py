"""The faults and limits that the offline teacher can be asked for: the one source of its command line options."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any


def _knob(default: Any, help: str, *, low: float = 0.0, high: float = math.inf) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high})


def _share_of(help: str) -> Any:
    return _knob(0.0, f"share of {help}", high=1.0)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """All off by default. Shares are 0..1, drawn by the request's hash; those of attempts are drawn anew for each attempt."""

    seed: int = _knob(0, "another seed draws other replies", low=-math.inf)
    latency_ms: float = _knob(0.0, "wait before each answer")
    rpm: float = _knob(0.0, "requests a minute before 429, in a bucket that holds one second's worth; 0 is no limit")
    tpm: float = _knob(0.0, "tokens of prompts and replies a minute before 429, in such a bucket too; 0 is no limit")
    at_once: int = _knob(0, "requests under way at one time before 429; 0 is no limit")
    no_limit_headers: bool = _knob(False, "say nothing of limits in headers, nor when to come again")
    limited_rate: float = _share_of("attempts answered 429, to come again after 100 ms")
    error_rate: float = _share_of("attempts answered 500")
    hang_rate: float = _share_of("attempts that are charged and never answered")
    reset_rate: float = _share_of("attempts that are charged and whose connection breaks in the middle of the reply")
    mangle_rate: float = _share_of("attempts that are charged and whose reply is broken JSON")
    cut_rate: float = _share_of("requests whose reply is cut off in the middle")
    garble: float = _share_of("replies that cannot be used; another `seed` has another chance")
    no_usage: bool = _knob(False, "replies do not say how many tokens they took")
    refuse_structured: bool = _knob(False, "answer 400 to any response_format")
    position_bias: float = _knob(0.0, "points by which the response that is read first is preferred", low=-math.inf)
    inject: float = _share_of("new instructions that speak to the referee")
    batch_s: float = _knob(1.0, "seconds that a batch takes")
    batch_tokens: float = _knob(0.0, "tokens of prompts and replies in open batches before the next one fails as a whole; 0 is no limit")
    batch_failed: float = _share_of("lines of batches that fail with 500 the first time")
    batch_expires: float = _share_of("lines left undone, by attempt, when their batch expires")
    batch_refused: bool = _knob(False, "every batch fails its validation")

    def options(self) -> list[str]:
        """The command line options that give these knobs."""
        values = {name: value for name, value in vars(self).items() if value is not False}
        return [_option(name) if value is True else f"{_option(name)}={value}" for name, value in values.items()]


def add_knobs(parser: argparse.ArgumentParser) -> None:
    """An option for each knob."""
    for knob in fields(Knobs):
        told = {"help": knob.metadata["help"], "default": knob.default}
        if isinstance(knob.default, bool):
            parser.add_argument(_option(knob.name), action="store_true", **told)
        else:
            kind = int if isinstance(knob.default, int) else float
            parser.add_argument(_option(knob.name), type=_number(kind, knob.metadata), **told)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _number(kind: type[int] | type[float], limits: Mapping[str, Any]) -> Callable[[str], float]:
    low, high = limits["low"], limits["high"]

    def read(text: str) -> float:
        value = kind(text)
        if not (low <= value <= high and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text} is not a number from {low:g} to {high:g}")
        return value

    read.__name__ = "number"  # argparse names it where the text is no number at all
    return read
