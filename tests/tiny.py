"""A run that takes seconds, made of the real parts: the offline teacher over HTTP and a student of 32 features."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests import compare
from trainer.config import RunConfig, load_preset
from trainer.demo.pool import demo_seed_pool
from trainer.demo.process import OfflineTeacher
from trainer.seed_pools import read_seed_pool

SEEDS = 60


def write_seeds(path: Path) -> Path:
    """A pool in the Alpaca format, as a person would import it."""
    path.write_text(json.dumps([{"instruction": i.text, "input": "", "output": ""} for i in demo_seed_pool(7, SEEDS)]))
    return path


def make_config(seed_file: Path, *, port: int, preflight: bool = False) -> RunConfig:
    """The demo's config with a loop of two iterations and an offline teacher on a port of the test's own.

    preflight: whether the student is looked at first, which costs the seconds of one more child.
    """
    preset = load_preset("demo")
    endpoint = replace(preset.endpoints["offline"], base_url=f"http://127.0.0.1:{port}/v1", max_at_once=4, retries=1)
    return replace(
        preset,
        seed_pool=str(seed_file),
        loop=replace(preset.loop, iterations=2, new_per_iteration=16),
        endpoints={"offline": endpoint},
        student=replace(preset.student, scratch_width=32, scratch_layers=2, scratch_heads=2),
        imitation=replace(
            preset.imitation, preflight=preflight, first_steps=24, steps=12, batch_size=16, device_batch_size=16, save_steps=6, log_steps=2
        ),
        respond=replace(preset.respond, batch_size=32, max_new_tokens=8),
        evaluation=replace(preset.evaluation, benchmarks=()),
    )


def run_in_shell(config: RunConfig, folder: Path, *, port: int) -> dict[str, Any]:
    """What `python -m trainer run` makes of the config, undisturbed."""
    file = folder / "config.toml"
    file.write_text(as_toml(config))
    with OfflineTeacher(port=port):
        command = [sys.executable, "-m", "trainer", "run", str(file), "--out", str(folder / "run")]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    return compare.of_folder(folder / "run", config, read_seed_pool(Path(config.seed_pool)).instructions)


def as_toml(config: RunConfig) -> str:
    """The config as TOML; JSON's values are TOML's for the types a config has."""
    lines: list[str] = []

    def write(name: str, table: dict[str, Any]) -> None:
        lines.extend([f"[{name}]"] if name else [])
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict))
        for key, value in table.items():
            if isinstance(value, dict):
                write(f"{name}.{key}" if name else key, value)

    write("", config.as_dict())
    return "\n".join(lines)
