"""What templates need to tell of imitations."""

from __future__ import annotations

from django import template

from experiments.board import step_words
from experiments.models import Job
from experiments.templatetags.lionweb import NONE
from trainer.checkpoints import readable_size

register = template.Library()


@register.filter
def job_words(job: Job) -> str:
    """The step of a job as a person would call it."""
    return step_words(job.step, use_saved=job.use_saved)


@register.filter
def memory_size(value: int | None) -> str:
    """Bytes in the units that errors and warnings of the trainer use: 2.50 GiB, 31 MiB."""
    return NONE if value is None else readable_size(value)


@register.filter
def gib(value: float | None) -> str:
    """A number of GiB."""
    return NONE if value is None else readable_size(value * 2**30)


@register.filter
def significant(value: float | None, digits: int = 3) -> str:
    """A number of any size with so many digits that say something: 2e-05, 0.123, 45.6."""
    return NONE if value is None else f"{value:.{digits}g}"
