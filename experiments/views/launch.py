"""The launch form: a new run from a preset, or from the config of another run."""

from __future__ import annotations

from typing import Any

from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods

from experiments.forms import DEMO_POOL, MODELS, LaunchForm, presets
from experiments.models import Experiment, Run, SeedPool
from experiments.roles import requires
from experiments.services.pools import get_demo_pool
from experiments.services.runs import launch
from experiments.views.people import signed_in
from trainer.config import RunConfig, load_preset
from trainer.errors import ConfigError

FIRST_PRESET = "demo"


@requires("member")
@require_http_methods(["GET", "POST"])
def run_new(request: HttpRequest) -> HttpResponse:
    """GET with ?preset= or ?from=<run id> fills the form; POST launches."""
    source = _source_run(request)
    preset = request.GET.get("preset", "" if source else FIRST_PRESET)
    try:
        start = source.run_config() if source else load_preset(preset)
    except ConfigError as error:
        return render(request, "run_new.html", {"problem": str(error), "presets": presets()}, status=422)
    form = LaunchForm(request.POST if request.method == "POST" else None, start=start, initial=_initial(request, source, preset))
    if request.method == "POST" and form.is_valid():
        run = _launch(form, request)
        if run is not None:
            return redirect("run", run.pk)
    context = {"form": form, "presets": presets(), "preset": preset, "source": source, "models": MODELS}
    return render(request, "run_new.html", context, status=422 if form.errors else 200)


def _source_run(request: HttpRequest) -> Run | None:
    run_id = request.GET.get("from", "")
    return get_object_or_404(Run, pk=int(run_id)) if run_id.isdecimal() and len(run_id) < 19 else None


def _initial(request: HttpRequest, source: Run | None, preset: str) -> dict[str, Any]:
    if source:
        pool = source.seed_pool_id
        return {"experiment": source.experiment_id, **({"seed_pool": str(pool)} if pool else {})}
    wanted = request.GET.get("experiment", "")
    if wanted.isdecimal() and len(wanted) < 19:
        return {"experiment": int(wanted)}
    name = "Demo" if preset == FIRST_PRESET else ""
    known = Experiment.objects.filter(name=name).first() if name else Experiment.objects.first()
    return {"experiment": known.pk} if known else {"new_experiment": name}


def _launch(form: LaunchForm, request: HttpRequest) -> Run | None:
    """The launched run, or None with the form's errors filled in."""
    try:
        with transaction.atomic():
            pool = _seed_pool(form.cleaned_data["seed_pool"], form.config)
            name = form.cleaned_data["run_name"]
            return launch(form.config, experiment=_experiment(form, request), seed_pool=pool, owner=signed_in(request), name=name)
    except ConfigError as error:
        form.add_config_error(error)
    except IntegrityError:  # somebody took the name in the meantime
        form.add_error(None, "A run or an experiment of this name was made in the meantime. Choose another name.")
    return None


def _seed_pool(chosen: str, config: RunConfig) -> SeedPool:
    return get_demo_pool(config.seed) if chosen == DEMO_POOL else SeedPool.objects.get(pk=int(chosen))


def _experiment(form: LaunchForm, request: HttpRequest) -> Experiment:
    known: Experiment | None = form.cleaned_data["experiment"]
    return known or Experiment.objects.create(name=form.cleaned_data["new_experiment"], owner=signed_in(request))
