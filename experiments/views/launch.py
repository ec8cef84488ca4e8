"""The launch form: a new run from a preset, or from the config of another run, with a forecast of what it will ask for."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods

from experiments.budget_form import Caps
from experiments.forms import DEMO_POOL, MODELS, LaunchForm, endpoint_configs, presets
from experiments.ledger import meters
from experiments.models import Experiment, Run, SeedPool
from experiments.roles import has_role, requires
from experiments.services.forecasts import forecast_launch
from experiments.services.pools import get_demo_pool
from experiments.services.runs import launch
from experiments.views.methods import post_from
from experiments.views.people import signed_in
from trainer.config import RunConfig, load_preset
from trainer.errors import ConfigError
from trainer.served_student import VLLM

FIRST_PRESET = "demo"


@requires("member")
@require_http_methods(["GET", "POST"])
def run_new(request: HttpRequest) -> HttpResponse:
    """GET with ?preset= or ?from=<run id> fills the form; POST launches."""
    try:
        form, context = _form(request)
    except ConfigError as error:
        return _unknown_start(request, error)
    if request.method == "POST" and form.is_valid():
        run = _launch(form, request)
        if run is not None:
            return redirect("run", run.pk)
    return render(request, "run_new.html", context, status=422 if form.errors else 200)


@post_from("run_new")
@requires("member")
def run_forecast(request: HttpRequest) -> HttpResponse:
    """The forecast of the run in the form: the part of the page that shows it, or without htmx the page as it was filled in."""
    try:
        form, context = _form(request)
    except ConfigError as error:
        return _unknown_start(request, error)
    context |= _forecast(form)
    return render(request, "_forecast.html" if request.headers.get("HX-Request") else "run_new.html", context)


def _form(request: HttpRequest) -> tuple[LaunchForm, dict[str, Any]]:
    """The form, filled from the preset or the run that the URL names, and what its page shows. Raises ConfigError."""
    source = _source_run(request)
    preset = request.GET.get("preset", "" if source else FIRST_PRESET)
    start = source.run_config() if source else load_preset(preset)
    form = LaunchForm(request.POST if request.method == "POST" else None, start=start, initial=_initial(request, source, preset))
    budget = getattr(source, "budget", None)
    return form, {
        "form": form,
        "presets": presets(),
        "preset": preset,
        "source": source,
        "source_budget": budget,
        "models": MODELS,
        "query": request.GET.urlencode(),
    }


def _unknown_start(request: HttpRequest, error: ConfigError) -> HttpResponse:
    return render(request, "run_new.html", {"problem": str(error), "presets": presets()}, status=422)


def _source_run(request: HttpRequest) -> Run | None:
    run_id = request.GET.get("from", "")
    runs = Run.objects.select_related("budget")
    return get_object_or_404(runs, pk=int(run_id)) if run_id.isdecimal() and len(run_id) < 19 else None


def _forecast(form: LaunchForm) -> dict[str, Any]:
    """The forecast of a filled-in form, or what is missing for one."""
    form.is_valid()
    missing = form.not_forecast
    if missing:
        return {"missing": missing}
    chosen = form.cleaned_data["seed_pool"]
    forecast = forecast_launch(form.config, None if chosen == DEMO_POOL else SeedPool.objects.get(pk=int(chosen)))
    caps: Caps = {"most_calls": form.cleaned_data.get("most_calls"), "most_nanodollars": form.cleaned_data.get("most_dollars")}
    return {"forecast": forecast, "meters": meters(forecast, **caps)}


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
        _require_known_server(form.config, signed_in(request))
        with transaction.atomic():
            return launch(
                form.config,
                experiment=_experiment(form, request),
                seed_pool=_seed_pool(form.cleaned_data["seed_pool"], form.config),
                owner=signed_in(request),
                name=form.cleaned_data["run_name"],
                most_calls=form.cleaned_data["most_calls"],
                most_nanodollars=form.cleaned_data["most_dollars"],
            )
    except ConfigError as error:
        form.add_config_error(error)
    except IntegrityError:  # somebody took the name in the meantime
        form.add_error(None, "A run or an experiment of this name was made in the meantime. Choose another name.")
    return None


def _require_known_server(config: RunConfig, user: User) -> None:
    """Raise ConfigError where a member names a server for the student, or a key for it, that no endpoint has: that is an admin's to do."""
    chosen = config.respond.server.strip(), config.respond.server_key_env
    known = {("", ""), (VLLM, ""), *((endpoint.base_url, endpoint.key_env) for endpoint in endpoint_configs().values())}
    if chosen in known or has_role(user, "admin"):
        return
    text = "Only an admin may name a server that no endpoint has. Leave it empty, take 'vllm', or take an endpoint's base URL and variable."
    raise ConfigError(text, fields={"respond.server": text})


def _seed_pool(chosen: str, config: RunConfig) -> SeedPool:
    return get_demo_pool(config.seed) if chosen == DEMO_POOL else SeedPool.objects.get(pk=int(chosen))


def _experiment(form: LaunchForm, request: HttpRequest) -> Experiment:
    known: Experiment | None = form.cleaned_data["experiment"]
    return known or Experiment.objects.create(name=form.cleaned_data["new_experiment"], owner=signed_in(request))
