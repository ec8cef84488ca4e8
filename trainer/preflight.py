"""What an imitation will take, said before its first step: memory by its parts, disk, steps and time.

Weights, gradients and the optimizer's moments are counted, the libraries' own memory is measured where there is no card; activations
and time are estimates, and called so. The copies that half precision computes with are among the activations. What is counted and does not
fit ends the stage here; where only the estimate says so, a sentence warns.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from trainer.accelerated import device_batch_of, processes_of
from trainer.checkpoints import SPARE_BYTES, free_bytes, readable_size, require_space
from trainer.config import RunConfig
from trainer.errors import ConfigError, OutOfMemory
from trainer.models import check_method, check_precision, context_of, device, dtype_of, empty_model, load_tokenizer
from trainer.records import Preflight

if TYPE_CHECKING:
    from trainer.examples import Encoded

TIGHT = 0.9
"""A share of the device's memory above which a warning is due: the estimate is not better than that."""

EFFICIENCY = 0.4
"""Share of the device's speed at large matrix products that training reaches; between 0.3 and 0.5 where it was measured."""

LAYER_S = 0.003
"""Seconds that a layer costs in one step forth and back with next to nothing to do."""

OPTIMIZER_BYTES, CPU_BYTES_PER_S = 28, 5e9
"""Bytes that an AdamW step reads and writes for each parameter, and how many a CPU's memory moves in a second."""

BYTES_IN_4_BITS = 0.56
"""Bytes of a parameter in 4 bits with its share of the scales."""

LATER_LIBRARIES = 60 * 2**20
"""What the first step itself loads and keeps, in bytes, on a CPU."""

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def check_student(config: RunConfig, *, folder: Path) -> Preflight:
    """Whether the student of a run can be tuned on this machine, without loading its weights.

    Raises ConfigError (no such student, no end token, no chat form, a length beyond its context, a precision or method this machine
    has not), OutOfMemory and NoSpace.
    """
    from trainer.encoding import encode_prompts
    from trainer.records import Instruction

    check_precision(config.student.precision, device())
    check_method(config.student.method)
    device_batch_of(config, processes_of(config)[0])
    tokenizer = load_tokenizer(config, None)
    encode_prompts(tokenizer, [Instruction(key="probe", text="probe")], template=config.student.template)
    model = empty_model(config)
    require_length(config, context_of(model))
    found = _sized(config, model, trainable=trainable_parameters(config, model), folder=folder)
    require_space(folder, found.disk_needed, purpose="A checkpoint for each iteration, and the resumable saves,")
    return found


def preflight(config: RunConfig, model: Any, encoded: Encoded, order: Sequence[int], *, steps: int, folder: Path) -> Preflight:
    """The same for a student that is loaded and examples that are encoded, with steps, tokens and time."""
    from trainer.imitation import is_packed

    processes = processes_of(config)[0]
    size = device_batch_of(config, processes)
    lengths = [len(encoded.examples[i].ids) for i in order]
    learnt = [encoded.examples[i].response_tokens for i in order]
    groups = [slice(at, at + size) for at in range(0, len(order), size)]
    padded = [sum(lengths[g]) if is_packed(config, model) else max(lengths[g]) * len(lengths[g]) for g in groups]
    widest = groups[max(range(len(groups)), key=lambda i: padded[i])]
    prompts = [encoded.examples[i].prompt_length for i in order[widest]]
    scored = sum(learnt[widest]) if is_packed(config, model) else len(prompts) * (max(lengths[widest]) - min(prompts))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return _sized(
        config,
        model,
        trainable=trainable,
        folder=folder,
        examples=len(encoded.examples),
        cut=encoded.cut,
        left_out=encoded.left_out,
        steps=steps,
        response_tokens=sum(learnt),
        device_tokens=sum(padded),
        seconds=_seconds(config, model, tokens=sum(padded), batches=len(groups), steps=steps, trainable=trainable) / processes,
        activations=activation_bytes(config, model, tokens=max(padded), scored=scored),
    )


def require_length(config: RunConfig, context: int) -> None:
    """Raise ConfigError where examples may be longer than what the student can read."""
    longest = config.imitation.max_length
    if longest > context:
        text = f"An example of {longest:,} tokens is beyond what the student reads at most. Set imitation.max_length to {context} or less."
        raise ConfigError(text, fields={"imitation.max_length": text})


