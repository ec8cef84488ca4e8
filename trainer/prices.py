"""What calls cost, in nanodollars: whole numbers, so that sums come out exactly, in whatever order they are made."""

from __future__ import annotations

from trainer.config import EndpointConfig

NANODOLLARS = 1_000_000_000
BATCH_SHARE = 0.5
"""What a call by the Batch API costs of one by itself (OpenAI's price list)."""

_PER_MESSAGE = 8
"""Tokens that a chat template adds around a message, at the most seen."""


def cost(endpoint: EndpointConfig, *, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0, batch: bool = False) -> int:
    """Nanodollars for so many tokens; cached_tokens are those of the prompt that the server had seen before."""
    cached_price = endpoint.price_cached or endpoint.price_input
    # $ per million tokens = 1,000 nanodollars per token
    thousandths = (
        (prompt_tokens - cached_tokens) * endpoint.price_input + cached_tokens * cached_price + completion_tokens * endpoint.price_output
    )
    return round(thousandths * 1000 * (BATCH_SHARE if batch else 1))


def most_tokens(texts: list[str]) -> int:
    """No byte-level tokenizer makes more tokens of these messages than this."""
    return sum(len(text.encode("utf-8", "surrogatepass")) + _PER_MESSAGE for text in texts)


def likely_tokens(texts: list[str]) -> int:
    """About how many tokens these messages are: four bytes each, as English has; other scripts come out high."""
    return sum(len(text.encode("utf-8", "surrogatepass")) // 4 + _PER_MESSAGE for text in texts)
