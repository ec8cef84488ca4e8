"""The stages of a run and the steps they are made of, as data: what follows what, and which queue does it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from trainer.config import RunConfig


class Stage(StrEnum):
    """The four stages, in the words of the glossary."""

    IMITATION = "imitation"
    EVALUATION = "evaluation"
    DISCRIMINATION = "discrimination"
    GENERATION = "generation"


class Step(StrEnum):
    """What one worker does in one go."""

    PREFLIGHT = "preflight"
    TEACHER_RESPONSES = "teacher_responses"
    TUNING = "tuning"
    BENCHMARKS = "benchmarks"
    STUDENT_RESPONSES = "student_responses"
    JUDGEMENTS = "judgements"
    CANDIDATES = "candidates"


STEPS: dict[Stage, tuple[Step, ...]] = {
    Stage.DISCRIMINATION: (Step.STUDENT_RESPONSES, Step.JUDGEMENTS),
    Stage.GENERATION: (Step.CANDIDATES,),
    Stage.IMITATION: (Step.PREFLIGHT, Step.TEACHER_RESPONSES, Step.TUNING),
    Stage.EVALUATION: (Step.BENCHMARKS,),
}

ROLE_OF = {Step.TEACHER_RESPONSES: "teacher", Step.JUDGEMENTS: "referee", Step.CANDIDATES: "generator"}
"""The steps that call an endpoint, and the role that does it."""
STEP_OF = {role: step for step, role in ROLE_OF.items()}

GPU_STEPS = frozenset({Step.PREFLIGHT, Step.TUNING, Step.BENCHMARKS, Step.STUDENT_RESPONSES})


@dataclass(frozen=True)
class Planned:
    """One step of one iteration."""

    iteration: int
    stage: Stage
    step: Step


def plan(config: RunConfig) -> Iterator[Planned]:
    """Every step of a run, in the order of the paper."""
    for iteration in range(config.loop.iterations + 1):
        stages = [Stage.IMITATION] if iteration == 0 else [Stage.DISCRIMINATION, Stage.GENERATION, Stage.IMITATION]
        if config.evaluation.benchmarks:
            stages.append(Stage.EVALUATION)
        for stage in stages:
            yield from (Planned(iteration, stage, step) for step in STEPS[stage] if _wanted(step, iteration, config))


def _wanted(step: Step, iteration: int, config: RunConfig) -> bool:
    """The preflight comes once, before the first call is paid."""
    return step is not Step.PREFLIGHT or (iteration == 0 and config.imitation.preflight)
