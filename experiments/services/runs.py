"""Runs: launched with a frozen config on a copy of their seed pool."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

from django.db import transaction

from experiments.models import Budget, Experiment, Instruction, Iteration, Run, SeedInstruction, SeedPool
from experiments.services.jobs import advance
from trainer.config import RunConfig
from trainer.errors import ConfigError
from trainer.plan import plan
from trainer.records import Origin

if TYPE_CHECKING:
    from django.contrib.auth.models import User

WORDS: dict[str, list[str]] = json.loads((Path(__file__).parent / "run_names.json").read_text(encoding="utf-8"))


def new_name() -> str:
    """A name of two words and a number that no run has yet."""
    number = Run.objects.order_by("-id").values_list("id", flat=True).first() or 0
    return f"{random.choice(WORDS['adjectives'])}-{random.choice(WORDS['nouns'])}-{number + 1}"


def launch(
    config: RunConfig,
    *,
    experiment: Experiment,
    seed_pool: SeedPool,
    owner: User,
    name: str = "",
    most_calls: int | None = None,
    most_nanodollars: int | None = None,
) -> Run:
    """Make a run with its iteration 0, its own copy of the seeds and its budget, and queue its first job.

    Raises ConfigError for an empty pool.
    """
    with transaction.atomic():
        run = Run.objects.create(
            experiment=experiment,
            name=name or new_name(),
            owner=owner,
            config=config.as_dict(),
            seed=config.seed,
            seed_pool=seed_pool,
            steps=sum(1 for _ in plan(config)),
        )
        iteration = Iteration.objects.create(run=run, number=0)
        if not _copy_seeds(seed_pool, iteration):
            raise ConfigError(
                f"Seed pool {seed_pool.name!r} is empty. Import instructions first.", fields={"seed_pool": "This pool is empty."}
            )
        if most_calls is not None or most_nanodollars is not None:
            Budget.objects.create(run=run, most_calls=most_calls, most_nanodollars=most_nanodollars, set_by=owner)
        advance(run.pk)
    return run


def _copy_seeds(pool: SeedPool, iteration: Iteration) -> int:
    seeds = SeedInstruction.objects.filter(pool=pool).order_by("position")
    rows = [
        Instruction(
            run_id=iteration.run_id,
            iteration=iteration,
            key=f"seed-{seed.position:06d}",
            position=seed.position,
            text=seed.text,
            input=seed.input,
            origin=Origin.SEED,
            kind=seed.kind,
        )
        for seed in seeds.iterator()
    ]
    Instruction.objects.bulk_create(rows, batch_size=2000)
    return len(rows)
