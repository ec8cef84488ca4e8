"""What people do with checkpoints: ask for exports and copies, pin, look at what a policy would free, delete."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone

from experiments import querysets
from experiments.models import Answer, BenchmarkScore, Checkpoint, Errand, ErrandKind, Job, Run
from experiments.services import errands
from experiments.services.checkpoint_files import (
    EXPORTS,
    export_folder,
    exports_of,
    folder_of,
    is_there,
    remove,
    saves_of,
    size_of,
    size_with_leftovers,
)
from experiments.services.retention import Kept, Plan, Policy, Save, make_plan, why_not
from experiments.states import LIVE, JobState, Queue, RunState
from trainer.checkpoints import readable_size
from trainer.config import SCRATCH_MODEL
from trainer.errors import ConfigError
from trainer.export import NO_BASE, converter, require_repo
from trainer.plan import Stage, Step
from trainer.storage import require_url

logger = logging.getLogger(__name__)


# Asking


@transaction.atomic
def ask(checkpoint_id: int, kind: str, *, by: User, **options: Any) -> Errand:
    """Ask a worker of the gpu queue for something. Raises ConfigError, before anything is queued, where it cannot be had.

    The row is locked, as by a deletion: of the two, one comes first and the other one sees it.
    """
    checkpoint = Checkpoint.objects.select_for_update(of=("self",)).select_related("iteration").get(pk=checkpoint_id)
    _check(checkpoint, kind, options)
    if checkpoint.errands.filter(kind=kind, options=options, state__in=LIVE).exists():
        raise ConfigError(f"That was asked already and is not over: {ErrandKind(kind).label}.")
    if kind in EXPORTS and any(is_there(export_folder(errand)) for errand in _finished(checkpoint, kind, options)):
        raise ConfigError(f"That is there already: {ErrandKind(kind).label}. Delete it first to have it made anew.")
    return errands.ask(kind, checkpoint, by=by, **options)


def _finished(checkpoint: Checkpoint, kind: str, options: dict[str, Any]) -> Iterable[Errand]:
    """Whether their files are still there is the disk's to say."""
    return checkpoint.errands.filter(kind=kind, options=options, state=JobState.FINISHED)


def _check(checkpoint: Checkpoint, kind: str, options: dict[str, Any]) -> None:
    if kind == ErrandKind.RESTORE:
        if not checkpoint.stored_at:
            raise ConfigError("There is no copy of this checkpoint in the team's storage.")
        return
    if checkpoint.deleted_at:
        raise ConfigError("The files of this checkpoint were deleted. Bring them back from the team's storage first, if it has a copy.")
    if kind == ErrandKind.ADAPTER and checkpoint.manifest.get("method") == "full":
        raise ConfigError("This checkpoint has no adapter: it was tuned whole. Export the merged weights instead.")
    if kind == ErrandKind.ADAPTER and checkpoint.manifest.get("base") == SCRATCH_MODEL:
        raise ConfigError(NO_BASE)
    if kind == ErrandKind.GGUF:
        converter(settings.LIONWEB_LLAMA_CPP)
    if kind == ErrandKind.PUSH:
        require_repo(options["repo"])
    if kind == ErrandKind.STORE:
        require_storage()


def require_storage() -> None:
    """Raise ConfigError where no storage is set, or its URL cannot be used."""
    if not settings.LIONWEB_STORAGE_URL:
        raise ConfigError("There is no team storage: set LIONWEB_STORAGE_URL, for instance to s3://bucket/folder or file:///mnt/share.")
    require_url(settings.LIONWEB_STORAGE_URL)


def pin(checkpoint: Checkpoint, *, pinned: bool) -> None:
    """A pinned checkpoint is never deleted."""
    Checkpoint.objects.filter(pk=checkpoint.pk).update(pinned=pinned)


# What there is


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """The checkpoints and saves that have files, and the runs that may still need some."""

    kept: Sequence[Kept]
    saves: Sequence[Save]
    unfinished: frozenset[int]
    starts: frozenset[str]

    def plan(self, policy: Policy) -> Plan:
        return make_plan(self.kept, self.saves, policy, unfinished=self.unfinished, starts=self.starts)

    def why_not(self, checkpoint_id: int) -> str:
        return why_not(checkpoint_id, self.kept, unfinished=self.unfinished, starts=self.starts)


