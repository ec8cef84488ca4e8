"""What the run page shows of an imitation: what it takes, what the student reads, how it goes, and the save it left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from experiments.models import Imitation
from experiments.querysets_curves import LoggedStep
from experiments.states import JobState
from trainer.records import FirstBatch, Preflight, Record, ShownExample

if TYPE_CHECKING:
    from experiments.board import StepView

R = TypeVar("R", bound=Record)

TIGHT = 0.9
"""Share of the device's memory above which an estimate is called tight."""

ENDED_EARLY = frozenset({JobState.FAILED, JobState.CRASHED, JobState.STOPPED})


@dataclass(frozen=True)
class MemoryPart:
    """One part of what the device must hold. percent: of the whole bar."""

    name: str
    size: int
    percent: float


@dataclass(frozen=True)
class PreflightView:
    """A preflight, and what follows from its numbers."""

    found: Preflight

    @property
    def parts(self) -> list[MemoryPart]:
        whole = max(self.found.memory, self.found.memory_needed, 1)
        names = ("weights", "gradients", "optimizer", "activations", "libraries")
        return [MemoryPart(name, size, 100 * size / whole) for name in names if (size := getattr(self.found, name))]

    @property
    def device_percent(self) -> float | None:
        """Where on the bar the device's memory ends; None where everything fits."""
        return 100 * self.found.memory / self.found.memory_needed if self.found.memory < self.found.memory_needed else None

    @property
    def fit(self) -> str:
        """fits, tight or does not fit. What only an estimate says does not fit is tight: it may yet."""
        found = self.found
        counted = found.memory_needed - found.activations - found.libraries
        if counted > found.memory or found.disk_needed > found.disk_free:
            return "does not fit"
        return "tight" if found.memory_needed > TIGHT * found.memory else "fits"

    @property
    def trainable_percent(self) -> float:
        return 100 * self.found.trainable / max(self.found.parameters, 1)


@dataclass(frozen=True, kw_only=True)
class ImitationView:
    """An iteration's imitation. step: its tuning, None before that is queued.

    metrics: its logged steps, each once, thinned where there are more than a line draws.
    """

    number: int
    preflight: PreflightView | None
    first_batch: FirstBatch | None
    metrics: Sequence[LoggedStep]
    step: StepView | None
    saved_step: int | None
    steps: int

    @property
    def last(self) -> LoggedStep | None:
        return self.metrics[-1] if self.metrics else None

    @property
    def peak_memory_gib(self) -> float | None:
        return self.metrics[-1].peak_gib if self.metrics else None

    @property
    def has_save_to_use(self) -> bool:
        """Whether its tuning ended before its last step and left a save."""
        return self.saved_step is not None and self.step is not None and self.step.state in ENDED_EARLY

    @property
    def ended_at_step(self) -> int | None:
        """The step its tuning had come to, where that is known."""
        return self.step.done if self.step and self.step.total else self.saved_step


def read_imitations(
    rows: Sequence[Any], imitations: Mapping[int, Imitation], metrics: Sequence[LoggedStep], tunings: Mapping[int, StepView]
) -> list[ImitationView]:
    """The imitations of a run that something is known of, newest first.

    rows: its iterations; imitations: by iteration id; metrics: of all iterations, in order; tunings: by iteration number.
    """
    logged: dict[int, list[LoggedStep]] = {}
    for metric in metrics:
        logged.setdefault(metric.iteration_id, []).append(metric)
    known = [row for row in rows if row.pk in imitations or row.pk in logged]
    return [_view(row.number, imitations.get(row.pk), logged.get(row.pk, []), tunings.get(row.number)) for row in reversed(known)]


def _view(number: int, imitation: Imitation | None, metrics: Sequence[LoggedStep], step: StepView | None) -> ImitationView:
    found = preflight_of(imitation)
    last_steps = metrics[-1].steps if metrics else 0
    return ImitationView(
        number=number,
        preflight=PreflightView(found) if found else None,
        first_batch=first_batch_of(imitation),
        metrics=metrics,
        step=step,
        saved_step=imitation.saved_step if imitation else None,
        steps=(imitation.steps if imitation else 0) or last_steps,
    )


def preflight_of(imitation: Imitation | None) -> Preflight | None:
    """The preflight of an imitation; None before there is one, or where another version wrote what this one cannot read."""
    return _record(Preflight, imitation.preflight) if imitation and imitation.preflight else None


def first_batch_of(imitation: Imitation | None) -> FirstBatch | None:
    """The first batch of an imitation; None before there is one, or where this version cannot read it."""
    kept = imitation.first_batch if imitation else {}
    shown = [_record(ShownExample, example) for example in kept.get("examples", ())]
    if not shown or None in shown:
        return None
    return FirstBatch(examples=tuple(filter(None, shown)), batch_size=int(kept.get("batch_size", 0)))


def _record(kind: type[R], values: Mapping[str, Any]) -> R | None:
    known = {field.name for field in fields(kind)}
    try:
        return kind(**{name: value for name, value in values.items() if name in known})
    except TypeError:  # a field is missing
        return None


def tokens_per_step(imitation: Imitation | None) -> float | None:
    """Response tokens in a step on average; None before its preflight has counted them."""
    found = preflight_of(imitation)
    return found.response_tokens / found.steps if found and found.steps and found.response_tokens else None
