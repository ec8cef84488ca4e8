"""The loss on the response tokens, piece by piece: with a large vocabulary, scores and their gradients are most of a step's memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.examples import IGNORE_INDEX

CHUNK_BYTES = 64 * 2**20
"""Logits are looked at in pieces of about this size in fp32."""


def response_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross entropies in fp32, as `torch.nn.functional.cross_entropy(reduction="sum")` would give it.

    logits: (N, V) in any floating type; labels: (N,) int64, IGNORE_INDEX where there is nothing to learn. What is kept for the backward
    pass is the gradient alone, in the type of the logits.
    """
    apply: Any = _ResponseLoss.apply  # untyped in the library
    loss: Tensor = apply(logits, labels)
    return loss


class _ResponseLoss(torch.autograd.Function):
    """The gradient is worked out together with the loss: no log-probabilities wait for the backward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        gradient = torch.empty_like(logits)
        rows = max(1, CHUNK_BYTES // (4 * logits.shape[1]))
        for at in range(0, len(labels), rows):
            wanted = labels[at : at + rows]
            learnt = wanted != IGNORE_INDEX
            index = wanted.clamp_min(0)[:, None]  # (n, 1)
            logs = torch.log_softmax(logits[at : at + rows].float(), dim=1)  # (n, V)
            total -= (logs.gather(1, index)[:, 0] * learnt).sum()
            slope = logs.exp_()
            slope.scatter_add_(1, index, slope.new_full(index.shape, -1.0))
            gradient[at : at + rows] = slope.mul_(learnt[:, None])
        ctx.save_for_backward(gradient)
        ctx.rows = rows
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None]:
        """The factor stays in fp32: rounded to the logits' type it would be off by the same part for every token."""
        (gradient,) = ctx.saved_tensors
        factor = outputs[0].float()
        for piece in gradient.split(ctx.rows):
            piece.copy_(piece.float() * factor)
        return gradient, None
