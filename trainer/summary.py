"""`summary.json`: what a run in a folder came to, iteration by iteration; every number is counted from the records."""

from __future__ import annotations

from collections import Counter
from typing import Any

from trainer.folder import FolderBook
from trainer.prices import NANODOLLARS
from trainer.records import Fate, Label, Origin


def summarise(book: FolderBook, *, from_store: int, wall_s: float) -> dict[str, Any]:
    """The summary of all iterations that have begun. `benchmarks` holds macro scores in 0..1; judged = hard + easy + quarantined."""
    begun = [k for k in range(book.config.loop.iterations + 1) if k == 0 or book.student_responses(k) or book.checkpoint(k)]
    return {
        "iterations": [_iteration(book, k) for k in begun],
        "completions": {"asked": len(book.calls), "from_store": from_store, "dollars": book.calls.nanodollars / NANODOLLARS},
        "wall_s": round(wall_s, 1),
    }


def _iteration(book: FolderBook, number: int) -> dict[str, Any]:
    labels = Counter(verdict.label for verdict in book.verdicts(number).values())
    candidates = book.candidates(number)
    new = Counter(candidate.origin for candidate in candidates if candidate.fate is Fate.ACCEPTED)
    rejected = Counter(str(candidate.fate) for candidate in candidates if candidate.fate is not Fate.ACCEPTED)
    checkpoint = book.checkpoint_record(number)
    return {
        "iteration": number,
        "train_pool": len(book.train_pool(number)),
        "cache_pool": len(book.cache_pool(number)) if number else len(book.train_pool(0)),
        "judged": labels.total(),
        "hard": labels[Label.HARD],
        "easy": labels[Label.EASY],
        "quarantined": labels[Label.QUARANTINED],
        "new": {"hard": new[Origin.HARD], "easy": new[Origin.EASY]},
        "rejected": dict(sorted(rejected.items())),
        "loss": {"first": checkpoint["first_loss"], "last": checkpoint["last_loss"]} if checkpoint else None,
        "benchmarks": {name: scores[-1].value for name, scores in book.scores(number).items() if scores},
    }