def _sized(config: RunConfig, model: Any, *, trainable: int, folder: Path, activations: int = 0, **counted: Any) -> Preflight:
    """The preflight with memory and disk worked out. Raises OutOfMemory where what is counted alone is too much."""
    parameters = _count(model)
    processes, sharded = processes_of(config)
    shards = processes if sharded else 1
    weights = weight_bytes(config, model, trainable) // shards
    found = {
        "model": config.student.model,
        "method": config.student.method,
        "precision": config.student.precision,
        "parameters": parameters,
        "trainable": trainable,
        "device": device_name(),
        "processes": processes,
        "weights": weights,
        "gradients": 4 * trainable // shards,
        "optimizer": 8 * trainable // shards,
        "activations": activations + copy_bytes(config, trainable) // shards,
        "libraries": library_bytes(model),
        "memory": device_memory(processes),
        "disk_needed": disk_bytes(config, trainable),
        "disk_free": free_bytes(folder),
        "context": context_of(model),
        **counted,
    }
    first = Preflight(**found)
    _require_memory(first, config)
    return Preflight(**found, problems=tuple(_problems(first)))


def _require_memory(found: Preflight, config: RunConfig) -> None:
    counted = found.weights + found.gradients + found.optimizer
    if counted <= found.memory:
        return
    method = "student.method to lora, " if config.student.method == "full" else ""
    raise OutOfMemory(
        f"{found.model} with {found.parameters:,} parameters cannot be tuned here ({found.method}, {found.precision}): weights, gradients "
        f"and optimizer take {readable_size(counted)} of {found.device}'s {readable_size(found.memory)}. "
        f"Set {method}imitation.sharding to full on several cards, or choose a smaller student."
    )


def _problems(found: Preflight) -> list[str]:
    problems = []
    if found.memory_needed > TIGHT * found.memory:
        problems.append(
            f"Memory is tight: about {readable_size(found.memory_needed)} of {readable_size(found.memory)} on {found.device}. If it runs "
            "out, the batch on one device is halved once by itself."
        )
    if found.disk_needed > found.disk_free:
        problems.append(f"The disk has {readable_size(found.disk_free)} free; {readable_size(found.disk_needed)} are needed.")
    return problems


def trainable_parameters(config: RunConfig, model: Any) -> int:
    """How many parameters are tuned: all, or those of an adapter on every linear layer but the output's."""
    if config.student.method == "full":
        return _count(model)
    return sum(config.student.lora_rank * (taken + given) for taken, given in _linear_sizes(model))


def _linear_sizes(model: Any) -> list[tuple[int, int]]:
    """Features that every linear layer takes and gives, but for the output's and those of an adapter."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    layers = [module for name, module in model.named_modules() if "lora_" not in name and module is not head]
    linear = [(module.in_features, module.out_features) for module in layers if isinstance(module, torch.nn.Linear)]
    return linear + [(module.nx, module.nf) for module in layers if isinstance(module, Conv1D)]


def _count(model: Any) -> int:
    return sum(_numbers(parameter) for parameter in model.parameters())


def _numbers(parameter: Any) -> int:
    """How many numbers a parameter holds: in 4 bits there are two to a byte."""
    return int(parameter.numel()) * (2 if "uint8" in str(parameter.dtype) else 1)


def weight_bytes(config: RunConfig, model: Any, trainable: int) -> int:
    """What is tuned in fp32, and what is frozen in the run's precision; or in 4 bits and their scales, and what is not linear in fp32."""
    if config.student.method == "full":
        return 4 * trainable
    frozen = {name: _numbers(p) for name, p in model.named_parameters() if "lora_" not in name}
    if config.student.method == "lora":
        return 4 * trainable + dtype_of(config.student.precision).itemsize * sum(frozen.values())
    linear = sum(size for name, size in frozen.items() if _is_in_linear(model, name))
    return 4 * trainable + int(BYTES_IN_4_BITS * linear) + 4 * (sum(frozen.values()) - linear)


def _is_in_linear(model: Any, name: str) -> bool:
    """Whether a parameter is the weight of a layer that is held in 4 bits."""
    import torch

    path, _, kind = name.rpartition(".")
    layer = model.get_submodule(path)
    return kind == "weight" and isinstance(layer, torch.nn.Linear) and layer is not model.get_output_embeddings()


