"""Forms: the launch form is built from the trainer's own field metadata, so that it can neither forget a setting nor disagree."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from django import forms
from django.forms import BoundField

from experiments.budget_form import CallsField, DollarsField
from experiments.config_table import Spec, exact, flatten, specs
from experiments.models import Experiment, Run, SeedPool
from experiments.querysets_calls import endpoints_offered
from trainer.config import (
    OFFLINE_URL,
    PRESETS,
    ROLES,
    EndpointConfig,
    RunConfig,
    config_from_dict,
    load_preset,
    preset_names,
    read_panel,
    sections,
)
from trainer.errors import ConfigError
from trainer.plan import Stage

if TYPE_CHECKING:
    _ExperimentModelForm = forms.ModelForm[Experiment]
else:  # generic for the type checker alone
    _ExperimentModelForm = forms.ModelForm

MAIN = (
    "loop.iterations",
    "loop.new_per_iteration",
    "loop.tau",
    "loop.ratio",
    "loop.parents",
    "seed",
    "student.model",
    "student.method",
    "imitation.learning_rate",
    "imitation.batch_size",
    "imitation.epochs",
    "imitation.first_steps",
    "imitation.steps",
    "evaluation.benchmarks",
)
"""The settings shown at once, in this order; the rest wait in their sections."""

APART = frozenset({"name", "seed_pool", "teacher.endpoint", "referee.endpoint", "generator.endpoint", "judge.endpoint"})
"""Settings with a field of their own kind in the form."""

SECTION_WORDS = {
    "loop": "Loop",
    "discrimination": "Discrimination",
    "teacher": "Teacher",
    "referee": "Referee",
    "generator": "Generator",
    "judge": "Judge",
    "student": "Student",
    "imitation": "Imitation",
    "respond": "Student responses",
    "evaluation": "Evaluation",
}

NOT_ABOUT_CALLS = frozenset({"experiment", "new_experiment", "run_name", "most_dollars", "most_calls"})
"""Fields of the launch form that change nothing in what a run will ask of its endpoints."""

DEMO_POOL = "demo"
OFFLINE = "offline"
MODELS = ("scratch-llama", "huggyllama/llama-7b", "huggyllama/llama-13b", "models/smollm2")


@dataclass(frozen=True)
class Preset:
    name: str
    words: str


def presets() -> list[Preset]:
    """The presets with the first sentence of their files."""
    return [Preset(name, _first_sentence(name)) for name in sorted(preset_names(), key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    """7b before 13b."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _first_sentence(name: str) -> str:
    lines = (PRESETS / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), 0)])
    return re.split(r"(?<=\.)\s|\s\(|: |; ", comment.replace("METHOD sections 1 and 2", ""))[0].rstrip(".") + "." if comment else ""


@dataclass(frozen=True)
class Section:
    """A fieldset of the launch form."""

    name: str
    title: str
    fields: Sequence[BoundField]

    @property
    def open(self) -> bool:
        return any(field.errors for field in self.fields)


@dataclass(frozen=True)
class Missing:
    """A setting that keeps a run from being forecast. complaint: what is wrong with it and what to do; "" where it is only empty."""

    label: str
    complaint: str


class ExperimentForm(_ExperimentModelForm):
    class Meta:
        model = Experiment
        fields = ("name", "description")
        widgets = {"description": forms.Textarea(attrs={"rows": 3})}
        help_texts = {"name": "The question under which its runs are compared."}


