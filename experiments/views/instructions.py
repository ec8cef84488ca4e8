"""A run's instructions and candidates as lists, and one instruction with all that was said of it."""

from __future__ import annotations

from typing import Any

from django.db.models import F, QuerySet
from django.db.models.functions import MD5
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET
from django.views.decorators.vary import vary_on_headers

from experiments import querysets
from experiments.flow_form import RANGE_FIELDS, InstructionFilterForm
from experiments.forms import CandidateFilterForm
from experiments.judging import how_judged
from experiments.models import Candidate, Instruction, Iteration, Judgement, Response, Role, Verdict
from experiments.querysets_diversity import PARENTS, as_parents, having
from experiments.querysets_flow import in_state
from experiments.querysets_referee import in_ranges
from experiments.querysets_reviews import is_decided
from experiments.services.reviews import MOST_CHARACTERS, why_not
from experiments.views.paging import page_of, page_of_many
from experiments.views.runs import get_run
from trainer.records import Fate
from trainer.similarity import most_similar

MOST_CHILDREN = 50
MOST_SIMILAR = 10
MOST_COMPARED = 200_000
"""Instructions that the nearest neighbours are looked for in: about three seconds."""


@require_GET
@vary_on_headers("HX-Request")
def run_instructions(request: HttpRequest, run_id: int) -> HttpResponse:
    run = get_run(run_id)
    iterations = {iteration.number: iteration for iteration in run.iterations.all()}
    form = InstructionFilterForm(request.GET, iterations=sorted(iterations), kinds=querysets.kinds_of(run))
    chosen = form.chosen
    shown = iterations[chosen["iteration"]] if "iteration" in chosen else querysets.last_judged_iteration(run)
    rows = filter_instructions(querysets.instructions_beside_verdicts(run, shown), chosen)
    if "state" in chosen:
        rows_of = as_parents if chosen["state"] in PARENTS else in_state
        rows = rows_of(rows, chosen["state"], shown) if shown else rows.none()
    page = page_of_many(request, rows, total=_total(rows, shown, chosen))
    context = {"run": run, "form": form, "shown": shown, "page": page, "filtered": bool(set(chosen) - {"sort"})}
    return render(request, _fragment_or_page(request, "instructions"), context)


def _total(rows: QuerySet[Instruction], shown: Iteration | None, chosen: dict[str, Any]) -> int:
    """How many rows there are. Where only verdicts are asked for, their own index answers."""
    if "iteration" not in chosen or set(chosen) - {"iteration", "verdict", "inconsistent", "sort", *RANGE_FIELDS}:
        return rows.count()
    exact = {column: chosen[name] for name, column in {"verdict": "label", "inconsistent": "inconsistent"}.items() if name in chosen}
    return in_ranges(Verdict.objects.filter(iteration=shown, **exact), chosen).count()


def filter_instructions(rows: QuerySet[Instruction], chosen: dict[str, Any]) -> QuerySet[Instruction]:
    """The instructions that the chosen filters leave, in the chosen order."""
    if "q" in chosen:
        rows = querysets.matching(rows, chosen["q"])
    if "iteration" in chosen and "state" not in chosen:  # some states are of what has no verdict
        rows = rows.filter(**{"label__isnull": False})
    if "made_to" in chosen:
        rows = rows.filter(iteration__number__lte=chosen["made_to"])
    exact = {"verdict": "label", "made": "iteration__number", "origin": "origin", "kind": "kind", "inconsistent": "inconsistent"}
    rows = rows.filter(**{column: chosen[name] for name, column in exact.items() if name in chosen})
    if traits := {name: chosen[name] for name in ("language", "verb", "noun") if name in chosen}:
        rows = having(rows, **traits)
    rows = in_ranges(rows, chosen)
    if "reason" in chosen:
        rows = rows.annotate(reason_md5=MD5("verdict__reason")).filter(reason_md5=chosen["reason"])
    orders = {"-d": F("discrepancy").desc(nulls_last=True), "d": F("discrepancy").asc(nulls_last=True)}
    sort = chosen.get("sort", "")
    return rows.order_by(orders[sort], "position") if sort else rows.order_by("position")


@require_GET
@vary_on_headers("HX-Request")
def run_candidates(request: HttpRequest, run_id: int) -> HttpResponse:
    run = get_run(run_id)
    numbers = sorted(run.iterations.values_list("number", flat=True))
    form = CandidateFilterForm(request.GET, iterations=numbers, fates=[fate.value for fate in Fate])
    rows = filter_candidates(Candidate.objects.filter(iteration__run=run), form.chosen)
    rows = rows.select_related("iteration", "parent", "nearest").order_by("iteration__number", "attempt", "-origin")
    context = {"run": run, "form": form, "page": page_of(request, rows)}
    return render(request, _fragment_or_page(request, "candidates"), context)


