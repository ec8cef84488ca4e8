"""How an imitation is started: the arguments of `accelerate launch`, for one process or many, on one machine or several."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from trainer.config import RunConfig
from trainer.errors import ConfigError

CONFIG_VARIABLE = "LIONWEB_ACCELERATE_CONFIG"
"""Environment variable with the file that `accelerate config` wrote: where it is set, machines, processes and sharding are as it says."""


def launcher_of(config: RunConfig) -> list[str]:
    """Arguments of Python that start an imitation's processes; `-m MODULE ...` follows."""
    launch = ["-m", "accelerate.commands.launch"]
    file = os.environ.get(CONFIG_VARIABLE, "")
    if file:
        return [*launch, "--config_file", file]
    settings = config.imitation
    fixed = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    threads = ["--num_cpu_threads_per_process", str(max(1, _cores() // max(1, settings.processes)))]
    return [*launch, *fixed, *threads, *_processes(settings.processes, sharding=settings.sharding)]


def _cores() -> int:
    """Threads for arithmetic: as whoever started us wants it, else one a core."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    return int(chosen) if chosen.isdigit() and int(chosen) else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _processes(count: int, *, sharding: str) -> list[str]:
    """So many processes; none named: the launcher takes one for each card it sees, or one."""
    number = ["--num_processes", str(count)] if count else []
    if sharding == "none":
        return [*number, *(["--multi_gpu"] if count > 1 else [])]
    wrapped = ["--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "--fsdp_reshard_after_forward", "true"]
    saved = ["--fsdp_state_dict_type", "SHARDED_STATE_DICT", "--fsdp_cpu_ram_efficient_loading", "false"]
    return [*number, "--use_fsdp", "--fsdp_version", "2", *wrapped, *saved]


def processes_of(config: RunConfig) -> tuple[int, bool]:
    """How many processes tune together on this worker and its machines, and whether they share the weights out."""
    settings = config.imitation
    file = os.environ.get(CONFIG_VARIABLE, "")
    if file:
        written = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        return int(written.get("num_processes") or 1), written.get("distributed_type") == "FSDP"
    import torch

    return settings.processes or max(1, torch.cuda.device_count()), settings.sharding == "full"


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
