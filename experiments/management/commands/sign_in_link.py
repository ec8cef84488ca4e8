from argparse import ArgumentParser
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management.base import BaseCommand
from django.urls import reverse
from sesame.utils import get_token

from experiments.roles import ROLES, Role, give_role


class Command(BaseCommand):
    help = "Prints a link that signs somebody in, once, within one hour; makes the user when there is none of that name"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("username", nargs="?", default="admin")
        parser.add_argument("--role", choices=ROLES, help="give this role (a new user is a viewer, admin is an admin)")

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(sign_in_link(ensure_user(options["username"], role=options["role"])))


def ensure_user(username: str, *, role: Role | None = None) -> User:
    """The user of that name, made when absent, without a usable password. An existing role changes only when one is given."""
    user, is_new = User.objects.get_or_create(username=username)
    if is_new:
        user.set_unusable_password()
        user.save(update_fields=["password"])
        role = role or ("admin" if username == "admin" else "viewer")
    if role:
        give_role(user, role)
    return user


def sign_in_link(user: User) -> str:
    return f"{settings.LIONWEB_URL}{reverse('sign_in_link')}?{urlencode({'sesame': get_token(user)})}"
