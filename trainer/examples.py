"""Examples as the student reads them: token ids with the part that carries loss, in planned batches, padded or packed.

Texts are tokenised once: the ids are kept beside the work and found again by a resume, and by the other processes of the same tuning.
This module imports torch: only a child process, or a test, imports it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from trainer.config import RunConfig
from trainer.encoding import encode_prompts, encode_texts
from trainer.errors import ConfigError
from trainer.records import Example, FirstBatch, ShownExample
from trainer.seeds import stream
from trainer.text import storable

log = logging.getLogger(__name__)

IGNORE_INDEX = -100
"""Label of a position that carries no loss."""

SHOWN_EXAMPLES = 4
"""So many examples of the first batch are decoded for a person to read."""


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """An example as token ids (int32, prompt then response); the first `prompt_length` of them carry no loss."""

    ids: Tensor
    prompt_length: int

    @property
    def response_tokens(self) -> int:
        """How many tokens are learnt: those of the response, but for one that stands first of all."""
        return len(self.ids) - max(1, self.prompt_length)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """All examples of an imitation. kept: which of the texts they are; cut: responses that were longer; left_out: what was too long."""

    examples: list[EncodedExample]
    kept: list[int]
    cut: int = 0
    left_out: int = 0


def encode_examples(tokenizer: Any, examples: Sequence[Example], *, template: str, max_length: int, too_long: str = "cut") -> Encoded:
    """Each example as prompt, response and end token.

    An example of more than `max_length` tokens is cut from the right, and then teaches no end, or is left out (`too_long`). One whose
    prompt fills the whole length teaches nothing and is always left out. Raises ConfigError when none is left.
    """
    prompts = encode_prompts(tokenizer, [example.instruction for example in examples], template=template)
    responses = encode_texts(tokenizer, [example.response for example in examples], end=[tokenizer.eos_token_id])
    whole = [len(p) + len(r) <= max_length for p, r in zip(prompts, responses, strict=True)]
    kept = [i for i, prompt in enumerate(prompts) if whole[i] or (too_long == "cut" and len(prompt) < max_length)]
    if not kept:
        raise _nothing_to_learn(len(examples), max_length, too_long)
    return Encoded(
        examples=[EncodedExample(torch.tensor((prompts[i] + responses[i])[:max_length], dtype=torch.int32), len(prompts[i])) for i in kept],
        kept=kept,
        cut=sum(not whole[i] for i in kept),
        left_out=len(examples) - len(kept),
    )


def _nothing_to_learn(count: int, max_length: int, too_long: str) -> ConfigError:
    if not count:
        return ConfigError("There are no examples to tune on: no instruction of the train pool has a usable response.")
    part = "prompts fill" if too_long == "cut" else "examples are longer than"
    text = f"All {count} {part} the {max_length} tokens of an example, so nothing can be learnt. Raise imitation.max_length."
    return ConfigError(text, fields={"imitation.max_length": text})


def save_encoded(path: Path, encoded: Encoded) -> None:
    """Write the ids down, one tensor for all, to be found again by `load_encoded`."""
    tensors = {
        "ids": torch.cat([example.ids for example in encoded.examples]),
        "lengths": torch.tensor([len(example.ids) for example in encoded.examples]),
        "prompt_lengths": torch.tensor([example.prompt_length for example in encoded.examples]),
        "kept": torch.tensor(encoded.kept),
    }
    unfinished = path.with_suffix(".writing")
    save_file(tensors, unfinished, metadata={"cut": str(encoded.cut), "left_out": str(encoded.left_out)})
    unfinished.replace(path)


def load_encoded(path: Path) -> Encoded | None:
    """What `save_encoded` wrote, or None where there is nothing whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            counts = file.metadata()
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return None
    pieces = torch.split(tensors["ids"], tensors["lengths"].tolist())
    return Encoded(
        examples=[EncodedExample(ids, length) for ids, length in zip(pieces, tensors["prompt_lengths"].tolist(), strict=True)],
        kept=tensors["kept"].tolist(),
        cut=int(counts["cut"]),
        left_out=int(counts["left_out"]),
    )


