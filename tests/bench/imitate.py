"""Imitation against a plain transformers.Trainer with a padding collator and, where it is installed, TRL's SFTTrainer.

All have the same examples, model, batch size and optimizer, and learn the responses alone. Each round of each side has a process of its
own, for its peak memory. Three kinds of data: texts of ragged lengths (a batch in several device batches), the demo's short ones (a
batch in one piece), and a model of 32,000 tokens, as real students have them, whose scores are most of a step.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

from tests.bench.report import Bar, Figure, in_turn, say
from tests.bench.students import demo_config, demo_examples, ragged_examples
from tests.stack import ROOT
from trainer.config import RunConfig

ROUNDS = 3
RAGGED_STEPS, DEMO_STEPS, WIDE_STEPS = 12, 60, 4
WIDE_VOCABULARY = 32_000
OTHERS = {"plain": "transformers.Trainer with padding", "trl": "TRL's SFTTrainer"}


def measure() -> Iterator[Figure]:
    others = [side for side in OTHERS if side != "trl" or find_spec("trl")]
    if "trl" not in others:
        say("TRL is not installed (pip install trl): compared with transformers.Trainer alone")
    for data, name in (("ragged", "imitate"), ("demo", "imitate_demo"), ("wide", "imitate_wide")):
        yield from _measure(data, name, others)


def _measure(data: str, name: str, others: list[str]) -> Iterator[Figure]:
    speed: dict[str, list[float]] = {side: [] for side in ("ours", *others)}
    memory: dict[str, list[float]] = {side: [] for side in ("ours", *others)}

    def run(side: str) -> float:
        command = [sys.executable, "-m", "tests.bench.imitate", side, data]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
        memory[side].append(told["peak_gib"])
        speed[side].append(told["tokens_per_s"])
        return float(told["tokens_per_s"])

    say(f"{data} examples")
    pair = in_turn(lambda n: run("ours"), lambda n: max(run(side) for side in others), rounds=ROUNDS, unit=" tokens/s")
    yield Figure(
        name=name, value=pair.ours, unit="response tokens/s", bar=Bar(ratio_at_least=1.0), ratio=pair.ratio,
        against=", ".join(f"{OTHERS[side]}: {median(speed[side]):.0f} tokens/s" for side in others),
    )  # fmt: skip
    ours, least = median(memory["ours"]), min(median(memory[side]) for side in others)
    yield Figure(
        name=f"{name}_memory", value=ours, unit="GiB", bar=Bar(at_most=float(f"{least:.3g}")), ratio=ours / least,
        against=", ".join(f"{OTHERS[side]}: {median(memory[side]):.3g} GiB" for side in others),
    )  # fmt: skip


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def prepare(data: str) -> tuple[RunConfig, Any, Any, list[Any]]:
    """Config, model, tokenizer and encoded examples of one kind of data."""
    import torch

    from trainer.examples import EncodedExample, encode_examples
    from trainer.imitation import load_trainable
    from trainer.models import load_tokenizer

    steps = {"demo": DEMO_STEPS, "ragged": RAGGED_STEPS, "wide": WIDE_STEPS}[data]
    config = demo_config(steps=steps)
    if data != "demo":
        config = replace(config, imitation=replace(config.imitation, max_length=512, batch_size=32, device_batch_size=8))
    tokenizer = load_tokenizer(config, None)
    if data == "wide":
        rng = Random(7)
        lengths = [(rng.randint(8, 200), min(300, max(4, round(rng.lognormvariate(4.2, 0.8))))) for _ in range(400)]
        made = [
            EncodedExample(torch.tensor([rng.randrange(WIDE_VOCABULARY) for _ in range(prompt + response)], dtype=torch.int32), prompt)
            for prompt, response in lengths
        ]
        return config, wide_model(), tokenizer, made
    examples = demo_examples() if data == "demo" else ragged_examples(1500, seed=5)
    encoded = encode_examples(tokenizer, examples, template=config.student.template, max_length=config.imitation.max_length)
    return config, load_trainable(config, None, iteration=0), tokenizer, encoded.examples


def wide_model() -> Any:
    """A Llama of 256 features and 4 layers with a vocabulary of a real size."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WIDE_VOCABULARY, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=True,
        )
    )  # fmt: skip


