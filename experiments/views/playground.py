"""The playground of a checkpoint: ask it, and watch what it and others answer."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET
from django.views.decorators.vary import vary_on_headers

from experiments.models import Checkpoint, Question
from experiments.playground_board import earlier_than, questions_of, read_asked, with_answers
from experiments.playground_form import QuestionForm, initial_of
from experiments.roles import requires
from experiments.services import playground as service
from experiments.views.methods import post_from
from experiments.views.paging import page_of

PAGE_SIZE = 10


def playground_context(request: HttpRequest, checkpoint: Checkpoint, form: QuestionForm | None = None) -> dict[str, Any]:
    """What `_playground.html` shows: the form, and the questions to the checkpoint so far, newest first."""
    page = page_of(request, questions_of(checkpoint), size=PAGE_SIZE)
    return {
        "checkpoint": checkpoint,
        "question_form": form or _form(checkpoint, initial=_asked_before(request, checkpoint)),
        "questions": page,
        "asked": read_asked(page.object_list),
    }


@require_GET
def playground(request: HttpRequest, checkpoint_id: int) -> HttpResponse:
    """A page with nothing but the playground; `again=N` in the URL fills the form with question N."""
    return render(request, "playground.html", playground_context(request, _checkpoint(checkpoint_id)))


@post_from("playground")
@requires("member")
def playground_ask(request: HttpRequest, checkpoint_id: int) -> HttpResponse:
    checkpoint = _checkpoint(checkpoint_id)
    form = _form(checkpoint, data=request.POST)
    if not form.is_valid():
        return render(request, "playground.html", playground_context(request, checkpoint, form), status=422)
    assert isinstance(request.user, User)
    question = service.ask(checkpoint, by=request.user, **form.options)
    return redirect("playground_question", checkpoint_id, question.pk)


@require_GET
@vary_on_headers("HX-Request")
def playground_question(request: HttpRequest, checkpoint_id: int, question_id: int) -> HttpResponse:
    """One question and its answers; for htmx the part that changes, which asks no more once all is said."""
    question = _question(checkpoint_id, question_id)
    context = {"checkpoint": question.checkpoint, "one": read_asked([question])[0]}
    return render(request, "_playground_question.html" if request.headers.get("HX-Request") else "playground_question.html", context)


@post_from("playground_question")
@requires("member")
def playground_stop(request: HttpRequest, checkpoint_id: int, question_id: int) -> HttpResponse:
    """Withdraw a question, or stop who answers it."""
    service.stop(_question(checkpoint_id, question_id))
    return redirect("playground_question", checkpoint_id, question_id)


def _checkpoint(checkpoint_id: int) -> Checkpoint:
    return get_object_or_404(Checkpoint.objects.select_related("iteration__run__experiment"), pk=checkpoint_id)


def _question(checkpoint_id: int, question_id: int) -> Question:
    found = with_answers(Question.objects.filter(pk=question_id, checkpoint=checkpoint_id))
    question = found.select_related("asked_by", "checkpoint__iteration__run__experiment").first()
    if question is None:
        raise Http404("There is no such question to this checkpoint.")
    return question


def _form(checkpoint: Checkpoint, *, data: Any = None, initial: dict[str, Any] | None = None) -> QuestionForm:
    return QuestionForm(data, checkpoint=checkpoint, earlier=earlier_than(checkpoint), initial=initial)


def _asked_before(request: HttpRequest, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What the question that the URL names was asked with; any other number is none."""
    again = request.GET.get("again", "")
    if not (again.isascii() and again.isdigit() and len(again) < 19):
        return None
    question = Question.objects.filter(pk=int(again), checkpoint=checkpoint).first()
    return initial_of(question) if question else None