def show_batch(tokenizer: Any, examples: Sequence[Example], encoded: Encoded, order: Sequence[int], *, batch_size: int) -> FirstBatch:
    """The first batch decoded, special tokens included, in pieces with and without loss."""

    def shown(position: int) -> ShownExample:
        example = encoded.examples[position]
        parts = (example.ids[: example.prompt_length], False), (example.ids[example.prompt_length :], True)
        return ShownExample(
            instruction=examples[encoded.kept[position]].instruction.key,
            tokens=len(example.ids),
            learnt=example.response_tokens,
            pieces=tuple((storable(tokenizer.decode(ids.tolist())), learnt) for ids, learnt in parts),
        )

    first = order[:batch_size]
    spread = first[:: max(1, len(first) // SHOWN_EXAMPLES)][:SHOWN_EXAMPLES]
    return FirstBatch(examples=tuple(shown(position) for position in spread), batch_size=batch_size)


# The order


class PlannedExamples(Dataset[EncodedExample]):
    """The examples in the order of the plan; one pass over it is the whole tuning."""

    def __init__(self, examples: Sequence[EncodedExample], order: Sequence[int]) -> None:
        self.examples = examples
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, at: int) -> EncodedExample:
        return self.examples[self.order[at]]


def step_count(config: RunConfig, examples: int, *, iteration: int) -> int:
    """Steps of an imitation: as set for iteration 0 or the later ones, else as many as the epochs make."""
    settings = config.imitation
    chosen = settings.first_steps if iteration == 0 else settings.steps
    return chosen or max(1, math.ceil(settings.epochs * examples / settings.batch_size))


def plan_order(
    lengths: Sequence[int],
    *,
    steps: int,
    config: RunConfig,
    iteration: int,
    arrange: Callable[[Sequence[int]], list[int]] | None = None,
) -> list[int]:
    """Positions of the examples in the order they are learnt, steps x batch_size of them.

    arrange: orders the lengths of one batch for the device, by length if not given. The gradient is a mean over the whole batch, so
    that this changes nothing but the padding.
    """
    batch = config.imitation.batch_size
    arrange = arrange or by_length
    order: list[int] = []
    for positions in _batches(len(lengths), steps=steps, batch=batch, config=config, iteration=iteration):
        order += [positions[i] for i in arrange([lengths[position] for position in positions])]
    return order


def _batches(count: int, *, steps: int, batch: int, config: RunConfig, iteration: int) -> Iterator[list[int]]:
    """Whole batches of epoch after epoch, each epoch in an order of the seed."""
    positions: list[int] = []
    for epoch in range(math.ceil(steps * batch / count)):
        shuffled = list(range(count))
        stream(config.seed, "imitation", iteration, epoch).shuffle(shuffled)
        positions += shuffled
    yield from (positions[at : at + batch] for at in range(0, steps * batch, batch))


def by_length(lengths: Sequence[int]) -> list[int]:
    """Positions from the shortest to the longest, so that examples of like length share a device batch."""
    return sorted(range(len(lengths)), key=lambda i: lengths[i])


def evened(lengths: Sequence[int], *, size: int) -> list[int]:
    """Positions such that each run of `size` has about as many tokens as any other: what packed device batches want."""
    bins: list[list[int]] = [[] for _ in range(math.ceil(len(lengths) / size))]
    for i in reversed(by_length(lengths)):
        fewest = min((b for b in bins if len(b) < size), key=lambda b: sum(lengths[j] for j in b))
        fewest.append(i)
    return [i for b in sorted(bins, key=len, reverse=True) for i in b]


# One device batch


def collate_padded(examples: Sequence[EncodedExample], *, pad_id: int) -> dict[str, Tensor]:
    """Examples side by side, right-padded to the longest: input_ids (B, T).

    logits_to_keep (K,): the positions after which some example has a token to learn; labels (B, K): that token, IGNORE_INDEX where it is
    of a prompt or padding. There is no attention mask: under causal attention no token sees the padding to its right, and without a
    mask the faster kernels apply.
    """
    width = max(len(example.ids) for example in examples)
    input_ids = torch.full((len(examples), width), pad_id, dtype=torch.int64)
    following = torch.full((len(examples), width), IGNORE_INDEX, dtype=torch.int64)  # (B, T) the token after each position
    for row, example in enumerate(examples):
        end = len(example.ids)
        input_ids[row, :end] = example.ids
        first = max(1, example.prompt_length)  # before the very first token there is no position that could learn it
        following[row, first - 1 : end - 1] = example.ids[first:]
    kept = (following != IGNORE_INDEX).any(dim=0).nonzero().squeeze(1)
    return _batch(input_ids, following[:, kept], kept)


def collate_packed(examples: Sequence[EncodedExample]) -> dict[str, Tensor]:
    """Examples one after the other in a single row without padding: input_ids (1, T) and position_ids (1, T).

    The positions begin anew with each example, by which attention knows not to look across. logits_to_keep and labels as above.
    """
    ids = torch.cat([example.ids for example in examples]).to(torch.int64)
    positions = torch.cat([torch.arange(len(example.ids)) for example in examples])
    following = torch.full_like(ids, IGNORE_INDEX)
    start = 0
    for example in examples:
        end = start + len(example.ids)
        first = start + max(1, example.prompt_length)
        following[first - 1 : end - 1] = ids[first:end]
        start = end
    kept = (following != IGNORE_INDEX).nonzero().squeeze(1)
    return _batch(ids[None], following[None, kept], kept) | {"position_ids": positions[None]}


def _batch(input_ids: Tensor, labels: Tensor, kept: Tensor) -> dict[str, Tensor]:
    # The library counts the tokens to learn in `shift_labels` where labels are shifted already; it wants `labels` beside it.
    return {"input_ids": input_ids, "logits_to_keep": kept, "labels": labels, "shift_labels": labels}
