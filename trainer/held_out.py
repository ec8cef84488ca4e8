"""The items of benchmarks, for decontamination."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.benchmarks import get_benchmark
from trainer.config import RunConfig
from trainer.contamination import HeldOutItem
from trainer.records import BenchmarkItem


def held_out_items(config: RunConfig) -> Iterator[HeldOutItem]:
    """Those of the benchmarks that a run is measured on."""
    for name in config.evaluation.benchmarks:
        yield from (as_held_out(name, item) for item in get_benchmark(name).items())


def as_held_out(benchmark: str, item: BenchmarkItem) -> HeldOutItem:
    """An item as no new instruction may overlap with it."""
    return HeldOutItem(name=f"{benchmark} {item.key}", question=item.question or item.prompt, text=item.prompt)
