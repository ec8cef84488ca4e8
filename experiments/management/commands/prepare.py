from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from experiments.management.commands.sign_in_link import ensure_user, sign_in_link
from lionweb import broker, embedded


class Command(BaseCommand):
    help = "Makes the database ready for this version (tables, the broker's tables); with --link, prints admin's sign-in link"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--link", action="store_true")
        parser.add_argument("--wait", type=float, default=30, metavar="SECONDS", help="how long to wait for the database to answer")

    def handle(self, *args: Any, **options: Any) -> None:
        embedded.wait_until_ready(settings.DATABASE_URL, timeout_s=options["wait"])
        if has_migrations_to_run():
            call_command("migrate", interactive=False, verbosity=0)
        broker.create_tables()
        if options["link"]:
            self.stdout.write(sign_in_link(ensure_user("admin")))


def has_migrations_to_run() -> bool:
    """Cheaper than `migrate` itself, which also renders every model and renews content types."""
    executor = MigrationExecutor(connection)
    return bool(executor.migration_plan(executor.loader.graph.leaf_nodes()))
