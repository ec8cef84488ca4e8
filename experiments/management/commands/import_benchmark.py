from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from experiments.models import Benchmark
from experiments.services.benchmarks import import_benchmark
from trainer.benchmarks.sources import SOURCES
from trainer.errors import ConfigError


class Command(BaseCommand):
    help = "Imports a published benchmark from a folder with its official files, so that no new instruction may overlap with its items"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", choices=list(SOURCES))
        parser.add_argument("--from", dest="folder", type=Path, required=True, help="the folder of its files")

    def handle(self, *args: Any, **options: Any) -> None:
        known = Benchmark.objects.filter(name=options["name"]).exists()
        try:
            benchmark = import_benchmark(options["name"], options["folder"])
        except ConfigError as error:
            raise CommandError(str(error)) from None
        if known:
            self.stdout.write("Imported before from these files: nothing changed.")
        tasks = len(set(benchmark.items.order_by().values_list("task", flat=True)))
        self.stdout.write(
            f"{benchmark.title}: {benchmark.items.count():,} items of {tasks} task{'s' * (tasks != 1)}. Licence: {benchmark.licence}."
        )
