"""The items of the benchmarks that are known on this machine, for decontamination."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.benchmarks import get_benchmark
from trainer.config import RunConfig
from trainer.contamination import HeldOutItem


def held_out_items(folder: Path | None, config: RunConfig) -> Iterator[HeldOutItem]:
    """Those of the run's own benchmarks, and those in a folder of imported ones, where there is one."""
    for name in config.evaluation.benchmarks:
        for item in get_benchmark(name).items():
            yield HeldOutItem(name=f"{name} {item.key}", question=item.prompt, text=item.prompt)
