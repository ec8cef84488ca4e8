"""How a run's instructions are judged, in words."""

from __future__ import annotations

from experiments.models import Run
from trainer.config import DiscriminationConfig, referees_of
from trainer.errors import ConfigError


def how_judged(run: Run) -> str:
    """What the judgements of one instruction are, in a sentence; "" where this version cannot read the run's config."""
    try:
        config = run.run_config()
    except ConfigError:
        return ""
    referees = len(referees_of(config))
    who = "The referee" if referees == 1 else f"Each of the {referees} referees of the panel"
    return f"{who} {_reads(config.discrimination)}."


def _reads(config: DiscriminationConfig) -> str:
    again = "" if config.samples == 1 else f", {config.samples} times each"
    if config.scoring == "pointwise":
        return f"reads each response alone{again}"
    if config.orders == "both":
        return f"reads both responses twice, in both orders{again}"
    first = "teacher" if config.orders == "teacher_first" else "student"
    return f"reads both responses {f'{config.samples} times' if config.samples > 1 else 'once'}, the {first}'s first"
