"""Imitation against a plain transformers.Trainer with a padding collator: the same examples, model, batches and optimizer.

Each round of each side has a process of its own, for its peak memory. Two kinds of data: texts of ragged lengths in the paper's
way (a batch in several device batches), and the demo's short ones (a batch in one piece).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from tests.bench.report import Bar, Figure, in_turn, say
from tests.bench.students import demo_config, demo_examples, ragged_examples
from tests.stack import ROOT
from trainer.config import RunConfig
from trainer.records import Example

ROUNDS = 3
RAGGED_STEPS, DEMO_STEPS = 12, 60


def measure() -> Iterator[Figure]:
    for data, name in (("ragged", "imitate"), ("demo", "imitate_demo")):
        yield from _measure(data, name)


def _measure(data: str, name: str) -> Iterator[Figure]:
    memory: dict[str, list[float]] = {"ours": [], "theirs": []}

    def run(side: str) -> float:
        command = [sys.executable, "-m", "tests.bench.imitate", side, data]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
        memory[side].append(told["peak_gib"])
        return float(told["tokens_per_s"])

    say(f"{data} examples")
    pair = in_turn(lambda n: run("ours"), lambda n: run("theirs"), rounds=ROUNDS, unit=" tokens/s")
    against = f"transformers.Trainer with padding: {pair.theirs:.0f} tokens/s"
    yield Figure(name=name, value=pair.ours, unit="response tokens/s", bar=Bar(ratio_at_least=1.0), against=against, ratio=pair.ratio)
    ours, theirs = sorted(memory["ours"])[ROUNDS // 2], sorted(memory["theirs"])[ROUNDS // 2]
    yield Figure(
        name=f"{name}_memory", value=ours, unit="GiB", bar=Bar(at_most=float(f"{theirs:.3g}")),
        against=f"transformers.Trainer with padding: {theirs:.3g} GiB", ratio=ours / theirs,
    )  # fmt: skip


def settings_of(data: str) -> tuple[RunConfig, list[Example]]:
    if data == "demo":
        return demo_config(steps=DEMO_STEPS), demo_examples()
    config = demo_config(steps=RAGGED_STEPS)
    return replace(config, imitation=replace(config.imitation, max_length=512, batch_size=32, device_batch_size=8)), ragged_examples(
        1500, seed=5
    )


def tune_once(side: str, data: str) -> dict[str, float]:
    """Response tokens per second of one tuning, its imports left out, and the peak memory of this process."""
    from trainer import imitation
    from trainer.models import load_tokenizer, pad_id_of

    config, examples = settings_of(data)
    tokenizer = load_tokenizer(config, None)
    model = imitation.load_trainable(config, None, iteration=0)
    encoded = imitation.encode_examples(tokenizer, examples, template=config.student.template, max_length=config.imitation.max_length)
    steps = config.imitation.first_steps
    with tempfile.TemporaryDirectory() as folder:
        arguments = imitation.training_arguments(config, Path(folder), steps=steps, iteration=0)
        if side == "ours":
            order = imitation.plan_order([len(e.ids) for e in encoded], steps=steps, config=config, iteration=0)
            trainer: Any = imitation.Tuning(
                model=model,
                arguments=arguments,
                examples=imitation.EncodedExamples(encoded, order),
                pad_id=pad_id_of(tokenizer),
                tell=lambda news: None,
                should_stop=lambda: False,
                save_bytes=0,
            )
            tokens = trainer.response_tokens[steps]
            started = monotonic()
            trainer.train()
            took = monotonic() - started
        else:
            tokens, took = _plain(model, arguments, encoded, tokenizer)
    return {"tokens_per_s": tokens / took, "peak_gib": imitation.peak_memory_gib()}


def _plain(model: Any, arguments: Any, encoded: list[Any], tokenizer: Any) -> tuple[int, float]:
    """The tokens learnt and the seconds of the library's own loop, as its examples set it up."""
    from transformers import DataCollatorForSeq2Seq, Trainer

    from trainer.imitation import IGNORE_INDEX

    rows = [{"input_ids": e.ids.tolist(), "labels": [IGNORE_INDEX] * e.prompt_length + e.ids[e.prompt_length :].tolist()} for e in encoded]
    pad: Any = DataCollatorForSeq2Seq(tokenizer)
    learnt = 0

    def collate(batch: list[dict[str, list[int]]]) -> Any:
        nonlocal learnt
        learnt += sum(label != IGNORE_INDEX for row in batch for label in row["labels"])
        return pad(batch)

    arguments.train_sampling_strategy = "random"
    arguments.save_strategy = "no"
    trainer: Any = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    started = monotonic()
    trainer.train()
    return learnt, monotonic() - started


if __name__ == "__main__":
    json.dump(tune_once(*sys.argv[1:3]), sys.stdout)
    print()
