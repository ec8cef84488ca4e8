"""How responses are shared out: which prompts are worked through together, and how many at once fit in memory.

The plan depends on the whole list of prompts, the settings and the size of the device alone, never on what is free at the moment or on
what is done already: a resumed stage makes the same groups again, and so the same texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ROWS_OF_A_GROUP = 4
"""A group holds so many times the rows that are answered at once: as one ends the next begins, and only the end of a group runs half empty.
A stop costs a group at most, which is then generated anew."""

LIKE_LENGTH = 2
NO_MATTER = 64
"""Prompts go together where the longest is at most so many times the shortest, or so many tokens more: all are padded to the longest."""

SHARE_FOR_CACHES = 0.4
"""Share of the memory beside the weights that the caches of responses may take: joining two of them holds both for a moment."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Prompts worked through together: their positions in the list, longest first, and how many are answered at once."""

    positions: tuple[int, ...]
    rows: int


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What answering takes, in bytes: of each token held, of each row besides; budget: for all rows together."""

    token: int
    row: int
    budget: int

    def rows(self, tokens: int) -> int:
        """How many rows of so many tokens fit; at least one, which then shows whether it does."""
        return max(1, self.budget // (self.token * tokens + self.row))


def plan_groups(lengths: Sequence[int], *, most_rows: int, max_new_tokens: int, costs: Costs) -> list[Group]:
    """All positions in groups, longest prompts first, so that what does not fit in memory shows at once. lengths: in tokens."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups = []
    while order:
        longest = lengths[order[0]]
        rows = min(most_rows, costs.rows(longest + max_new_tokens))
        shortest = min(longest // LIKE_LENGTH, longest - NO_MATTER)
        size = sum(lengths[i] >= shortest for i in order[: rows * ROWS_OF_A_GROUP])
        groups.append(Group(positions=tuple(order[:size]), rows=rows))
        order = order[size:]
    return groups


def costs_of(model: Any, *, memory: int) -> Costs:
    """What a loaded model takes to answer on a device of `memory` bytes. Where its config does not say, as if it had no shared heads."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return Costs(
        token=2 * config.num_hidden_layers * shared * width * model.dtype.itemsize,
        row=3 * 4 * config.vocab_size,  # the logits, the noise and their sum, in fp32
        budget=int(SHARE_FOR_CACHES * max(0, memory - weights)),
    )
