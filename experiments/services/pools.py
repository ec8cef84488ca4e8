"""Seed pools: imported whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import IntegrityError, transaction

from experiments.models import SeedInstruction, SeedPool
from trainer.demo.pool import demo_seed_pool
from trainer.errors import ConfigError
from trainer.records import Instruction
from trainer.seed_pools import parse_seed_pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.contrib.auth.models import User


DEMO_NAME = "demo, seed"
"""What the names of the demo's own pools begin with; nobody else's may, or a demo would start from it."""


def import_seed_pool(text: str, *, name: str, source: str, licence: str = "", owner: User | None = None) -> SeedPool:
    """Import a seed pool from JSON or JSONL text, whole or not at all.

    Raises SeedPoolError with every bad line, and ConfigError for a name that is taken or the demo's.
    """
    if name.strip().casefold().startswith(DEMO_NAME):
        told = f"Names that begin with {DEMO_NAME!r} are the demo's own."
        raise ConfigError(f"{told} Choose another name than {name!r}.", fields={"name": f"{told} Choose another."})
    if SeedPool.objects.filter(name=name).exists():
        raise _name_taken(name)
    parsed = parse_seed_pool(text, name=source)
    try:
        return _create(parsed.instructions, name=name, source=source, licence=licence, duplicates=parsed.duplicates, owner=owner)
    except IntegrityError:  # somebody took the name in the meantime
        raise _name_taken(name) from None


def _name_taken(name: str) -> ConfigError:
    return ConfigError(f"There is a seed pool {name!r} already. Choose another name.", fields={"name": "This name is taken."})


def get_demo_pool(seed: int) -> SeedPool:
    """The demo's long-tailed pool for a seed, made when it is first asked for."""
    name = f"{DEMO_NAME} {seed}"
    found = SeedPool.objects.filter(name=name).first()
    if found:
        return found
    try:
        return _create(demo_seed_pool(seed), name=name, source=f"made for the demo, seed {seed}", licence="Apache-2.0")
    except IntegrityError:  # made in the meantime by another launch; the same instructions
        return SeedPool.objects.get(name=name)


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