def read_holdings() -> Holdings:
    """Everything that has files. Sizes of checkpoints are their rows', those of exports and saves the disk's."""
    unfinished = list(_unfinished().values_list("pk", "config__student__model"))
    rows = Checkpoint.objects.filter(deleted_at=None).order_by("iteration__run", "iteration__number")
    names = ("iteration", "iteration__run", "iteration__number", "path", "size_bytes", "pinned", "manifest__method", "manifest__base")
    values = list(rows.values_list("pk", *names))
    busy, unmeasured, scores = _busy(), _unmeasured(pk for pk, _ in unfinished), _scores()
    paths = {pk: path for pk, _, _, _, path, *_ in values}
    kept = [
        Kept(
            id=pk,
            run=run,
            iteration=number,
            path=path,
            size=size + _exported(pk),
            pinned=pinned,
            busy=pk in busy,
            unmeasured=iteration in unmeasured,
            base="" if method == "full" else _path_behind(base or "", paths),
            scores=scores[iteration],
        )
        for pk, iteration, run, number, path, size, pinned, method, base in values
    ]
    starts = frozenset(filter(None, (_path_behind(model or "", paths) for _, model in unfinished)))
    return Holdings(kept=kept, saves=_saves(kept), unfinished=frozenset(pk for pk, _ in unfinished), starts=starts)


def _unfinished() -> Any:
    """Runs that are live or could be resumed."""
    runs: Any = querysets.runs_with_state()
    return runs.exclude(state=RunState.FINISHED)


def _exported(checkpoint_id: int) -> int:
    """What the exports take beside the files they share with the checkpoint."""
    return size_of(settings.LIONWEB_DATA / "exports" / str(checkpoint_id), shared=False)


def _busy() -> set[int]:
    """Checkpoints that a live errand is about, or that speak in one."""
    asked = Errand.objects.filter(state__in=LIVE).values_list("checkpoint_id", flat=True)
    speaking = Answer.objects.filter(errand__state__in=LIVE, checkpoint__isnull=False).values_list("checkpoint_id", flat=True)
    return {pk for pk in (*asked, *speaking) if pk is not None}


def _unmeasured(unfinished: Iterable[int]) -> set[int]:
    """Iterations of these runs whose benchmarks have begun, or wait, and are not over."""
    jobs = Job.objects.filter(stage__iteration__run__in=list(unfinished), step=Step.BENCHMARKS.value)
    measured = set(jobs.filter(state=JobState.FINISHED).values_list("stage__iteration", flat=True))
    return set(jobs.values_list("stage__iteration", flat=True)) - measured


def _scores() -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = defaultdict(dict)
    rows = BenchmarkScore.objects.filter(task="", iteration__checkpoint__isnull=False)
    for iteration, benchmark, value in rows.values_list("iteration_id", "benchmark", "value"):
        found[iteration][benchmark] = value
    return found


def _path_behind(folder: str, paths: Mapping[int, str]) -> str:
    """The checkpoint that a folder is, or is an export of, by its path below the data folder; empty where it is none.

    paths: checkpoint id -> path. An export is deleted with its checkpoint: whoever needs the one needs the other.
    """
    below = _below_data(folder)
    match below.parts if below else ():
        case ("exports", checkpoint_id, _, *_) if checkpoint_id.isdecimal():
            return paths.get(int(checkpoint_id), "")
        case _:
            return str(below or "")


def _below_data(folder: str) -> Path | None:
    """A folder by its path below the data folder, however it was typed; None where it is elsewhere."""
    data, real = Path(settings.LIONWEB_DATA), Path(os.path.realpath(folder))
    return real.relative_to(data) if folder and real.is_relative_to(data) else None


def _saves(kept: Sequence[Kept]) -> list[Save]:
    tuned = set(Checkpoint.objects.values_list("iteration__run_id", "iteration__number"))
    jobs = Job.objects.filter(state__in=LIVE).select_related("stage__iteration")
    wanted = {(job.stage.iteration.run_id, job.stage.iteration.number) for job in jobs if job.stage.name == Stage.IMITATION}
    # Any step that is at work may be tuning a damaged checkpoint of an earlier iteration again.
    at_work = {job.stage.iteration.run_id for job in jobs if job.state == JobState.RUNNING and job.queue == Queue.GPU}
    runs = Run.objects.values_list("pk", flat=True)
    return [
        Save(run=run, iteration=number, size=size_of(folder), finished=(run, number) in tuned - wanted and run not in at_work)
        for run in sorted(runs)
        for number, folder in saves_of(run)
    ]


# Deleting


