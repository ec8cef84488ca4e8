"""States and their allowed moves, as data. Only jobs have a stored state; those of stages and runs are derived from their jobs."""

from django.db import models


class JobState(models.TextChoices):
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CRASHED = "crashed"
    STOPPED = "stopped"


MOVES: dict[str, frozenset[str]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.STOPPED}),
    JobState.RUNNING: frozenset({JobState.FINISHED, JobState.FAILED, JobState.CRASHED, JobState.STOPPED}),
    JobState.FINISHED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CRASHED: frozenset(),
    JobState.STOPPED: frozenset(),
}

LIVE = frozenset({JobState.QUEUED, JobState.RUNNING})
"""A stage's step has at most one live job."""

MOST_CRASHES = 5
"""So many crashed jobs of one step in a row, and it is failed rather than tried again: something is wrong with the step itself."""


class Queue(models.TextChoices):
    TEACHER = "teacher"
    GPU = "gpu"


class RunState(models.TextChoices):
    """Derived: the worst of what a person should know about a run."""

    QUEUED = "queued"
    RUNNING = "running"
    STOPPING = "stopping"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


class StageState(models.TextChoices):
    """Derived: a stage waits until its first job is queued."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
