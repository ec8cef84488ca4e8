"""Responses of the student to instructions of ragged lengths, against `generate` for one prompt after the other and in fixed batches."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from tests.bench.report import Bar, Figure, in_turn, say
from tests.bench.students import demo_config, ragged_examples, ragged_instructions, tune
from trainer.config import RespondConfig, RunConfig
from trainer.encoding import encode_prompts
from trainer.models import pad_id_of
from trainer.records import Response
from trainer.student import LocalStudent

COUNT = 256
ONE_BY_ONE = 48
"""So many of them, evenly from all, are enough to know the speed of one after the other."""
TEMPERATURE = 0.7
MAX_NEW_TOKENS = 96
BATCH_SIZE = RespondConfig().batch_size
STATIC_SIZES = (8, 16, 32, 64, 128)
"""Fixed batches of like length, longest first; the best of these sizes is what ours is held against."""


def measure() -> Iterator[Figure]:
    config = demo_config(steps=20)
    config = replace(
        config,
        imitation=replace(config.imitation, max_length=128, batch_size=32, device_batch_size=16),
        respond=replace(config.respond, temperature=TEMPERATURE, max_new_tokens=MAX_NEW_TOKENS, batch_size=BATCH_SIZE),
    )
    with tempfile.TemporaryDirectory() as folder:
        start = tune(config, ragged_examples(1000, seed=3), Path(folder))
        student = LocalStudent(config, Path(folder), start, iteration=1)
        pair = in_turn(lambda n: ours(student, n), lambda n: one_by_one(student, config, n), rounds=3, unit=" responses/s")
        against = f"generate for one prompt after the other, a fifth of them: {pair.theirs:.1f} responses/s"
        yield Figure(name="respond", value=pair.ours, unit="responses/s", bar=Bar(ratio_at_least=3), against=against, ratio=pair.ratio)
        best = best_size(student, config)
        pair = in_turn(lambda n: ours(student, n), lambda n: in_batches(student, config, n, size=best), rounds=5, unit=" responses/s")
    against = f"generate in fixed batches of {best}, the best of {', '.join(map(str, STATIC_SIZES))}: {pair.theirs:.1f} responses/s"
    yield Figure(name="respond_static", value=pair.ours, unit="responses/s", bar=Bar(ratio_at_least=1), against=against, ratio=pair.ratio)


def ours(student: LocalStudent, number: int) -> float:
    kept: list[Response] = []
    instructions = ragged_instructions(COUNT, seed=100 + number)
    started = monotonic()
    student.respond(instructions, done=frozenset(), keep=kept.extend)
    took = monotonic() - started
    _tell("ours", [response.tokens for response in kept])
    return len(kept) / took


def one_by_one(student: LocalStudent, config: RunConfig, number: int) -> float:
    """No padding, and each response ends where it ends."""
    return in_batches(student, config, number, size=1, share=COUNT // ONE_BY_ONE)


def best_size(student: LocalStudent, config: RunConfig) -> int:
    """The size of fixed batches that is fastest here, tried on prompts of their own; all is warm by now."""
    speeds = {size: in_batches(student, config, 50, size=size) for size in STATIC_SIZES}
    say("fixed batches: " + ", ".join(f"{size}: {speed:.1f}/s" for size, speed in speeds.items()))
    return max(speeds, key=lambda size: speeds[size])


def in_batches(student: LocalStudent, config: RunConfig, number: int, *, size: int, share: int = 1) -> float:
    """The library's own sampling at the same temperature from the same model, in batches sorted by length; of each `share` one prompt."""
    import torch
    from transformers import GenerationConfig

    speaker = student.speaker
    pad = pad_id_of(speaker.tokenizer)
    make: Any = GenerationConfig  # untyped in the library
    settings = make(
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        eos_token_id=list(speaker.stop_ids),
        pad_token_id=pad,
    )
    torch.manual_seed(number)
    lengths: list[int] = []
    started = monotonic()
    some = ragged_instructions(COUNT, seed=100 + number)[::share]
    prompts = encode_prompts(speaker.tokenizer, some, template=config.student.template)
    if size > 1:
        prompts.sort(key=len, reverse=True)
    with torch.inference_mode():
        for at in range(0, len(prompts), size):
            ids, mask = _padded(prompts[at : at + size], pad)
            output = speaker.model.generate(ids, attention_mask=mask, generation_config=settings)[:, ids.shape[1] :].tolist()
            for row in output:
                end = next((at for at, token in enumerate(row) if token in speaker.stop_ids), len(row))
                speaker.tokenizer.decode(row[:end])
                lengths.append(end)
    took = monotonic() - started
    _tell(f"generate, {size} at once", lengths)
    return len(prompts) / took


def _padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Any, Any]:
    """Ids and mask, (B, T), left-padded."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def _tell(side: str, lengths: list[int]) -> None:
    say(f"{side}: {sum(lengths) / len(lengths):.0f} tokens a response, the longest {max(lengths)}")
