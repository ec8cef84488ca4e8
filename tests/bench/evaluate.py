"""A benchmark answered greedily by the student made from nothing: in its batches, against one item after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

from tests.bench.report import Bar, Figure, in_turn
from tests.bench.students import demo_config, demo_examples, tune
from trainer.benchmarks import get_benchmark
from trainer.config import RunConfig
from trainer.encoding import encode_prompts
from trainer.records import BenchmarkItem, Instruction
from trainer.student import LocalStudent

ONE_BY_ONE = 120
"""So many of the items, evenly from all of them, are enough to know the speed of one after the other."""


def measure() -> Iterator[Figure]:
    config = demo_config(steps=120)
    with tempfile.TemporaryDirectory() as folder:
        start = tune(config, demo_examples(), Path(folder))
        student = LocalStudent(config, Path(folder), start)
        items = list(get_benchmark("demo_skills").items())
        some = items[:: len(items) // ONE_BY_ONE]
        pair = in_turn(lambda n: batched(student, items), lambda n: one_by_one(student, config, some), rounds=3, unit=" items/s")
    against = f"generate for one item after the other, {len(some)} of them: {pair.theirs:.1f} items/s"
    yield Figure(name="evaluate", value=pair.ours, unit="items/s", bar=Bar(ratio_at_least=3), against=against, ratio=pair.ratio)


def batched(student: LocalStudent, items: list[BenchmarkItem]) -> float:
    """The whole benchmark, scoring included."""
    correct = get_benchmark("demo_skills").correct
    kept: list[bool] = []
    started = monotonic()
    student.answer(items, done=frozenset(), keep=lambda replies: kept.extend(correct(item, reply) for item, reply in replies))
    return len(kept) / (monotonic() - started)


def one_by_one(student: LocalStudent, config: RunConfig, items: list[BenchmarkItem]) -> float:
    import torch
    from transformers import GenerationConfig

    speaker = student.speaker
    make: Any = GenerationConfig  # untyped in the library
    settings = make(max_new_tokens=config.respond.max_new_tokens, do_sample=False, eos_token_id=list(speaker.stop_ids))
    correct = get_benchmark("demo_skills").correct
    kept: list[bool] = []
    started = monotonic()
    prompts = encode_prompts(speaker.tokenizer, [Instruction(key=i.key, text=i.prompt) for i in items], template=config.student.template)
    with torch.inference_mode():
        for item, prompt in zip(items, prompts, strict=True):
            ids = torch.tensor([prompt])
            output = speaker.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            kept.append(correct(item, speaker.tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)))
    return len(kept) / (monotonic() - started)
