"""The student made from nothing, tuned a little on texts of ragged lengths or on the demo's tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.bench.corpus import Writer
from tests.bench.report import say
from trainer.config import RunConfig, load_preset
from trainer.demo.pool import demo_seed_pool
from trainer.demo.tasks import answer
from trainer.records import Example, Instruction


def demo_config(*, steps: int) -> RunConfig:
    preset = load_preset("demo")
    return replace(preset, imitation=replace(preset.imitation, first_steps=steps, save_steps=steps, log_steps=steps))


def ragged_instructions(count: int, *, seed: int) -> list[Instruction]:
    """Instructions of 10 to a few hundred bytes."""
    return [Instruction(key=f"seed-{at:06d}", text=text) for at, text in enumerate(Writer(seed).texts(count))]


def ragged_examples(count: int, *, seed: int) -> list[Example]:
    """Each with a response of one to a few dozen words, cut at 60 of them."""
    writer = Writer(seed + 1)
    lengths = (min(60, max(1, round(writer.rng.lognormvariate(2.3, 0.9)))) for _ in range(count))
    return [
        Example(instruction=instruction, response=" ".join(writer.words(length)))
        for instruction, length in zip(ragged_instructions(count, seed=seed), lengths, strict=True)
    ]


def demo_examples() -> list[Example]:
    """The demo's seed pool with the exact answers."""
    return [Example(instruction=i, response=answer(i.text) or "") for i in demo_seed_pool(1)]


def tune(config: RunConfig, examples: Sequence[Example], folder: Path) -> Path:
    """A checkpoint in the folder, so that the student stops by itself as a real one does."""
    from trainer.imitation import imitate

    say(f"tuning a student for {config.imitation.first_steps} steps")
    return imitate(config, examples, iteration=0, start=None, folder=folder, tell=lambda metric: None).path
