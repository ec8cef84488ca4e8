"""Who asks."""

from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest


def signed_in(request: HttpRequest) -> User:
    """The signed-in user of a request; LoginRequiredMiddleware lets nobody else through."""
    if not isinstance(request.user, User):
        raise PermissionDenied("Sign in first.")
    return request.user
