"""Which function does which kind of errand."""

from __future__ import annotations

from experiments import checkpoint_work, playground_work
from experiments.errand_runner import Work
from experiments.models import ErrandKind

WORK: dict[str, Work] = {
    **checkpoint_work.WORK,
    ErrandKind.ANSWER: playground_work.answer,
}
