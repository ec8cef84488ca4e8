"""The demo's seed pool: a few kinds of task make most of it and most kinds are rare, as in pools that people wrote."""

from __future__ import annotations

from trainer.demo.tasks import KINDS, make_instruction
from trainer.errors import ConfigError
from trainer.records import Instruction
from trainer.seeds import stream

ZIPF_EXPONENT = 1.0
MOST = 100_000


def demo_seed_pool(seed: int, size: int = 1500) -> list[Instruction]:
    """Seed instructions of the demo, in random order, no text twice and none of the held-out ones.

    The share of the kind at rank r is proportional to 1 / r; the seed draws which kind has which rank.
    Raises ConfigError for a size that is not in 1..100,000.
    """
    if not 1 <= size <= MOST:
        raise ConfigError(f"The demo has no seed pool of {size:,} instructions. Ask for 1 to {MOST:,}.")
    texts: list[tuple[str, str]] = []
    for name, count in kind_counts(seed, size).items():
        rng = stream(seed, "demo", "values", name)
        unique: dict[str, None] = {}
        while len(unique) < count:
            unique.setdefault(make_instruction(KINDS[name], rng))
        texts.extend((name, text) for text in unique)
    stream(seed, "demo", "order").shuffle(texts)
    return [Instruction(key=f"seed-{position:06d}", text=text, kind=kind) for position, (kind, text) in enumerate(texts)]


def kind_counts(seed: int, size: int) -> dict[str, int]:
    """How many instructions each kind has, the most frequent first; they add up to `size`."""
    names = list(KINDS)
    stream(seed, "demo", "ranks").shuffle(names)
    weights = [(rank + 1) ** -ZIPF_EXPONENT for rank in range(len(names))]
    shares = [size * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(names)), key=lambda rank: (counts[rank] - shares[rank], rank))
    for rank in by_remainder[: size - sum(counts)]:
        counts[rank] += 1
    return dict(zip(names, counts, strict=True))
