"""The benchmark `demo_skills`: sixty held-out items of each kind of demo task, exact match."""

from __future__ import annotations

from functools import cache

from trainer.demo.tasks import KINDS, Kind, answer, make_instruction
from trainer.records import BenchmarkItem
from trainer.seeds import stream

ITEMS_PER_KIND = 60
_ITEMS_SEED = 0
"""The items are part of the benchmark: the same in every run."""


def demo_skill_items() -> list[BenchmarkItem]:
    """The 1,200 items, kind by kind, twenty of each of a kind's lengths; none is in any seed pool or generated."""
    return list(_items())


def score_demo_skill(item: BenchmarkItem, reply: str) -> bool:
    """Right when the reply, without the blanks around it, is the exact answer."""
    return reply.strip() == item.gold


@cache
def _items() -> tuple[BenchmarkItem, ...]:
    return tuple(
        BenchmarkItem(key=f"demo_skills-{kind.name}-{number:02d}", task=kind.name, prompt=text, gold=answer(text) or "")
        for kind in KINDS.values()
        for number, text in enumerate(_held_out_texts(kind))
    )


def _held_out_texts(kind: Kind) -> list[str]:
    rng = stream(_ITEMS_SEED, "demo_skills", kind.name)
    texts: list[str] = []
    for length in kind.lengths:
        unique: dict[str, None] = {}
        while len(unique) < ITEMS_PER_KIND // len(kind.lengths):
            unique.setdefault(make_instruction(kind, rng, length=length, held_out=True))
        texts.extend(unique)
    return texts
