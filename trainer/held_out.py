"""The items of benchmarks, for decontamination."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.benchmarks import get_benchmark
from trainer.config import RunConfig
from trainer.contamination import HeldOutItem


def held_out_items(config: RunConfig) -> Iterator[HeldOutItem]:
    """Those of the benchmarks that a run is measured on."""
    for name in config.evaluation.benchmarks:
        for item in get_benchmark(name).items():
            yield HeldOutItem(name=f"{name} {item.key}", question=item.prompt, text=item.prompt)