@dataclass
class Freed:
    """What a deletion did. checkpoints, saves: those that went whole; problems: what could not be deleted, a sentence each."""

    checkpoints: int = 0
    saves: int = 0
    size: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def words(self) -> str:
        checkpoints = f"{self.checkpoints} checkpoint{'' if self.checkpoints == 1 else 's'}"
        if not (self.checkpoints or self.saves or self.size):
            return "" if self.problems else "There was nothing to delete any more."
        return f"Deleted {checkpoints}, {self.saves} save{'' if self.saves == 1 else 's'}: {readable_size(self.size)} freed."


def carry_out(policy: Policy, *, ids: Iterable[int], saves: Iterable[tuple[int, int]] = ()) -> Freed:
    """Delete what the policy names now, and of that nothing but the checkpoints (`ids`) and saves (run, iteration) that were shown."""
    found, freed, shown = read_holdings(), Freed(), set(ids)
    plan = found.plan(policy)
    for checkpoint_id in plan.delete:
        if checkpoint_id in shown:
            _delete_into(freed, checkpoint_id)
    old = set(plan.saves) & set(saves)
    for run in sorted({run for run, _ in old}):
        for number, folder in saves_of(run):
            if (run, number) in old:
                freed.saves += _remove_into(freed, folder)
    return freed


def delete(checkpoint_id: int) -> Freed:
    """Delete the files of one checkpoint and of its exports. Raises ConfigError where something still needs it."""
    reason = read_holdings().why_not(checkpoint_id)
    if reason:
        raise ConfigError(f"It stays: {reason}.")
    freed = Freed()
    _delete_into(freed, checkpoint_id)
    return freed


def _delete_into(freed: Freed, checkpoint_id: int) -> None:
    """One checkpoint: the row says deleted first, so that nobody starts anything with files that go. One failure aborts nothing else."""
    try:
        folders = _mark_deleted(checkpoint_id)
    except ConfigError as error:
        freed.problems.append(str(error))
        return
    freed.checkpoints += _remove_into(freed, *folders)


@transaction.atomic
def _mark_deleted(checkpoint_id: int) -> list[Path]:
    """Gives the folders to remove. Raises ConfigError where it was pinned or asked for in the meantime, or lies elsewhere."""
    row = Checkpoint.objects.select_for_update(of=("self",)).select_related("iteration").get(pk=checkpoint_id)
    folders = [folder_of(row), exports_of(row.pk)]
    speaks = Answer.objects.filter(checkpoint=row, errand__state__in=LIVE).exists()
    if row.pinned or speaks or row.errands.filter(state__in=LIVE).exists():
        raise ConfigError(f"{row.path} stays: it was pinned, or somebody asked something of it, in the meantime.")
    if row.deleted_at is None:
        Checkpoint.objects.filter(pk=row.pk).update(deleted_at=timezone.now())
        logger.info("checkpoint %s of run %s deleted", row.pk, row.iteration.run_id)
    for errand in row.errands.filter(kind__in=EXPORTS, state=JobState.FINISHED):  # none of them comes back with a restored checkpoint
        Errand.objects.filter(pk=errand.pk).update(result={**errand.result, "deleted": True})
    return folders


def _remove_into(freed: Freed, *folders: Path) -> bool:
    """Whether all of it went. What went is counted by what the disk holds before and after."""
    before = size_with_leftovers(*folders)
    problems = [problem for folder in folders for problem in remove(folder)]
    freed.size += max(0, before - size_with_leftovers(*folders))
    freed.problems += problems
    return not problems


def delete_export(errand: Errand) -> list[str]:
    """Delete the files an errand left; its row says so. Gives what could not be deleted.

    Raises ConfigError where they lie elsewhere, or where a run or an adapter still needs them.
    """
    folder = export_folder(errand)
    if needed_by := _needed_by(folder):
        raise ConfigError(f"It stays: {needed_by}.")
    Errand.objects.filter(pk=errand.pk).update(result={**errand.result, "deleted": True})
    return remove(folder)


def _needed_by(export: Path) -> str:
    """What needs an export's folder, in words: a run that may still begin with it, or an adapter on it; empty where nothing does."""
    below = _below_data(str(export))
    for name, model in _unfinished().order_by("pk").values_list("name", "config__student__model"):
        if _below_data(model or "") == below:
            return f"run {name} is not finished and begins with it"
    adapters = Checkpoint.objects.filter(deleted_at=None).exclude(manifest__method="full").order_by("pk")
    for name, number, base in adapters.values_list("iteration__run__name", "iteration__number", "manifest__base"):
        if _below_data(base or "") == below:
            return f"the adapter of run {name}, iteration {number}, needs it as its base"
    return ""
