"""Signing in by a one-time link: nobody has a password, so none can be guessed, leaked or left at its default."""

from django.contrib.auth import get_user, login, logout
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from sesame.utils import get_user as get_link_user


@require_GET
@never_cache
@login_not_required
def show_how(request: HttpRequest) -> HttpResponse:
    """Where everybody lands who is not signed in: how to get a link."""
    if request.user.is_authenticated:
        return redirect(_wanted(request))
    return render(request, "sign_in.html")


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@login_not_required
def follow_link(request: HttpRequest) -> HttpResponse:
    """GET shows one button, POST signs in: chat programs and mail scanners open links by GET and must not use them up."""
    data = request.POST if request.method == "POST" else request.GET
    token = data.get("sesame", "")
    user = get_link_user(token, update_last_login=False) if token else None
    if not isinstance(user, User):
        return render(request, "sign_in_link.html", {"token": ""}, status=403)
    if request.method != "POST":
        return render(request, "sign_in_link.html", {"token": token, "person": user.get_username(), "next": _wanted(request)})
    login(request, user)  # notes the time of it, which is what makes the token a used one
    return redirect(_wanted(request))


@require_POST
@login_not_required
def leave(request: HttpRequest) -> HttpResponse:
    logout(request)
    return redirect("sign_in")


def enter_admin(request: HttpRequest) -> HttpResponse:
    """Stands in for the admin's password page. Who is not signed in does not get here; who is no admin stays outside."""
    user = get_user(request)
    if not (isinstance(user, User) and user.is_staff):
        raise PermissionDenied("The admin pages are for admins.")
    return redirect(_wanted(request, otherwise=reverse("admin:index")))


def _wanted(request: HttpRequest, *, otherwise: str = "/") -> str:
    """The page that was asked for before signing in, or `otherwise`: never another site."""
    target = request.POST.get("next") or request.GET.get("next") or otherwise
    safe = url_has_allowed_host_and_scheme(target, allowed_hosts={request.get_host()}, require_https=request.is_secure())
    return target if safe else otherwise
