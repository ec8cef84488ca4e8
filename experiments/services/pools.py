"""Seed pools: imported whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import transaction

from experiments.models import SeedInstruction, SeedPool
from trainer.demo.pool import demo_seed_pool
from trainer.errors import ConfigError
from trainer.records import Instruction
from trainer.seed_pools import parse_seed_pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.contrib.auth.models import User


def import_seed_pool(text: str, *, name: str, source: str, licence: str = "", owner: User | None = None) -> SeedPool:
    """Import a seed pool from JSON or JSONL text. Raises SeedPoolError with every bad line, and then imports nothing."""
    if SeedPool.objects.filter(name=name).exists():
        raise ConfigError(f"There is a seed pool {name!r} already. Choose another name.", fields={"name": "This name is taken."})
    parsed = parse_seed_pool(text, name=source)
    return _create(parsed.instructions, name=name, source=source, licence=licence, duplicates=parsed.duplicates, owner=owner)


def get_demo_pool(seed: int) -> SeedPool:
    """The demo's long-tailed pool for a seed, made when it is first asked for."""
    name = f"demo, seed {seed}"
    found = SeedPool.objects.filter(name=name).first()
    return found or _create(demo_seed_pool(seed), name=name, source=f"made for the demo, seed {seed}", licence="Apache-2.0")


def _create(
    instructions: Sequence[Instruction], *, name: str, source: str, licence: str, duplicates: int = 0, owner: User | None = None
) -> SeedPool:
    with transaction.atomic():
        pool = SeedPool.objects.create(name=name, source=source, licence=licence, duplicates=duplicates, owner=owner)
        SeedInstruction.objects.bulk_create(
            [
                SeedInstruction(pool=pool, position=position, text=item.text, input=item.input, kind=item.kind)
                for position, item in enumerate(instructions)
            ],
            batch_size=2000,
        )
    return pool
