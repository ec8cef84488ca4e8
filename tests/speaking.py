"""Students of random weights on disk, for the playground: at temperature 0 one speaks until it is cut off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from django.conf import settings
from django.contrib.auth.models import User

from experiments.models import Checkpoint, Run
from tests import make
from trainer.config import RunConfig, load_preset

TALKATIVE_SEED = 2
"""The student of this seed does not end by itself."""


def tiny_config(*, seed: int = TALKATIVE_SEED) -> RunConfig:
    """The demo's config with a student of 32 features."""
    preset = load_preset("demo")
    return replace(preset, seed=seed, student=replace(preset.student, scratch_width=32, scratch_layers=2, scratch_heads=2))


def save_student(folder: Path, *, seed: int = TALKATIVE_SEED) -> Path:
    """Write the student of a seed as a checkpoint's weights and tokenizer would lie there."""
    from trainer.models import byte_tokenizer, scratch_llama

    scratch_llama(tiny_config(seed=seed)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def make_speaking_run(owner: User, *, base_url: str = "http://127.0.0.1:1/v1") -> Run:
    """A finished run whose checkpoints speak, each otherwise; its teacher is at the address."""
    config, tiny = make.make_config(), tiny_config()
    endpoint = replace(config.endpoints["offline"], base_url=base_url, retries=0)
    run = make.make_finished_run(owner, config=replace(config, seed=tiny.seed, student=tiny.student, endpoints={"offline": endpoint}))
    for checkpoint in Checkpoint.objects.filter(iteration__run=run).select_related("iteration"):
        number = checkpoint.iteration.number
        folder = save_student(settings.LIONWEB_DATA / "runs" / str(run.pk) / f"student-{number}", seed=4 + number)
        Checkpoint.objects.filter(pk=checkpoint.pk).update(path=str(folder.relative_to(settings.LIONWEB_DATA)))
    return run
