"""Which methods a view takes."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

from django.http import HttpRequest, HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.http import require_http_methods

P = ParamSpec("P")
View = Callable[Concatenate[HttpRequest, P], HttpResponseBase]


def post_from(page: str) -> Callable[[View[P]], View[P]]:
    """Decorates a view that takes a form by POST alone; stands above `requires`.

    Who comes by GET has reloaded what the form was answered with, or followed a link to it, and is led to the page that the form is
    on: the one of this URL name, with the parameters and the query of this address.
    """

    def decorate(view: View[P]) -> View[P]:
        @require_http_methods(["GET", "HEAD", "POST"])
        @wraps(view)
        def guarded(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
            if request.method == "POST":
                return view(request, *args, **kwargs)
            return redirect(reverse(page, kwargs=kwargs, query=request.GET))

        return guarded

    return decorate
