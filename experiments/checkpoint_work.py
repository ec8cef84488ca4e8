"""What a worker does when something was asked of a checkpoint: one function a kind of errand.

Each works on files of the data folder, or says in a sentence why it cannot; the errand's result holds what came of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.utils.text import slugify

from experiments.errand_runner import ErrandPulse, Work
from experiments.models import BenchmarkScore, Checkpoint, Errand, ErrandKind, Iteration
from experiments.services import errands
from experiments.services.checkpoint_files import export_folder, folder_of, size_of
from trainer import export, storage
from trainer.checkpoints import Manifest, digests_of, read_checkpoint, verify_checkpoint
from trainer.config import endpoint_of, stored_config
from trainer.model_card import Told, model_card


def make_merged(errand: Errand, pulse: ErrandPulse) -> dict[str, Any]:
    out, folder = export_folder(errand), folder_of(errand.checkpoint)
    export.export_merged(folder, out, card=card_of(errand.checkpoint, as_merged=True), should_stop=_stop(pulse), tell=pulse.tell)
    return _left(out)


def make_adapter(errand: Errand, pulse: ErrandPulse) -> dict[str, Any]:
    out = export_folder(errand)
    export.export_adapter(folder_of(errand.checkpoint), out, card=card_of(errand.checkpoint), tell=pulse.tell)
    return _left(out)


def make_gguf(errand: Errand, pulse: ErrandPulse) -> dict[str, Any]:
    out = export_folder(errand)
    export.export_gguf(
        folder_of(errand.checkpoint),
        out,
        name=file_name(errand.checkpoint),
        stored_as=errand.options.get("stored_as", "auto"),
        llama_cpp=settings.LIONWEB_LLAMA_CPP,
        should_stop=_stop(pulse),
        tell=pulse.tell,
    )
    return _left(out)


def push(errand: Errand, pulse: ErrandPulse) -> dict[str, Any]:
    adapter_alone = errand.options.get("weights") == "adapter"
    return export.push(
        folder_of(errand.checkpoint),
        export_folder(errand),
        repo=errand.options["repo"],
        private=errand.options.get("private", True),
        adapter_alone=adapter_alone,
        card=card_of(errand.checkpoint, as_merged=not adapter_alone),
        should_stop=_stop(pulse),
        tell=pulse.tell,
    )


def store(errand: Errand, pulse: ErrandPulse) -> dict[str, Any]:
    """A copy in a folder of its own: run ids begin at 1 in every installation and every new database, and a storage may be shared."""
    checkpoint, folder = errand.checkpoint, folder_of(errand.checkpoint)
    url = f"{settings.LIONWEB_STORAGE_URL}/{checkpoint.path}-{storage.mark_of(folder)}"
    storage.store(folder, url, should_stop=_stop(pulse), tell=pulse.tell)
    with errands.while_held(errand):
        Checkpoint.objects.filter(pk=checkpoint.pk).update(stored_at=url)
    return {"url": url}


def restore(errand: Errand, pulse: ErrandPulse) -> dict[str, Any]:
    checkpoint = errand.checkpoint
    storage.bring_back(
        checkpoint.stored_at,
        folder_of(checkpoint),
        files=checkpoint.manifest.get("files", {}),
        size=checkpoint.size_bytes,
        should_stop=_stop(pulse),
        tell=pulse.tell,
    )
    with errands.while_held(errand):
        Checkpoint.objects.filter(pk=checkpoint.pk).update(deleted_at=None)
    return {"path": checkpoint.path}


def verify(errand: Errand, pulse: ErrandPulse) -> dict[str, Any]:
    """The sha256 of every file against the manifest on the disk, and that manifest against the row."""
    pulse.tell("reading every file")
    folder = folder_of(errand.checkpoint)
    problems = verify_checkpoint(folder)
    kept = errand.checkpoint.manifest.get("files")
    if not problems and kept is not None and read_checkpoint(folder).files != kept:
        problems.append("lionweb.json lists other files than when the checkpoint was made.")
    return {"problems": problems}


WORK: dict[str, Work] = {
    ErrandKind.MERGED: make_merged,
    ErrandKind.ADAPTER: make_adapter,
    ErrandKind.GGUF: make_gguf,
    ErrandKind.PUSH: push,
    ErrandKind.STORE: store,
    ErrandKind.RESTORE: restore,
    ErrandKind.VERIFY: verify,
}


def file_name(checkpoint: Checkpoint) -> str:
    """A checkpoint's name for files of others: letters, digits and dashes."""
    iteration = checkpoint.iteration
    return f"{slugify(iteration.run.name)[:60] or f'run-{iteration.run_id}'}-iteration-{iteration.number}"


def card_of(checkpoint: Checkpoint, *, as_merged: bool = False) -> str:
    """The model card of an export. as_merged: the whole weights, whatever the method was."""
    manifest = read_checkpoint(folder_of(checkpoint))
    return model_card(manifest, _told(checkpoint, manifest), merged=as_merged)


def _told(checkpoint: Checkpoint, manifest: Manifest) -> Told:
    iteration: Iteration = checkpoint.iteration
    run, config = iteration.run, stored_config(manifest.config)
    scores = BenchmarkScore.objects.filter(iteration=iteration, task="")
    return Told(
        name=f"{run.name}, iteration {iteration.number}",
        seed_pool=run.seed_pool.name if run.seed_pool else Path(config.seed_pool).name,
        licence=run.seed_pool.licence if run.seed_pool else "",
        teacher=config.endpoints[endpoint_of(config, "teacher")].model,
        scores=[(score.benchmark, score.value, 1.96 * score.standard_error, score.n) for score in scores],
    )


def _stop(pulse: ErrandPulse) -> Callable[[], bool]:
    return lambda: pulse.cancelled


def _left(out: Path) -> dict[str, Any]:
    return {"path": str(out.relative_to(settings.LIONWEB_DATA)), "files": digests_of(out), "size": size_of(out)}
