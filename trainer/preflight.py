"""What an imitation will take, said before its first step: memory by its parts, disk, steps and time.

Weights, gradients and the optimizer's moments are counted; activations and time are estimates, and called so. What is counted and
does not fit ends the stage here; where only the estimate says so, a sentence warns.
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
        seconds=_seconds(config, model, sum(padded), processes),
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
    frozen = parameters - trainable if config.student.method != "full" else 0
    weights = (4 * trainable + int(_bytes_each(config) * frozen)) // shards
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
        "activations": activations,
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
    import torch

    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    return sum(config.student.lora_rank * (module.in_features + module.out_features) for module in linear)


def _count(model: Any) -> int:
    return sum(int(parameter.numel()) for parameter in model.parameters())


def _bytes_each(config: RunConfig) -> float:
    """Bytes of a frozen parameter: in the run's precision, or 4 bits and its share of the scales."""
    return 0.56 if config.student.method == "qlora" else dtype_of(config.student.precision).itemsize


def disk_bytes(config: RunConfig, trainable: int) -> int:
    """A checkpoint for each iteration, and saves of weights and both moments in fp32: two that are kept, a third while it is written."""
    save = (16 if config.imitation.sharding == "full" else 12) * trainable + SPARE_BYTES
    return (config.loop.iterations + 1) * (4 * trainable + SPARE_BYTES) + 3 * save


def activation_bytes(config: RunConfig, model: Any, *, tokens: int, scored: int) -> int:
    """An estimate of what the widest device batch leaves for the backward pass.

    A layer of a Llama keeps about 13 vectors of the hidden size and 4 of the feed-forward size for each token; with checkpointing one
    vector, and one layer in full. Then the scores of `scored` positions: themselves, and their gradient.
    """
    shape = model.config
    hidden = getattr(shape, "hidden_size", 0)
    inner = getattr(shape, "intermediate_size", None) or 4 * hidden
    layers = getattr(shape, "num_hidden_layers", 0)
    each = 2 if config.student.precision != "fp32" else 4
    in_full = each * (13 * hidden + 4 * inner)
    per_token = each * hidden * layers + in_full if config.imitation.gradient_checkpointing else layers * in_full
    return tokens * per_token + scored * getattr(shape, "vocab_size", 0) * 2 * each


def _seconds(config: RunConfig, model: Any, tokens: int, processes: int) -> float:
    """About how long: 6 operations a parameter and token (4 where the base is frozen, 2 more with checkpointing), at EFFICIENCY."""
    parameters = _count(model)
    each = (6 if config.student.method == "full" else 4) + (2 if config.imitation.gradient_checkpointing else 0)
    return each * parameters * tokens / (EFFICIENCY * matmul_speed(config) * processes)


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