class LaunchForm(forms.Form):
    """A run before it starts. `config` is there once the form is valid."""

    experiment = forms.ModelChoiceField(Experiment.objects.all(), required=False, empty_label="A new one …")
    new_experiment = forms.CharField(label="Name of the new experiment", required=False, max_length=200)
    run_name = forms.CharField(
        label="Name of the run", required=False, max_length=100, help_text="Left empty, it gets one of two words and a number."
    )
    seed_pool = forms.ChoiceField(label="Seed pool")
    endpoint = forms.ChoiceField(label="Endpoint", help_text="Teacher, referee and generator, unless another is chosen for one of them.")
    referee_endpoint = forms.ChoiceField(label="Referee's endpoint", required=False)
    generator_endpoint = forms.ChoiceField(label="Generator's endpoint", required=False)
    judge_endpoint = forms.ChoiceField(label="Judge's endpoint", required=False, help_text="Used by benchmarks that need a judge.")
    most_dollars = DollarsField(label="Most dollars", help_text="The run stops cleanly before it spends more. Empty: no limit.")
    most_calls = CallsField(label="Most calls", help_text="Paid calls of all roles together. Empty: no limit.")

    config: RunConfig

    def __init__(self, data: Mapping[str, Any] | None = None, *, start: RunConfig, initial: Mapping[str, Any] | None = None) -> None:
        self._start = dict(flatten(start.as_dict()))
        self._endpoints = endpoint_configs()
        super().__init__(data, initial={**self._initial(start), **(initial or {})})
        self._specs = {name: spec for name, spec in specs().items() if name not in APART}
        for name, spec in self._specs.items():
            self.fields[name] = _setting_field(spec, self._start[name])
        self._offer_choices()

    def _initial(self, start: RunConfig) -> dict[str, Any]:
        named = {
            role: _matching_endpoint(getattr(start, role).endpoint, start.endpoints.get(getattr(start, role).endpoint), self._endpoints)
            for role in ROLES_WITH_ENDPOINT
        }
        return {
            "endpoint": named["teacher"],
            "referee_endpoint": named["referee"] if named["referee"] != named["teacher"] else "",
            "generator_endpoint": named["generator"] if named["generator"] != named["teacher"] else "",
            "judge_endpoint": named["judge"],
            "seed_pool": DEMO_POOL if start.seed_pool == DEMO_POOL else "",
        }

    def _offer_choices(self) -> None:
        pools = [(str(pool.pk), pool.name) for pool in SeedPool.objects.all()]
        names = [(name, _endpoint_words(name, config)) for name, config in self._endpoints.items()]
        _offer(self.fields["seed_pool"], [("", "Choose …"), *pools, (DEMO_POOL, "Demo pool for this seed")])
        _offer(self.fields["endpoint"], [("", "Choose …"), *names])
        for role in ("referee_endpoint", "generator_endpoint"):
            _offer(self.fields[role], [("", "The same"), *names])
        _offer(self.fields["judge_endpoint"], [("", "The referee's"), *names])

    # What the page shows

    @property
    def main(self) -> list[BoundField]:
        return [self[name] for name in MAIN]

    @property
    def advanced(self) -> list[Section]:
        """The rest of the settings, a section each."""
        rest = [name for name in self._specs if name not in MAIN]
        grouped = {section: [self[name] for name in rest if name.startswith(f"{section}.")] for section in sections()}
        return [Section(name, SECTION_WORDS.get(name, name), bound) for name, bound in grouped.items() if bound]

    @property
    def not_forecast(self) -> list[Missing]:
        """What has to be chosen or mended before the run can be forecast. Call `is_valid` first."""
        return [self._missing(name) for name in self.errors if name not in NOT_ABOUT_CALLS]

    def _missing(self, name: str) -> Missing:
        error = self.errors.as_data()[name][0]
        label = str(self.fields[name].label) if name in self.fields else "Another setting"
        section = name.partition(".")[0]
        return Missing(
            label=f"{SECTION_WORDS[section]}, {label}" if section in ROLES else label,
            complaint="" if error.code == "required" else str(self.errors[name][0]),
        )

    # Checks

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if not cleaned.get("experiment") and not cleaned.get("new_experiment"):
            self.add_error("new_experiment", "Choose an experiment, or name a new one.")
        self._build_config(cleaned)
        return cleaned

    def clean_new_experiment(self) -> str:
        name: str = self.cleaned_data["new_experiment"]
        if not self.cleaned_data.get("experiment") and Experiment.objects.filter(name=name).exists():
            raise forms.ValidationError("There is an experiment of this name: choose it from the list.")
        return name

    def clean_run_name(self) -> str:
        name: str = self.cleaned_data["run_name"]
        if name and Run.objects.filter(name=name).exists():
            raise forms.ValidationError("There is a run of this name. Choose another.")
        return name

    def _build_config(self, cleaned: Mapping[str, Any]) -> None:
        try:
            self.config = config_from_dict(self._config_data(cleaned))
        except ConfigError as error:
            self.add_config_error(error)

    def add_config_error(self, error: ConfigError) -> None:
        """Put each complaint beside its field; what has no field of its own goes on top."""
        for name, text in error.fields.items():
            if name.endswith(".endpoint") and self.has_error("endpoint"):
                continue  # the field that all roles take theirs from says it already
            field = {f"{role}.endpoint": f for role, f in ROLES_WITH_ENDPOINT.items()}.get(name, name)
            known = field in self.fields
            if not (known and self.has_error(field)):  # one complaint a field: its own says it better
                self.add_error(field if known else None, text if known else f"{name}: {text}")
        if not error.fields:
            self.add_error(None, str(error))

    def _config_data(self, cleaned: Mapping[str, Any]) -> dict[str, Any]:
        data: dict[str, Any] = {"name": cleaned.get("run_name") or self._start["name"], "seed_pool": self._pool_name(cleaned)}
        for name, spec in self._specs.items():
            _put(data, name, _typed(spec.kind, cleaned.get(name)))
        chosen = {role: cleaned.get(field) or cleaned.get("endpoint") or "" for role, field in ROLES_WITH_ENDPOINT.items()}
        chosen["judge"] = cleaned.get("judge_endpoint") or ""  # none of its own: the referee's
        for role, endpoint in chosen.items():
            _put(data, f"{role}.endpoint", endpoint)
        if unknown := [name for name in _panel(cleaned.get("discrimination.panel")) if name not in self._endpoints]:
            told = (
                f"There is no endpoint {unknown[0]!r}. Known: {', '.join(sorted(self._endpoints))}. Weights stand behind a colon: `gpt: 2`."
            )
            self.add_error("discrimination.panel", told)
        used = {name for name in {*chosen.values(), *_panel(cleaned.get("discrimination.panel"))} if name in self._endpoints}
        data["endpoints"] = {name: asdict(self._endpoints[name]) for name in sorted(used)}
        return data

    def _pool_name(self, cleaned: Mapping[str, Any]) -> str:
        labels = dict(self.fields["seed_pool"].choices)  # type: ignore[attr-defined]
        chosen = cleaned.get("seed_pool") or DEMO_POOL
        return chosen if chosen == DEMO_POOL else str(labels.get(chosen, chosen))


