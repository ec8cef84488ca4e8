from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from experiments.services.pools import import_seed_pool
from trainer.errors import ConfigError
from trainer.seed_pools import decode_seed_pool


class Command(BaseCommand):
    help = "Imports a seed pool from a JSON or JSONL file in the Alpaca or the Self-Instruct format, whole or not at all"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--name", help="what the pool is called; else the file's name without its ending")
        parser.add_argument("--licence", default="", help="for instance CC-BY-NC-4.0")

    def handle(self, *args: Any, **options: Any) -> None:
        file: Path = options["file"]
        try:
            text = decode_seed_pool(file.read_bytes(), name=file.name)
            pool = import_seed_pool(text, name=options["name"] or file.stem, source=file.name, licence=options["licence"])
        except OSError as error:
            raise CommandError(f"{file} cannot be read: {error.strerror}. Check the path.") from None
        except ConfigError as error:
            raise CommandError(str(error)) from None
        dropped = f", {pool.duplicates} exact repeats dropped" if pool.duplicates else ""
        self.stdout.write(f"Imported {pool.name}: {pool.instructions.count()} instructions{dropped}.")
