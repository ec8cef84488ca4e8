"""Every permission to make a call, written down before it is used, so that a budget counts what a killed process had sent.

A file of lines, only ever added to. A call is one line where it is permitted, and one more where it ended and cannot have been paid.
Whatever was permitted, was not unpaid and has no answer that is kept may have been paid: it was not answered, or nobody lived to keep
the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.calls import Call
from trainer.jsonl import read_jsonl, write_jsonl


@dataclass(frozen=True)
class Unanswered:
    """An attempt without an answer, at the most that it can have cost."""

    role: str
    most_nanodollars: int


class Attempts:
    """The file of a run's attempts; without a path, nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def note(self, *, permitted: Sequence[Call], unpaid: Sequence[Call]) -> None:
        """Durable when it returns."""
        records: list[dict[str, Any]] = [
            *({"unpaid": call.key} for call in unpaid),
            *({"permitted": call.key, "role": call.role, "most_nanodollars": call.most_nanodollars} for call in permitted),
        ]
        if self._path is not None and records:
            write_jsonl(self._path, records, append=True)

    def unanswered(self, answered: Collection[str]) -> list[Unanswered]:
        """The attempts that may have been paid without an answer; `answered` are the keys of those that are kept."""
        waiting: dict[str, list[Unanswered]] = {}
        for record in read_jsonl(self._path) if self._path is not None else ():
            if "permitted" in record:
                waiting.setdefault(record["permitted"], []).append(Unanswered(record["role"], record["most_nanodollars"]))
            elif waiting.get(record["unpaid"]):
                waiting[record["unpaid"]].pop()
        return [attempt for key, attempts in waiting.items() for attempt in attempts[1 if key in answered else 0 :]]
