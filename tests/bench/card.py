"""A student of SmolLM2-135M's shape on this machine's card: imitation in bf16, full and LoRA, and responses. No figures without one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from tests.bench.report import Bar, Figure, say
from tests.bench.students import ragged_examples, ragged_instructions
from trainer.config import RunConfig, config_from_dict
from trainer.records import Metric, Preflight, Response, TuningNews
from trainer.student import LocalStudent

STEPS = 40


def measure() -> Iterator[Figure]:
    import torch

    if not torch.cuda.is_available():
        say("there is no CUDA card here: nothing to measure")
        return
    with tempfile.TemporaryDirectory() as folder:
        student = make_student(Path(folder) / "student")
        for method in ("full", "lora"):
            yield from imitation_figures(student, method, Path(folder) / method)
        yield response_figure(student, Path(folder))


def make_student(path: Path) -> Path:
    """30 layers of 576 features over 49,152 tokens, from random weights, with the byte tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from trainer.models import byte_tokenizer

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=256, eos_token_id=257, pad_token_id=258,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def config_of(student: Path, method: str) -> RunConfig:
    return config_from_dict(
        {
            "endpoints": {"teacher": {}},
            "student": {"model": str(student), "method": method, "template": "paper"},
            "imitation": {"first_steps": STEPS, "batch_size": 64, "device_batch_size": 32, "max_length": 1024, "save_steps": 10_000},
            "respond": {"max_new_tokens": 256, "batch_size": 256},
        }
    )


def imitation_figures(student: Path, method: str, folder: Path) -> Iterator[Figure]:
    """Response tokens a second, peak memory beside its estimate, and the share of the card's own speed at matrix products."""
    from trainer.preflight import matmul_speed

    config, news = config_of(student, method), list[TuningNews]()
    LocalStudent(config, folder).imitate(ragged_examples(4000, seed=3), iteration=0, tell=news.append)
    metrics = [told for told in news if isinstance(told, Metric)]
    found = next(told for told in news if isinstance(told, Preflight))
    speeds = sorted(metric.tokens_per_s for metric in metrics if metric.tokens_per_s)
    speed = speeds[len(speeds) // 2]
    device_tokens = speed * found.device_tokens / found.response_tokens
    share = (6 if method == "full" else 4) * found.parameters * device_tokens / matmul_speed(config)
    name = f"card_imitate_{method}"
    yield Figure(
        name=name, value=speed, unit="response tokens/s", bar=Bar(), against=f"{found.device}, {device_tokens:.0f} tokens/s in all"
    )
    memory = max(metric.memory_gib or 0 for metric in metrics)
    yield Figure(name=f"{name}_memory", value=memory, unit="GiB", bar=Bar(), against=f"estimated: {found.memory_needed / 2**30:.2f} GiB")
    yield Figure(name=f"{name}_share", value=share, unit="of the card's matrix products", bar=Bar())


def response_figure(student: Path, folder: Path) -> Figure:
    kept: list[Response] = []
    config: Any = config_of(student, "full")
    speaker = LocalStudent(replace(config, respond=replace(config.respond, temperature=0.7)), folder)
    assert speaker.speaker  # loaded before the clock starts
    started = monotonic()
    speaker.respond(ragged_instructions(256, seed=9), done=frozenset(), keep=kept.extend)
    return Figure(name="card_respond", value=len(kept) / (monotonic() - started), unit="responses/s of 256 tokens", bar=Bar())
