"""What every request passes before it reaches a view."""

from collections.abc import Callable
from typing import Any

from django.contrib.auth import middleware
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponseNotAllowed
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.views.defaults import bad_request
from django_htmx.http import HttpResponseClientRedirect
from django_htmx.middleware import HtmxDetails

NUL = "\0"


class RefuseNul:
    """A NUL in the address or in a cookie is answered 400: PostgreSQL keeps none, and would refuse the query that looks for it.

    What is sent in a form is checked by the form.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        query = request.META.get("QUERY_STRING", "")
        # Looked for in the query as it was sent: a % is itself sent as %25, so that %00 stands for nothing else.
        if NUL in request.path_info or NUL in query or "%00" in query or any(NUL in value for value in request.COOKIES.values()):
            return bad_request(request, BadRequest())  # returned, not raised: a scanner at the door is worth no traceback in the log
        return self.get_response(request)


class MethodNotAllowedPage:
    """Gives an answer 405 a page, as 403 and 404 have one: Django's is empty, and a browser shows an error of its own in its place."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        if not isinstance(response, HttpResponseNotAllowed):
            return response
        page = render(request, "405.html", status=response.status_code)
        page.headers["Allow"] = response.headers["Allow"]
        return page


class LoginRequiredMiddleware(middleware.LoginRequiredMiddleware):
    """Django's, and a page left open until its session ended goes to the sign-in page.

    An htmx request would follow an ordinary redirect by itself and put the sign-in page into the middle of the open one.
    """

    def process_view(
        self, request: HttpRequest, view_func: Callable[..., HttpResponseBase], view_args: tuple[Any, ...], view_kwargs: dict[Any, Any]
    ) -> HttpResponseBase | None:
        turned_away = super().process_view(request, view_func, view_args, view_kwargs)
        htmx = HtmxDetails(request)
        if turned_away is None or not htmx:
            return turned_away
        open_page = htmx.current_url_abs_path or "/"  # to come back to; what was asked for is but a part of it
        return HttpResponseClientRedirect(redirect_to_login(open_page).url)