def tune_once(side: str, data: str) -> dict[str, float]:
    """Response tokens per second of one tuning, its imports left out, and the peak memory of this process."""
    from trainer.examples import PlannedExamples, plan_order
    from trainer.models import pad_id_of
    from trainer.tuning import Tuning, peak_memory_gib, training_arguments

    config, model, tokenizer, encoded = prepare(data)
    steps = config.imitation.first_steps
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(config, Path(folder), steps=steps, iteration=0, device_batch=config.imitation.device_batch_size)
        if side == "ours":
            order = plan_order([len(e.ids) for e in encoded], steps=steps, config=config, iteration=0)
            trainer: Any = Tuning(
                model=model,
                arguments=arguments,
                examples=PlannedExamples(encoded, order),
                pad_id=pad_id_of(tokenizer),
                packed=False,
                tell=lambda news: None,
                should_stop=lambda: False,
                save_bytes=0,
            )
            tokens = trainer.response_tokens[steps]
            started = monotonic()
            trainer.train()
            took = monotonic() - started
        else:
            arguments.train_sampling_strategy = "random"
            arguments.save_strategy = "no"
            tokens, took = (_plain if side == "plain" else _trl)(model, arguments, encoded, tokenizer)
    return {"tokens_per_s": tokens / took, "peak_gib": peak_memory_gib()}


class Counted:
    """A collator that counts the labels it gives."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate
        self.learnt = 0

    def __call__(self, rows: list[Any]) -> Any:
        batch = self.collate(rows)
        self.learnt += int((batch["labels"] != -100).sum())
        return batch


def _plain(model: Any, arguments: Any, encoded: list[Any], tokenizer: Any) -> tuple[int, float]:
    """The tokens learnt and the seconds of the library's own loop, as its examples set it up."""
    from transformers import DataCollatorForSeq2Seq, Trainer

    from trainer.examples import IGNORE_INDEX

    rows = [{"input_ids": e.ids.tolist(), "labels": [IGNORE_INDEX] * e.prompt_length + e.ids[e.prompt_length :].tolist()} for e in encoded]
    collate = Counted(DataCollatorForSeq2Seq(tokenizer))
    trainer: Any = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    started = monotonic()
    trainer.train()
    return collate.learnt, monotonic() - started


def _trl(model: Any, arguments: Any, encoded: list[Any], tokenizer: Any) -> tuple[int, float]:
    """The same of SFTTrainer, with the loss on the completion alone."""
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from trl import SFTConfig, SFTTrainer

    taken = (
        "output_dir", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type",
        "warmup_steps", "weight_decay", "max_grad_norm", "use_cpu", "seed", "logging_steps", "report_to", "disable_tqdm",
    )  # fmt: skip
    settings = SFTConfig(
        **{name: getattr(arguments, name) for name in taken}, save_strategy="no", max_length=512, completion_only_loss=True, bf16=False,
        gradient_checkpointing=False,
    )  # fmt: skip
    columns = {
        "input_ids": [e.ids.tolist() for e in encoded],
        "completion_mask": [[0] * e.prompt_length + [1] * e.response_tokens for e in encoded],
    }
    # A fingerprint of its own: the one the library would make fails with some versions of pyarrow.
    data = Dataset(InMemoryTable.from_pydict(columns), fingerprint="imitate")
    trainer: Any = SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
    collate = trainer.data_collator = Counted(trainer.data_collator)
    started = monotonic()
    trainer.train()
    return collate.learnt, monotonic() - started


if __name__ == "__main__":
    json.dump(tune_once(*sys.argv[1:3]), sys.stdout)
    print()
