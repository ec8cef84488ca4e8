"""Which function does which kind of errand."""

from __future__ import annotations

from experiments.errand_runner import Work

WORK: dict[str, Work] = {}
