"""Responses of the student to instructions of ragged lengths: in its batches, against `generate` for one prompt after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from tests.bench.report import Bar, Figure, in_turn, say
from tests.bench.students import demo_config, ragged_examples, ragged_instructions, tune
from trainer.config import RespondConfig, RunConfig
from trainer.encoding import encode_prompts
from trainer.records import Response
from trainer.student import LocalStudent

COUNT = 256
ONE_BY_ONE = 48
"""So many of them, evenly from all, are enough to know the speed of one after the other."""
TEMPERATURE = 0.7
MAX_NEW_TOKENS = 96
BATCH_SIZE = RespondConfig().batch_size
"""The default, since lengths are ragged: in one batch of 256 all would be padded to the longest, and slower than one by one."""


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
        pair = in_turn(lambda n: batched(student, n), lambda n: one_by_one(student, config, n), rounds=3, unit=" responses/s")
    against = f"generate for one prompt after the other, a fifth of them: {pair.theirs:.1f} responses/s"
    yield Figure(name="respond", value=pair.ours, unit="responses/s", bar=Bar(ratio_at_least=3), against=against, ratio=pair.ratio)


def batched(student: LocalStudent, number: int) -> float:
    kept: list[Response] = []
    instructions = ragged_instructions(COUNT, seed=100 + number)
    started = monotonic()
    student.respond(instructions, done=frozenset(), keep=kept.extend)
    took = monotonic() - started
    _tell("ours", [response.tokens for response in kept])
    return len(kept) / took


def one_by_one(student: LocalStudent, config: RunConfig, number: int) -> float:
    """The library's own sampling at the same temperature from the same model: no padding, and each response ends where it ends."""
    import torch
    from transformers import GenerationConfig

    speaker = student.speaker
    make: Any = GenerationConfig  # untyped in the library
    settings = make(max_new_tokens=MAX_NEW_TOKENS, do_sample=True, temperature=TEMPERATURE, top_k=0, eos_token_id=list(speaker.stop_ids))
    some = ragged_instructions(COUNT, seed=100 + number)[:: COUNT // ONE_BY_ONE]
    prompts = encode_prompts(speaker.tokenizer, some, template=config.student.template)
    torch.manual_seed(number)
    lengths = []
    started = monotonic()
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            output = speaker.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            lengths.append(output.shape[1] - len(prompt))
            speaker.tokenizer.decode(output[0, len(prompt) :])
    took = monotonic() - started
    _tell("theirs", lengths)
    return len(prompts) / took


def _tell(side: str, lengths: list[int]) -> None:
    say(f"{side}: {sum(lengths) / len(lengths):.0f} tokens a response, the longest {max(lengths)}")