def filter_candidates(rows: QuerySet[Candidate], chosen: dict[str, Any]) -> QuerySet[Candidate]:
    if "iteration" in chosen:
        rows = rows.filter(iteration__number=chosen["iteration"])
    if "origin" in chosen:
        rows = rows.filter(origin=chosen["origin"])
    fate = chosen.get("fate")
    if fate == "rejected":
        return rows.exclude(fate=Fate.ACCEPTED)
    return rows.filter(fate=fate) if fate else rows


def _fragment_or_page(request: HttpRequest, name: str) -> str:
    return f"_{name}_list.html" if request.headers.get("HX-Request") else f"{name}.html"


@require_GET
def instruction(request: HttpRequest, instruction_id: int) -> HttpResponse:
    found = get_object_or_404(Instruction.objects.select_related("run__experiment", "iteration", "parent"), pk=instruction_id)
    verdicts = list(Verdict.objects.filter(instruction=found).select_related("iteration").order_by("iteration__number"))
    answers = list(Response.objects.filter(instruction=found).select_related("iteration").order_by("iteration__number"))
    student = {answer.iteration.number: answer for answer in answers if answer.role == Role.STUDENT}
    numbers = sorted({verdict.iteration.number for verdict in verdicts} | set(student))
    number = _chosen_number(request, numbers)
    judgements = list(Judgement.objects.filter(instruction=found, iteration__number=number).order_by("referee", "sample", "-order"))
    verdict = next((verdict for verdict in verdicts if verdict.iteration.number == number), None)
    context = {
        "instruction": found,
        "run": found.run,
        "numbers": numbers,
        "number": number,
        "teacher": next((answer for answer in answers if answer.role == Role.TEACHER), None),
        "student": student.get(number),
        "verdict": verdict,
        **_reviews(request, verdict),
        "tau": querysets.tau_of(found.run, number, default=found.run.config.get("loop", {}).get("tau")),
        "judgements": judgements,
        "several_referees": len({judgement.referee for judgement in judgements}) > 1,
        "several_samples": any(judgement.sample for judgement in judgements),
        "how": how_judged(found.run),
        "trajectory": [(verdict, student.get(verdict.iteration.number)) for verdict in verdicts],
        "ancestors": querysets.lineage(found),
        **_children(found),
        **_beside(found),
        **(_most_similar(found) if request.GET.get("similar") else {}),
    }
    return render(request, "instruction.html", context)


def _chosen_number(request: HttpRequest, numbers: list[int]) -> int:
    """The iteration the URL asks for, or the last one the student answered in; -1 where there is none."""
    asked = request.GET.get("iteration", "")
    if asked.isdecimal() and int(asked) in numbers:
        return int(asked)
    return numbers[-1] if numbers else -1


def _reviews(request: HttpRequest, verdict: Verdict | None) -> dict[str, Any]:
    """What people ruled of a verdict so far, one's own ruling among it, and whether ruling still changes anything."""
    if verdict is None:
        return {}
    reviews = list(verdict.reviews.select_related("reviewer"))
    return {
        "reviews": reviews,
        "own_review": next((review for review in reviews if review.reviewer_id == request.user.pk), None),
        "not_reviewable": why_not(verdict),
        "review_decided": is_decided(verdict.iteration),
        "other_label": "easy" if verdict.label == "hard" else "hard",
        "most_characters": MOST_CHARACTERS,
    }


def _children(found: Instruction) -> dict[str, Any]:
    children = list(found.children.select_related("iteration").order_by("position")[: MOST_CHILDREN + 1])
    return {"children": children[:MOST_CHILDREN], "more_children": len(children) > MOST_CHILDREN}


def _most_similar(found: Instruction) -> dict[str, Any]:
    """The instructions of the run most like this one, with their ROUGE-L F1."""
    others = Instruction.objects.filter(run=found.run_id).exclude(pk=found.pk).order_by("position")[:MOST_COMPARED]
    prompts = ((pk, f"{text}\n\n{input}" if input else text) for pk, text, input in others.values_list("pk", "text", "input").iterator())
    scores = most_similar(f"{found.text}\n\n{found.input}", prompts, most=MOST_SIMILAR)
    rows = Instruction.objects.select_related("iteration").in_bulk([pk for pk, _ in scores])
    loop = found.run.config.get("loop", {})
    return {
        "similar": [(rows[pk], score) for pk, score in scores],
        "compared": others.count(),
        "kept": f"{loop.get('similarity_rule', 'below').replace('_', ' ')} {loop.get('similarity')}",
    }


def _beside(found: Instruction) -> dict[str, Any]:
    siblings = Instruction.objects.filter(run=found.run_id).only("pk")
    return {
        "previous": siblings.filter(position__lt=found.position).order_by("-position").first(),
        "next": siblings.filter(position__gt=found.position).order_by("position").first(),
    }
