"""The form of an endpoint, built from the trainer's own field metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import Field, fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from django import forms
from django.conf import settings

from experiments.forms import OFFLINE, Section, range_words
from experiments.models import Endpoint
from experiments.querysets_calls import lines_on
from experiments.typed_numbers import NotANumberError, read_dollars, read_number, read_whole_number
from trainer.addresses import AddressGuard
from trainer.api_errors import CALLS_PATH
from trainer.config import EndpointConfig
from trainer.endpoint_checks import refused_settings
from trainer.errors import ConfigError

if TYPE_CHECKING:
    _EndpointModelForm = forms.ModelForm[Endpoint]
else:  # generic for the type checker alone
    _EndpointModelForm = forms.ModelForm

VARIABLE_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,59}")
OWN_VARIABLES = re.compile(r"(?i)SECRET_KEY|DATABASE_URL|CELERY_BROKER_URL|(LIONWEB|DJANGO)_.*")
"""LionWeb's own settings: an endpoint would be sent their values."""
SECRET_PARTS = re.compile(r"(?<=//)[^/?#]*@|[?#].*", re.DOTALL)
"""Name and password in an address, and what follows a ? or #."""
KEY_LIKE = re.compile(r"(?i)^(sk|pk|rk|gsk|hf|xai|ghp|key)[-_].{8,}")

SETTINGS = {field.name: field for field in fields(EndpointConfig)}
PRICES = "$ per million tokens"
"""The unit of a setting that is money."""

SECTIONS = {
    "Where": ("name", "base_url", "model", "key_env"),
    "Prices": ("price_input", "price_cached", "price_output"),
    "Limits": ("rpm", "input_tpm", "output_tpm", "max_at_once", "timeout_s", "connect_timeout_s", "retries"),
    "How it is asked": ("structured", "length_parameter", "send_seed", "batch_api", "extra"),
}
NEEDED = frozenset({"base_url", "model"})
"""What has no default worth having."""
EMPTY_IS_A_VALUE = frozenset({"key_env"})
"""Of the rest, what is left empty gets the trainer's own default."""

HELP = {
    "name": "Short, without spaces: runs refer to it.",
    "base_url": "Where the OpenAI-compatible API begins, usually ending in /v1. Without /chat/completions.",
    "key_env": "The NAME of the environment variable, never the key. Empty where the server wants no key.",
}
"""What the trainer has no words for, or other ones."""

ERRORS = {
    "name": {
        "invalid": "Letters, digits, - and _ only, without spaces: runs refer to it by this name.",
        "unique": "There is an endpoint of this name, perhaps an archived one. Choose another.",
    },
    **{name: {"invalid_choice": "Choose one from the list."} for name in ("structured", "length_parameter")},
}

_CODE = {"spellcheck": "false", "autocomplete": "off"}


def label_of(name: str) -> str:
    """What a setting is called on pages."""
    return str(SETTINGS[name].metadata["label"]).replace("`", "")


class NumberField(forms.CharField):
    """A number among the settings, as it is typed; the trainer's own value where it is left empty."""

    def __init__(self, setting: Field[Any]) -> None:
        self._setting = setting
        self._whole = type(setting.default) is int
        attrs = {"inputmode": "numeric" if self._whole else "decimal", "autocomplete": "off"}
        super().__init__(required=False, max_length=40, initial=setting.default, widget=forms.TextInput(attrs=attrs))

    def prepare_value(self, value: Any) -> Any:
        """Every digit it has and none it does not need: 0.0000001, 12."""
        return f"{Decimal(repr(value)).normalize():f}" if isinstance(value, float) else value

    def clean(self, value: Any) -> int | float:
        try:
            number = self._read(super().clean(value))
        except NotANumberError as error:
            raise forms.ValidationError(str(error)) from None
        default = cast("int | float", self._setting.default)
        if number is None:
            return default
        low, high = self._setting.metadata["low"], self._setting.metadata["high"]
        if not low <= number <= high:
            raise forms.ValidationError(f"Must be from {low:,.12g} to {high:,.12g}.")
        return type(default)(number)

    def _read(self, typed: str) -> Decimal | int | None:
        if self._whole:
            return read_whole_number(typed, wanted="a whole number, for instance 3,000")
        if self._setting.metadata["unit"] == PRICES:
            return read_dollars(typed, wanted="a price in dollars, for instance 2.50")
        return read_number(typed, wanted="a number, for instance 2.5")


