"""How an imitation is started: the arguments of `accelerate launch`, for one process or many, on one machine or several."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from trainer.config import RunConfig
from trainer.errors import ConfigError, OutOfMemory
from trainer.records import Preflight, Remark, TuningNews

Made = TypeVar("Made")

CONFIG_VARIABLE = "LIONWEB_ACCELERATE_CONFIG"
"""Environment variable with the file that `accelerate config` wrote: where it is set, machines, processes and sharding are as it says."""

OWN_CONFIG = Path(__file__).with_name("accelerate.yaml")
"""What the launcher reads where the variable is not set, so that no file in a home directory takes part."""

CARDS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")
"""Where a machine with cards shows them. Only then are they counted: that takes the seconds of an `import torch`."""


def launcher_of(config: RunConfig) -> list[str]:
    """Arguments of Python that start an imitation's processes; `-m MODULE ...` follows. Raises ConfigError."""
    launch = ["-m", "accelerate.commands.launch", "--config_file"]
    if file := os.environ.get(CONFIG_VARIABLE, ""):
        _require_shardable(config, sharded=_is_sharded(_team_config(file)))
        return [*launch, file]
    settings = config.imitation
    processes = settings.processes or max(1, _count_cards())
    fixed = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    threads = ["--num_cpu_threads_per_process", str(max(1, _cores() // processes))]
    return [*launch, str(OWN_CONFIG), *fixed, *threads, *_processes(processes, sharding=settings.sharding)]


def _cores() -> int:
    """Threads for arithmetic: as whoever started us wants it, else one a core."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    return int(chosen) if chosen.isdigit() and int(chosen) else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _count_cards() -> int:
    """Cards that a child would see, as torch counts them in a process of its own: this one stays free of it."""
    if not any(any(Path("/").glob(pattern.lstrip("/"))) for pattern in CARDS):
        return 0
    counting = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    told = subprocess.run(counting, capture_output=True, text=True, check=False, timeout=120).stdout.split()
    return int(told[-1]) if told and told[-1].isdigit() else 0


def _processes(count: int, *, sharding: str) -> list[str]:
    number = ["--num_processes", str(count)]
    if sharding == "none":
        return [*number, *(["--multi_gpu"] if count > 1 else [])]
    wrapped = ["--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "--fsdp_reshard_after_forward", "true"]
    saved = ["--fsdp_state_dict_type", "SHARDED_STATE_DICT", "--fsdp_cpu_ram_efficient_loading", "false"]
    return [*number, "--use_fsdp", "--fsdp_version", "2", *wrapped, *saved]


def processes_of(config: RunConfig) -> tuple[int, bool]:
    """How many processes tune together on this worker and its machines, and whether they share the weights out.

    Raises ConfigError where the team's accelerate config cannot be read, or shards an adapter.
    """
    settings = config.imitation
    if file := os.environ.get(CONFIG_VARIABLE, ""):
        written = _team_config(file)
        _require_shardable(config, sharded=_is_sharded(written))
        return int(written.get("num_processes") or 1), _is_sharded(written)
    import torch

    return settings.processes or max(1, torch.cuda.device_count()), settings.sharding == "full"


def _team_config(file: str) -> dict[str, Any]:
    try:
        written = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error.strerror) if isinstance(error, OSError) else "it is no YAML"
        raise ConfigError(f"{CONFIG_VARIABLE} names {file}, which cannot be read ({reason}). {_TO_DO}") from error
    if not isinstance(written, dict):
        raise ConfigError(f"{CONFIG_VARIABLE} names {file}, which holds no settings of accelerate. {_TO_DO}")
    return written


_TO_DO = "Write it with `accelerate config` on the worker, or unset the variable."


def _is_sharded(written: dict[str, Any]) -> bool:
    return written.get("distributed_type") == "FSDP"


def _require_shardable(config: RunConfig, *, sharded: bool) -> None:
    """Raise ConfigError where the team's config shards what `imitation.sharding` would not be allowed to."""
    if not sharded or config.student.method == "full":
        return
    text = (
        f"The worker's accelerate config shards the weights (FSDP), which is for full tuning; with {config.student.method} each process "
        f"holds the base whole. Set student.method to full, or give the worker a {CONFIG_VARIABLE} with distributed_type MULTI_GPU."
    )
    raise ConfigError(text)


def wants_several(config: RunConfig) -> bool:
    """Whether the tuning of a run is for more than one process."""
    return processes_of(config)[0] > 1


def device_batch_of(config: RunConfig, processes: int) -> int:
    """Examples on one device at once: as set, or the most below it by which a process's share of the batch divides.

    Raises ConfigError where the processes cannot share the batch evenly: every step would learn from fewer examples than planned.
    """
    batch = config.imitation.batch_size
    if batch % processes:
        text = f"A batch of {batch} cannot be shared evenly by {processes} processes. Set imitation.batch_size to a multiple of them."
        raise ConfigError(text, fields={"imitation.batch_size": text})
    share = batch // processes
    return next(size for size in range(min(config.imitation.device_batch_size, share), 0, -1) if share % size == 0)


def tune_in_smaller_pieces(
    config: RunConfig, tell: Callable[[TuningNews], None], tune: Callable[[RunConfig, Callable[[TuningNews], None]], Made]
) -> Made:
    """`tune`, and once more with half the examples on a device where memory ran out: the same gradient, in smaller pieces.

    What runs out before the preflight was told has nothing to do with the batch and is not tried again. Raises OutOfMemory.
    """
    found: list[Preflight] = []

    def note(news: TuningNews) -> None:
        if isinstance(news, Preflight):
            found.append(news)
        tell(news)

    try:
        return tune(config, note)
    except OutOfMemory as error:
        processes = found[-1].processes if found else 1
        size = device_batch_of(config, processes) if found else 1
        if size == 1:
            raise
        why = str(error)
    # Out here the first try's memory is free: the error held its frames.
    half = device_batch_of(_with_device_batch(config, size // 2), processes)
    tell(Remark(text=f"{why} Trying once more with {half} on the device and more accumulation."))
    return tune(_with_device_batch(config, half), tell)


def _with_device_batch(config: RunConfig, size: int) -> RunConfig:
    return replace(config, imitation=replace(config.imitation, device_batch_size=size))
