"""Three roles: a viewer reads, a member launches and reviews, an admin also sets endpoints, people and budgets.

A role is a Django group of that name. Who is signed in and in none of the groups is a viewer; a superuser is an admin.
"""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, Literal, ParamSpec, get_args

from django.contrib.auth.models import AnonymousUser, Group, User
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponseBase

Role = Literal["viewer", "member", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)  # from the least to the most
P = ParamSpec("P")
View = Callable[Concatenate[HttpRequest, P], HttpResponseBase]


def role_of(user: User | AnonymousUser) -> Role | None:
    """The highest role of a user; None for whoever is not signed in."""
    if not user.is_authenticated or not user.is_active:
        return None
    if user.is_superuser:
        return "admin"
    names = set(user.groups.filter(name__in=ROLES).values_list("name", flat=True))
    return max((role for role in ROLES if role in names), key=ROLES.index, default="viewer")


def has_role(user: User | AnonymousUser, role: Role) -> bool:
    """Whether the user may do what `role` may: a higher role may as well."""
    found = role_of(user)
    return found is not None and ROLES.index(found) >= ROLES.index(role)


def requires(role: Role) -> Callable[[View[P]], View[P]]:
    """Decorates a view: whoever has less than `role` gets the 403 page, whatever the view would have shown."""

    def decorate(view: View[P]) -> View[P]:
        @wraps(view)
        def guarded(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
            if not has_role(request.user, role):
                raise PermissionDenied(f"This needs the role {role}. An admin can give it to you.")
            return view(request, *args, **kwargs)

        return guarded

    return decorate


@transaction.atomic
def give_role(user: User, role: Role) -> None:
    """Makes `role` the user's only role. An admin also gets into Django's admin pages."""
    groups = {name: Group.objects.get_or_create(name=name)[0] for name in ROLES}
    user.groups.remove(*groups.values())
    user.groups.add(groups[role])
    user.is_staff = user.is_superuser = role == "admin"
    user.save(update_fields=["is_staff", "is_superuser"])
