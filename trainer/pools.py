"""Train pool and cache pool of each iteration, as the paper updates them: the train pool is replaced, the cache pool extended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trainer.config import LoopConfig, RunConfig
from trainer.records import Instruction, Origin
from trainer.seeds import stream


def train_pool(instructions: Iterable[Instruction], iteration: int, *, config: LoopConfig) -> list[Instruction]:
    """What the student is tuned on in an iteration: its new instructions, or with `accumulate` all up to it."""
    if config.train_pool == "accumulate":
        return [i for i in instructions if i.iteration <= iteration]
    return [i for i in instructions if i.iteration == iteration]


def cache_pool(instructions: Iterable[Instruction], iteration: int) -> list[Instruction]:
    """What the student is judged on in an iteration: everything made before it."""
    return [i for i in instructions if i.iteration < iteration]


def judged_pool(pool: Sequence[Instruction], iteration: int, *, config: RunConfig) -> list[Instruction]:
    """What of the cache pool is judged in an iteration, in its order: all of it, or a random sample where the config wants one."""
    most = config.discrimination.sample
    if not 0 < most < len(pool):
        return list(pool)
    chosen = stream(config.seed, "judged", iteration).sample(range(len(pool)), most)
    return [pool[place] for place in sorted(chosen)]


def wanted(config: LoopConfig) -> dict[Origin, int]:
    """How many new instructions of each origin an iteration is to make; an odd one goes to hard."""
    if config.parents == "uniform":
        return {Origin.HARD: config.new_per_iteration}
    hard, easy = (int(part) for part in config.ratio.split(":"))
    easy_count = config.new_per_iteration * easy // (hard + easy)
    return {Origin.HARD: config.new_per_iteration - easy_count, Origin.EASY: easy_count}
