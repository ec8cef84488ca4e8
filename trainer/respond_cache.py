"""Keys and values of rows that come and go: right-aligned, so that every row writes its next token into the same column.

The library's own cache copies all it holds for each new token. This one has room to spare and copies only when that is used up, or
when rows leave or join. A process that has no student need not import it: it imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Columns that are added at once."""


class RoomyLayer(DynamicLayer):
    """One layer's keys and values, (B, heads, T, width): views of larger tensors whose columns beyond T are free."""

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held: list[torch.Tensor] = []
        self._first = 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        shown, new = self.get_seq_length(), key_states.shape[-2]
        if not self._held:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._held = [_room_for(states, rows=len(states), columns=new) for states in (key_states, value_states)]
        elif self._first + shown + new > self._held[0].shape[-2]:
            self._held = [_larger(states, columns=shown + new) for states in (self.keys, self.values)]
            self._first = 0
        end = self._first + shown
        for held, states in zip(self._held, (key_states, value_states), strict=True):
            held[..., end : end + new, :] = states
        self._show(shown + new)
        return self.keys, self.values

    def hold(self, held: list[torch.Tensor], columns: int) -> None:
        """Take over tensors with so many columns in use."""
        self._held, self._first, self.is_initialized = held, 0, True
        self.dtype, self.device = held[0].dtype, held[0].device
        self._show(columns)

    def put(self, places: list[int], states: Sequence[torch.Tensor]) -> None:
        """Replace the rows in these places by others, right-aligned; zeros in front of them."""
        for shown, fresh in zip((self.keys, self.values), states, strict=True):
            begin = shown.shape[-2] - fresh.shape[-2]
            shown[places, :, :begin] = 0
            shown[places, :, begin:] = fresh

    def leave_out(self, columns: int) -> None:
        """Show so many columns less, from the left."""
        self._first += columns
        self._show(self.get_seq_length() - columns)

    def _show(self, columns: int) -> None:
        self.keys, self.values = (held[..., self._first : self._first + columns, :] for held in self._held)


def new_cache(model: Any) -> Any:
    """An empty cache for a model; None where it needs another kind (sliding windows, states that are no keys and values)."""
    cache = DynamicCache(config=model.config)
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [RoomyLayer() for _ in cache.layers]
    return cache


def replace_rows(cache: Any, places: list[int], fresh: Any, rows: list[int], *, left_out: int) -> None:
    """Put the chosen rows of `fresh` into these places of the cache, and show `left_out` columns less from its left."""
    for layer, other in zip(cache.layers, fresh.layers, strict=True):
        layer.put(places, [other.keys[rows], other.values[rows]])
        layer.leave_out(left_out)


def join(parts: Sequence[tuple[Any, list[int] | None, int]], columns: int) -> None:
    """Make the first cache hold the chosen rows of all parts, one below the other, in so many columns.

    A part: a cache, its rows that stay (None: all), and how many of its first columns are left out. What is left of it is moved to the
    right end. The parts are used up, layer by layer, so that no more than one layer is held twice.
    """
    first = parts[0][0]
    for at, layer in enumerate(first.layers):
        states = [(cache.layers[at], rows, left_out) for cache, rows, left_out in parts]
        keys = _aligned([(part.keys, rows, left_out) for part, rows, left_out in states], columns)
        values = _aligned([(part.values, rows, left_out) for part, rows, left_out in states], columns)
        for part, _, _ in states:
            part._held, part.keys, part.values = [], None, None
        layer.hold([keys, values], columns)


def _aligned(parts: Sequence[tuple[torch.Tensor, list[int] | None, int]], columns: int) -> torch.Tensor:
    """The parts, one below the other, each ending in column `columns`, with room behind and zeros in front (a NaN there would spread)."""
    counts = [len(states) if rows is None else len(rows) for states, rows, _ in parts]
    held = _room_for(parts[0][0], rows=sum(counts), columns=columns)
    top = 0
    for (states, rows, left_out), count in zip(parts, counts, strict=True):
        states = states[..., left_out:, :]
        place = held[top : top + count, :, columns - states.shape[-2] : columns]
        place.copy_(states if rows is None else states[rows])
        held[top : top + count, :, : columns - states.shape[-2]] = 0
        top += count
    return held


def _larger(states: torch.Tensor, *, columns: int) -> torch.Tensor:
    larger = _room_for(states, rows=len(states), columns=columns)
    larger[..., : states.shape[-2], :] = states
    return larger


def _room_for(like: torch.Tensor, *, rows: int, columns: int) -> torch.Tensor:
    return like.new_empty((rows, like.shape[1], columns + ROOM, like.shape[3]))