class EndpointForm(_EndpointModelForm):
    base_url = forms.CharField(  # no URLField: it refuses a host of one word, as a cluster's own names are
        label="Base URL",
        max_length=500,
        widget=forms.TextInput(attrs={"inputmode": "url", "spellcheck": "false", "placeholder": "https://api.example.com/v1"}),
    )

    class Meta:
        model = Endpoint
        fields = [name for names in SECTIONS.values() for name in names]
        widgets = {
            "model": forms.TextInput(attrs=_CODE),
            "key_env": forms.TextInput(attrs={**_CODE, "placeholder": "OPENAI_API_KEY"}),
            "extra": forms.Textarea(attrs={**_CODE, "rows": 3, "placeholder": '{"reasoning_effort": "low"}'}),
        }
        help_texts = HELP
        error_messages = ERRORS

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name, setting in SETTINGS.items():
            if type(setting.default) in (int, float):
                self.fields[name] = NumberField(setting)
            self._describe(name, setting.metadata)
        if self.instance.pk and lines_on(self.instance.name).exists():
            self.fields["name"].disabled = True
            self.fields["name"].help_text = "It stays: runs, the ledger and its budget know the endpoint by it."

    def _describe(self, name: str, metadata: Any) -> None:
        """Give a field what the trainer says of its setting."""
        field = self.fields[name]
        field.required = name in NEEDED
        field.label = label_of(name)
        field.help_text = HELP.get(name, metadata["help"])
        field.range = range_words(metadata)  # type: ignore[attr-defined]

    @property
    def sections(self) -> list[Section]:
        return [Section(title, title, [self[name] for name in names]) for title, names in SECTIONS.items()]

    # Checks

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if name == OFFLINE:
            raise forms.ValidationError("This is the name of the demo's offline teacher. Choose another.")
        return name

    def clean_base_url(self) -> str:
        url: str = self.cleaned_data["base_url"]
        bare = SECRET_PARTS.sub("", url)
        self._show_instead("base_url", bare)
        if problem := _address_problem(url):
            left_out = "" if bare == url else " What may be a key in it was left out."
            raise forms.ValidationError(problem + left_out)
        _check_address(url)
        return url.rstrip("/")

    def _show_instead(self, name: str, value: str) -> None:
        """Let a field come back on the page with this, and not with what was typed: that may hold a key."""
        self.data = {**{typed: self.data[typed] for typed in self.data}, name: value}

    def clean_key_env(self) -> str:
        name: str = self.cleaned_data["key_env"]
        if KEY_LIKE.match(name):
            self._show_instead("key_env", "")
            raise forms.ValidationError(
                "This looks like a key, and it was not saved. Put the key into the environment and its variable's name here."
            )
        if name and not VARIABLE_NAME.fullmatch(name):  # small letters too are refused: most keys have some, few variables do
            self._show_instead("key_env", "")
            raise forms.ValidationError(
                "Not the name of a variable: capital letters, digits and _ only, for instance OPENAI_API_KEY. It was not saved."
            )
        if OWN_VARIABLES.fullmatch(name):
            raise forms.ValidationError(f"{name} is a setting of LionWeb, and would be sent to the endpoint. Name the variable of its key.")
        return name

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        for name, setting in SETTINGS.items():
            if name in cleaned and cleaned[name] in (None, "") and name not in EMPTY_IS_A_VALUE:
                cleaned[name] = setting.default
        for name, complaint in refused_settings(_as_far_as_valid(cleaned)):
            if name in cleaned:
                self.add_error(name, complaint)
        return cleaned


def _as_far_as_valid(cleaned: Mapping[str, Any]) -> EndpointConfig:
    """The settings; what is not valid stands at the trainer's own value, or at its highest, so that no other is held against it."""
    highest = {name: setting.metadata["high"] for name, setting in SETTINGS.items() if setting.metadata["high"] is not None}
    return EndpointConfig(**{name: cleaned.get(name, highest.get(name, setting.default)) for name, setting in SETTINGS.items()})


def _address_problem(url: str) -> str:
    """What is wrong with the form of an address; "" where nothing is."""
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets without an address
        parts = urlsplit("")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return "Give an address that begins with http:// or https:// and goes on with a host."
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        return "A port is a whole number from 1 to 65535."
    if parts.path.rstrip("/").endswith(CALLS_PATH):
        return f"Leave {CALLS_PATH} out: each call adds it. What is left ends in /v1 for most servers."
    return ""


def _check_address(url: str) -> None:
    """Say at once that an address is not allowed. Names are looked up when the endpoint is called: here they may not even be known."""
    try:
        AddressGuard.from_settings(settings.LIONWEB_PRIVATE_HOSTS).check_url(url, resolve=False)
    except ConfigError as error:
        raise forms.ValidationError(str(error)) from None