def _panel(text: Any) -> Iterable[str]:
    """The endpoints a panel names; none where it cannot be read, which the config then refuses with the reason."""
    try:
        return read_panel(text or "")
    except ValueError:
        return ()


ROLES_WITH_ENDPOINT = {
    "teacher": "endpoint",
    "referee": "referee_endpoint",
    "generator": "generator_endpoint",
    "judge": "judge_endpoint",
}


def endpoint_configs() -> dict[str, EndpointConfig]:
    """The endpoints a new run may use, by name: rows not archived, and this machine's offline teacher where no row has its name."""
    rows = {endpoint.name: endpoint.config() for endpoint in endpoints_offered()}
    return rows if OFFLINE in rows else {**rows, OFFLINE: offline_endpoint()}


def offline_endpoint() -> EndpointConfig:
    """The demo's offline teacher, which `make run` starts beside the web server; the worker knows its address."""
    preset = load_preset("demo")
    return preset.endpoints[preset.teacher.endpoint]


def _matching_endpoint(name: str, wanted: EndpointConfig | None, known: Mapping[str, EndpointConfig]) -> str:
    """The name under which a config's endpoint is known here: its own (it may have been corrected), else by address and model, else ""."""
    if wanted is None:
        return ""
    if wanted.base_url == OFFLINE_URL:
        return OFFLINE
    if name in known:  # key, prices, limits and budget go with it, which another endpoint at the same address may have otherwise
        return name
    return next((known_as for known_as, c in known.items() if (c.base_url, c.model) == (wanted.base_url, wanted.model)), "")