def copy_bytes(config: RunConfig, trainable: int) -> int:
    """What is tuned in fp32 is computed with in half precision: a copy of it stays from the forward pass to the backward."""
    return 0 if config.student.precision == "fp32" else 2 * trainable


def library_bytes(model: Any) -> int:
    """What this process takes on the CPU without the model; 0 where the student goes to a card, whose own share is not counted."""
    if device().type != "cpu":
        return 0
    loaded = sum(int(p.numel() * p.element_size()) for p in model.parameters() if p.device.type == "cpu")
    return max(int(psutil.Process().memory_info().rss) - loaded, 0) + LATER_LIBRARIES


def disk_bytes(config: RunConfig, trainable: int) -> int:
    """A checkpoint for each iteration, and saves of weights and both moments in fp32: two that are kept, a third while it is written."""
    save = (16 if processes_of(config)[1] else 12) * trainable + SPARE_BYTES
    return (config.loop.iterations + 1) * (4 * trainable + SPARE_BYTES) + 3 * save


def activation_bytes(config: RunConfig, model: Any, *, tokens: int, scored: int) -> int:
    """An estimate of what the widest device batch leaves for the backward pass.

    A layer of a Llama keeps about 13 vectors of the hidden size and 4 of the feed-forward size for each token. In half precision those of
    the feed-forward size take 2 bytes a number, the others as much as 9 in fp32: norms and the sum of all layers stay in it. An adapter
    keeps what its layers take once more, and what is left of that by its dropout. The layer under way in the backward pass holds as much
    again. With checkpointing a layer keeps one vector. Then the scores of `scored` positions and their gradient, in fp32.
    """
    shape = model.config
    hidden = getattr(shape, "hidden_size", 0)
    inner = getattr(shape, "intermediate_size", None) or 4 * hidden
    layers = getattr(shape, "num_hidden_layers", 0)
    half = config.student.precision != "fp32"
    in_full = 36 * hidden + 8 * inner if half else 52 * hidden + 16 * inner
    if config.student.method != "full":
        in_full += 4 * (6 * hidden + inner)
    kept = (4 * hidden * layers + in_full) if config.imitation.gradient_checkpointing else layers * in_full
    return tokens * (kept + in_full) + scored * getattr(shape, "vocab_size", 0) * 8


def _seconds(config: RunConfig, model: Any, *, tokens: int, batches: int, steps: int, trainable: int) -> float:
    """About how long one process would take.

    6 operations a parameter and token (4 where the base is frozen, 2 more with checkpointing), at EFFICIENCY; what each layer costs
    however little it has to do, once a device batch; and on a CPU the optimizer, which goes through all it tunes at each step.
    """
    each = (6 if config.student.method == "full" else 4) + (2 if config.imitation.gradient_checkpointing else 0)
    layers = getattr(model.config, "num_hidden_layers", 0) + 1
    computing = each * _count(model) * tokens / (EFFICIENCY * matmul_speed(config))
    optimizer = steps * OPTIMIZER_BYTES * trainable / CPU_BYTES_PER_S if device().type == "cpu" else 0.0
    return computing + batches * layers * LAYER_S + optimizer


def matmul_speed(config: RunConfig, *, size: int = 1024, for_s: float = 0.2) -> float:
    """Floating point operations a second that the device reaches at square matrix products in the run's precision."""
    import torch

    where, dtype = device(), dtype_of(config.student.precision)
    size = size if where.type == "cpu" else 8 * size
    left = torch.ones(size, size, device=where, dtype=dtype)
    torch.mm(left, left)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < for_s:
        torch.mm(left, left)
        if where.type == "cuda":
            torch.cuda.synchronize()
        done += 1
    return 2 * size**3 * done / (time.perf_counter() - started)


def device_name() -> str:
    """The card's name, or what stands for the processor."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"


def device_memory(processes: int = 1) -> int:
    """Bytes of memory of the card; without one, what this process may have of the machine's."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    limits = [int(text) for path in CGROUP_LIMITS if path.is_file() and (text := path.read_text().strip()).isdigit()]
    return int(min([psutil.virtual_memory().total, *limits])) // processes
