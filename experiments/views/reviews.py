"""Reviews: agree with the verdict on an instruction or overrule it, and take that back."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse

from experiments.models import Verdict
from experiments.roles import requires
from experiments.services import reviews
from experiments.views.methods import post_from
from experiments.views.people import signed_in
from trainer.errors import ConfigError
from trainer.text import storable


@post_from("instruction")
@requires("member")
def instruction_review(request: HttpRequest, instruction_id: int) -> HttpResponse:
    """Rule `label` of the verdict on an instruction in the iteration of the address, with an optional `comment`."""
    verdict = _verdict(request, instruction_id)
    comment = storable(request.POST.get("comment", "")).replace("\r\n", "\n").strip()
    try:
        ruled = reviews.review(verdict, label=request.POST.get("label", ""), comment=comment, by=signed_in(request))
    except ConfigError as error:
        messages.error(request, str(error))
    else:
        said = "You agree with the referee" if ruled.label == verdict.label else "You overrule the referee"
        messages.success(request, f"{said}: {ruled.label}.")
    return _back(verdict)


@post_from("instruction")
@requires("member")
def instruction_review_withdraw(request: HttpRequest, instruction_id: int) -> HttpResponse:
    verdict = _verdict(request, instruction_id)
    if reviews.withdraw(verdict, by=signed_in(request)):
        messages.success(request, "Your review is withdrawn.")
    return _back(verdict)


def _verdict(request: HttpRequest, instruction_id: int) -> Verdict:
    asked = request.GET.get("iteration", "")
    number = int(asked) if asked.isdecimal() and len(asked) < 5 else -1
    return get_object_or_404(Verdict.objects.select_related("iteration"), instruction=instruction_id, iteration__number=number)


def _back(verdict: Verdict) -> HttpResponse:
    return redirect(reverse("instruction", args=[verdict.instruction_id], query={"iteration": verdict.iteration.number}) + "#review")