def _endpoint_words(name: str, config: EndpointConfig) -> str:
    """An endpoint in a list, with a warning where the web server lacks its key; the workers' environment may be another."""
    missing = config.key_env and not os.environ.get(config.key_env)
    return f"{name} · {config.model}" + (f" ({config.key_env} is not set here)" if missing else "")


def _offer(field: forms.Field, choices: list[tuple[str, str]]) -> None:
    field.choices = choices  # type: ignore[attr-defined]


def _setting_field(spec: Spec, value: Any) -> forms.Field:
    """The form field of a setting, with what the trainer says of it."""
    field = _bare_field(spec, value)
    if spec.name == "student.model":
        field.widget.attrs["list"] = "models"
    field.spec = spec  # type: ignore[attr-defined]
    field.range = range_words(spec.metadata)  # type: ignore[attr-defined]
    return field


def _bare_field(spec: Spec, value: Any) -> forms.Field:
    """Only the trainer checks values; the field keeps what was typed."""
    options: dict[str, Any] = {"label": spec.label, "required": False, "help_text": spec.metadata["help"], "initial": value}
    choices = [(choice, choice) for choice in spec.metadata["choices"]]
    if spec.kind is bool:
        return forms.BooleanField(**options)
    if choices and not isinstance(value, list):
        return forms.CharField(**options, widget=forms.Select(choices=choices))
    if choices:
        return forms.MultipleChoiceField(**options, choices=choices, widget=forms.CheckboxSelectMultiple)
    mode = {int: "numeric", float: "decimal"}.get(spec.kind)
    attrs = {"inputmode": mode, "autocomplete": "off"} if mode else {"spellcheck": "false"}
    return forms.CharField(**{**options, "initial": exact(value)}, widget=forms.TextInput(attrs=attrs))


def range_words(metadata: Mapping[str, Any]) -> str:
    """Unit and range: "points, -9 to 9."."""
    low, high = metadata["low"], metadata["high"]
    span = "" if low is None or high is None else f"{low:,.12g} to {high:,.12g}"
    return ", ".join(part for part in (metadata["unit"], span) if part) + ("." if metadata["unit"] or span else "")


def _typed(kind: Any, value: Any) -> Any:
    """What was typed as a number where it is one; else as it is, for the config to refuse."""
    if kind not in (int, float) or not isinstance(value, str):
        return value
    try:
        return int(value) if kind is int else float(value)
    except ValueError:
        return value


def _put(data: dict[str, Any], dotted: str, value: Any) -> None:
    section, _, name = dotted.rpartition(".")
    (data.setdefault(section, {}) if section else data)[name] = value


class PoolForm(forms.Form):
    """A seed pool to import: a file, or pasted text."""

    name = forms.CharField(max_length=200)
    licence = forms.CharField(max_length=200, required=False, help_text="For instance CC-BY-NC-4.0. It is shown wherever the pool is.")
    file = forms.FileField(
        required=False, allow_empty_file=True, help_text="JSONL or JSON, in the Alpaca or the Self-Instruct format, UTF-8."
    )
    text = forms.CharField(
        label="Or paste it here", required=False, strip=False, widget=forms.Textarea(attrs={"rows": 10, "spellcheck": "false"})
    )

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if "file" not in self.errors and not cleaned.get("file") and not (cleaned.get("text") or "").strip():
            self.add_error("file", "Choose a file, or paste the instructions below.")
        return cleaned


