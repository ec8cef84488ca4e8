"""What an imitation will take, said before its first step: memory by its parts, disk, steps and time."""

from __future__ import annotations

from pathlib import Path

from trainer.config import RunConfig
from trainer.records import Preflight


def check_student(config: RunConfig, *, folder: Path) -> Preflight:
    """Whether the student of a run can be tuned on this machine, without loading its weights."""
    return Preflight(
        model=config.student.model, method=config.student.method, precision=config.student.precision, parameters=0, trainable=0, device=""
    )
