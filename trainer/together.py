"""What several processes do together that tune one student: wait for each other, decide once for all, share a model out.

Every function also holds for a process that is alone. This module imports torch: only a child process, or a test, imports it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed

from trainer.models import device

Decision = TypeVar("Decision")

PATIENCE = timedelta(hours=6)
"""How long a process waits for the others: the first may read through many large files meanwhile. One that died is noticed at once."""


def world() -> tuple[int, int]:
    """The number of this process among those that tune together, and how many they are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that decides, writes and tells."""
    return world()[0] == 0


def join_group() -> None:
    """Make this process one of its group, unless it is already or is alone."""
    if world()[1] == 1:
        return
    from accelerate import PartialState

    cpu = device().type == "cpu"
    PartialState(cpu=cpu, timeout=PATIENCE, **({"backend": "gloo"} if cpu else {}))


def decided_by_first(decide: Callable[[], Decision]) -> Decision:
    """What `decide` gives in the first process, in all of them; the others do not call it. They end with the first where it fails."""
    join_group()
    if world()[1] == 1:
        return decide()
    from accelerate.utils import broadcast_object_list

    box: list[Any] = [decide() if is_first() else None]
    broadcast_object_list(box)
    decision: Decision = box[0]
    return decision


@contextmanager
def main_process_first() -> Iterator[None]:
    """The first goes through the block before the others do."""
    join_group()
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


def wait_for_all() -> None:
    """A barrier where there are several processes."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def anyone(asked: bool) -> bool:
    """Whether any process was asked to stop: all must do so after the same step."""
    if not torch.distributed.is_initialized():
        return asked
    flag = torch.tensor(int(asked), device=device())
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def gathered_state(model: Any) -> dict[str, Any]:
    """The whole state of a sharded model, on the CPU of the main process; empty in the others, which must call it too."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def let_cpus_shard() -> None:
    """Make sharding work over processes on CPUs, where accelerate would ignore it without a word: it is there to be tried and tested."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    state: Any = AcceleratorState
    if getattr(state, "shards_on_cpus", False):
        return
    begin = state.__init__

    def begin_sharded(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    state.__init__, state.shards_on_cpus = begin_sharded, True