class FilterForm(forms.Form):
    """The filters of a list, all of them in the URL. What is not valid is shown as an error and not applied."""

    q = forms.CharField(label="Search", required=False, max_length=500)
    iteration = forms.TypedChoiceField(label="Judged in", required=False, coerce=int, empty_value=None)
    verdict = forms.ChoiceField(required=False, choices=[("", "Any"), ("hard", "hard"), ("easy", "easy"), ("quarantined", "quarantined")])
    made = forms.TypedChoiceField(label="Made in", required=False, coerce=int, empty_value=None)
    origin = forms.ChoiceField(required=False, choices=[("", "Any"), ("seed", "seed"), ("hard", "hard"), ("easy", "easy")])
    kind = forms.ChoiceField(required=False)
    sort = forms.ChoiceField(required=False, choices=[("", "Position"), ("-d", "d, largest first"), ("d", "d, smallest first")])
    inconsistent = forms.BooleanField(label="Inconsistent only", required=False)
    made_to = forms.IntegerField(required=False, min_value=0, widget=forms.HiddenInput)

    def __init__(self, data: Mapping[str, Any], *, iterations: Sequence[int], kinds: Sequence[str] = ()) -> None:
        super().__init__(data)
        numbers = [(str(n), f"Iteration {n}") for n in iterations]
        _offer(self.fields["iteration"], [("", "Last judged, or not yet"), *numbers[1:]])
        _offer(self.fields["made"], [("", "Any"), *numbers])
        _offer(self.fields["kind"], [("", "Any"), *((kind, kind) for kind in kinds)])

    @property
    def chosen(self) -> dict[str, Any]:
        """The valid filters that are set."""
        self.is_valid()
        return {name: value for name, value in self.cleaned_data.items() if value is not False and value not in (None, "")}


class CompletionFilterForm(forms.Form):
    """The filters of a run's completions; `line` is a line of its ledger."""

    iteration = forms.TypedChoiceField(required=False, coerce=int, empty_value=None)
    stage = forms.ChoiceField(required=False, choices=[("", "Any"), *((stage.value, stage.value) for stage in Stage)])
    role = forms.ChoiceField(required=False, choices=[("", "Any"), *((role, role) for role in ROLES)])
    good = forms.TypedChoiceField(
        label="Reply",
        required=False,
        coerce=lambda value: value == "yes",
        empty_value=None,
        choices=[("", "Any"), ("yes", "whole"), ("no", "cut off")],
    )
    line = forms.IntegerField(required=False, min_value=1, max_value=2**63 - 1, widget=forms.HiddenInput)

    def __init__(self, data: Mapping[str, Any], *, iterations: Sequence[int]) -> None:
        super().__init__(data)
        _offer(self.fields["iteration"], [("", "Any"), *((str(n), f"Iteration {n}") for n in iterations)])

    @property
    def chosen(self) -> dict[str, Any]:
        """The valid filters that are set."""
        self.is_valid()
        return {name: value for name, value in self.cleaned_data.items() if value not in (None, "")}


class CandidateFilterForm(forms.Form):
    """The filters of the candidates."""

    iteration = forms.TypedChoiceField(required=False, coerce=int, empty_value=None)
    fate = forms.ChoiceField(required=False)
    origin = forms.ChoiceField(required=False, choices=[("", "Any"), ("hard", "hard"), ("easy", "easy")])

    def __init__(self, data: Mapping[str, Any], *, iterations: Sequence[int], fates: Sequence[str]) -> None:
        super().__init__(data)
        _offer(self.fields["iteration"], [("", "Any"), *((str(n), f"Iteration {n}") for n in iterations if n)])
        _offer(
            self.fields["fate"], [("", "Any"), ("rejected", "rejected, any reason"), *((fate, fate.replace("_", " ")) for fate in fates)]
        )

    @property
    def chosen(self) -> dict[str, Any]:
        """The valid filters that are set."""
        self.is_valid()
        return {name: value for name, value in self.cleaned_data.items() if value not in (None, "")}
