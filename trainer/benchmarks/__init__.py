"""Benchmarks by name: held-out items, how a reply is read, and when it is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from trainer.errors import ConfigError
from trainer.records import BenchmarkAnswer, BenchmarkItem


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as one object: `items` gives its held-out items, `correct` says whether a reply is right."""

    name: str
    title: str
    items: Callable[[], Sequence[BenchmarkItem]]
    correct: Callable[[BenchmarkItem, str], bool]


@dataclass(frozen=True)
class TaskScore:
    """The score of one task, or of the whole benchmark where task is empty: value in 0..1 with its standard error over n items."""

    task: str
    value: float
    n: int
    standard_error: float


def get_benchmark(name: str) -> Benchmark:
    """A benchmark by name. Raises ConfigError for one that is not known."""
    from trainer.demo.skills import demo_skill_items, score_demo_skill

    known = {"demo_skills": Benchmark("demo_skills", "Demo skills", demo_skill_items, score_demo_skill)}
    if name not in known:
        raise ConfigError(f"There is no benchmark {name!r}. Known: {', '.join(known)}.")
    return known[name]


def task_scores(answers: Sequence[BenchmarkAnswer]) -> list[TaskScore]:
    """Accuracy per task, then their macro average (task ''): an unreadable answer counts as wrong.

    The standard error of a task is sqrt(p(1-p)/n); of the macro average, the root of the summed squares over the number of tasks.
    """
    by_task = groupby(sorted(answers, key=lambda a: a.task), key=lambda a: a.task)
    scores = [_score(task, [bool(a.correct) for a in group]) for task, group in by_task]
    if not scores:
        return []
    macro = sum(s.value for s in scores) / len(scores)
    error = math.sqrt(sum(s.standard_error**2 for s in scores)) / len(scores)
    return [*scores, TaskScore(task="", value=macro, n=sum(s.n for s in scores), standard_error=error)]


def _score(task: str, correct: Sequence[bool]) -> TaskScore:
    value = sum(correct) / len(correct)
    return TaskScore(task=task, value=value, n=len(correct), standard_error=math.sqrt(value * (1 - value) / len(correct)))
