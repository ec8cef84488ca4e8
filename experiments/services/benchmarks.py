"""Benchmarks: imported whole or not at all, from their official files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from django.db import transaction

from experiments.models import Benchmark, HeldOutItem, Iteration
from trainer import contamination
from trainer.benchmarks.sources import SOURCES, read_benchmark
from trainer.errors import ConfigError
from trainer.held_out import as_held_out


def import_benchmark(name: str, folder: Path) -> Benchmark:
    """Import a benchmark by its name from the folder of its files; the same files again change nothing.

    Raises ConfigError for an unknown name, DamagedFile naming the file and line, and ConfigError where other files were imported before:
    the items that runs were held against would change under them.
    """
    source = SOURCES.get(name)
    if source is None:
        raise ConfigError(f"There is no benchmark {name!r} to import. Known: {', '.join(SOURCES)}.")
    read = read_benchmark(source, folder)
    with transaction.atomic():
        row, made = Benchmark.objects.get_or_create(
            name=name, defaults={"title": source.title, "home": source.home, "licence": source.licence, "digests": dict(read.digests)}
        )
        if not made and row.digests != read.digests:
            raise ConfigError(f"{source.title} was imported from other files before. It stays as it was: runs were held against it.")
        if made:
            rows = [
                HeldOutItem(benchmark=row, key=item.key, task=item.task, prompt=item.prompt, question=item.question, gold=item.gold)
                for item in read.items
            ]
            HeldOutItem.objects.bulk_create(rows, batch_size=2000)
    return row


def imported_items(iteration: Iteration) -> Iterator[contamination.HeldOutItem]:
    """The items of the imported benchmarks that the new instructions of an iteration are held against.

    Those that are there when the first is asked for: they are written down, and a step that goes on later decides by the same ones.
    """
    with transaction.atomic():
        row = Iteration.objects.select_for_update().get(pk=iteration.pk)
        if row.held_against is None:
            row.held_against = list(Benchmark.objects.values_list("name", flat=True))
            row.save(update_fields=["held_against"])
    for item in HeldOutItem.objects.filter(benchmark__name__in=row.held_against).select_related("benchmark").order_by("id").iterator():
        yield as_held_out(item.benchmark.name, item.record)
