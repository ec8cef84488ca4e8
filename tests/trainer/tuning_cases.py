"""Small tunings that tests share: a student of 32 features, and examples that write words in capitals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.config import RunConfig, config_from_dict
from trainer.records import Example, Instruction, Metric, TuningNews
from trainer.speaker import never
from trainer.student import LocalStudent

STEPS = 12


class Killed(BaseException):
    """Stands for kill -9: nothing in the code under test catches it."""


def make_config(*, student: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
    small = {
        "model": "scratch-llama",
        "precision": "fp32",
        "template": "chat",
        "scratch_width": 32,
        "scratch_layers": 2,
        "scratch_heads": 2,
    }
    tuning = {
        "first_steps": STEPS,
        "steps": STEPS,
        "batch_size": 8,
        "device_batch_size": 8,
        "learning_rate": 5e-3,
        "warmup": 1 / STEPS,
        "save_steps": 4,
        "log_steps": 3,
    }
    data = {
        "seed": 11,
        "endpoints": {"teacher": {}},
        "student": {**small, **(student or {})},
        "imitation": {**tuning, **settings},
        "respond": {"temperature": 0, "max_new_tokens": 12, "batch_size": 8},
    }
    return config_from_dict(data)


def make_examples(count: int = 20) -> list[Example]:
    letters = "abcdefghij"
    words = [
        "".join(letters[(n * step + 3 * at) % 10] for at in range(3 + n % 4)) for n, step in zip(range(count), [3, 7] * count, strict=False)
    ]
    return [Example(instruction=Instruction(key=f"i{n:02d}", text=f"upper: {word}"), response=word.upper()) for n, word in enumerate(words)]


def imitate(
    config: RunConfig,
    folder: Path,
    *,
    examples: list[Example] | None = None,
    iteration: int = 0,
    start: Path | None = None,
    should_stop: Callable[[], bool] = never,
    on_metric: Callable[[Metric], None] | None = None,
    news: list[TuningNews] | None = None,
    use_saved: bool = False,
) -> tuple[Path, list[Metric]]:
    """A tuning in this process: its checkpoint and its metrics; all that it tells goes into `news`."""
    metrics: list[Metric] = []

    def keep(told: TuningNews) -> None:
        if news is not None:
            news.append(told)
        if isinstance(told, Metric):
            metrics.append(told)
            if on_metric:
                on_metric(told)

    student = LocalStudent(config, folder, start, should_stop=should_stop)
    info = student.imitate(make_examples() if examples is None else examples, iteration=iteration, tell=keep, use_saved=use_saved)
    return info.path, metrics


def weights_of(path: Path) -> bytes:
    [file] = path.glob("*.safetensors")
    return file.read_bytes()


def kill_at(step: int) -> Callable[[Metric], None]:
    def kill(metric: Metric) -> None:
        if metric.step >= step:
            raise Killed

    return kill
