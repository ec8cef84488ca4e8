"""The form of an endpoint, built from the trainer's own field metadata."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from django import forms
from django.conf import settings

from experiments.config_table import exact
from experiments.forms import OFFLINE, Section, range_words
from experiments.models import Endpoint, LedgerLine
from trainer.addresses import AddressGuard
from trainer.config import EndpointConfig
from trainer.errors import ConfigError

if TYPE_CHECKING:
    _EndpointModelForm = forms.ModelForm[Endpoint]
else:  # generic for the type checker alone
    _EndpointModelForm = forms.ModelForm

VARIABLE_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,59}")
OWN_VARIABLES = re.compile(r"(?i)SECRET_KEY|DATABASE_URL|CELERY_BROKER_URL|(LIONWEB|DJANGO)_.*")
"""LionWeb's own settings: an endpoint would be sent their values."""
KEY_LIKE = re.compile(r"(?i)^(sk|pk|rk|gsk|hf|xai|ghp|key)[-_].{8,}")

SETTINGS = {field.name: field for field in fields(EndpointConfig)}

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
    "base_url": "Where the OpenAI-compatible API begins, usually ending in /v1.",
    "key_env": "The NAME of the environment variable, never the key. Empty where the server wants no key.",
}
"""What the trainer has no words for, or other ones."""

_CODE = {"spellcheck": "false", "autocomplete": "off"}


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

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name, setting in SETTINGS.items():
            self._describe(name, setting.metadata)
        if self.instance.pk and LedgerLine.objects.filter(endpoint=self.instance.name).exists():
            self.fields["name"].disabled = True
            self.fields["name"].help_text = "It stays: runs, the ledger and its budget know the endpoint by it."

    def _describe(self, name: str, metadata: Any) -> None:
        """Give a field what the trainer says of its setting."""
        field = self.fields[name]
        field.required = name in NEEDED
        field.label = metadata["label"]
        field.help_text = HELP.get(name, metadata["help"])
        field.range = range_words(metadata)  # type: ignore[attr-defined]
        if isinstance(field, forms.IntegerField):  # decimals are whole numbers to Django as well
            mode = "numeric" if type(field) is forms.IntegerField else "decimal"
            field.widget = forms.TextInput(attrs={"inputmode": mode, "autocomplete": "off"})
            self.initial[name] = exact(self.initial.get(name, field.initial))

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
        try:
            parts = urlsplit(url)
            known = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:  # brackets without an address, a port that is none
            known = False
        if not known:
            raise forms.ValidationError("Give an address that begins with http:// or https://.")
        if parts.username or parts.password:
            raise forms.ValidationError("No name or password in the address: put the key into the environment.")
        _check_address(url)
        return url.rstrip("/")

    def clean_key_env(self) -> str:
        name: str = self.cleaned_data["key_env"]
        if KEY_LIKE.match(name):
            self.data = {name: self.data[name] for name in self.data if name != "key_env"}  # a key does not even come back on the page
            raise forms.ValidationError(
                "This looks like a key, and it was not saved. Put the key into the environment and its variable's name here."
            )
        if name and not VARIABLE_NAME.fullmatch(name):  # small letters too are refused: most keys have some, few variables do
            self.data = {name: self.data[name] for name in self.data if name != "key_env"}
            raise forms.ValidationError(
                "Not the name of a variable: capital letters, digits and _ only, for instance OPENAI_API_KEY. It was not saved."
            )
        if OWN_VARIABLES.fullmatch(name):
            raise forms.ValidationError(f"{name} is a setting of LionWeb, and would be sent to the endpoint. Name the variable of its key.")
        return name

    def clean_extra(self) -> str:
        extra: str = self.cleaned_data["extra"]
        try:
            replace(EndpointConfig(), extra=extra).extra_parameters()
        except ValueError as error:
            raise forms.ValidationError(str(error)) from None
        except RecursionError:
            raise forms.ValidationError("This JSON is nested too deeply.") from None
        return extra

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        for name, setting in SETTINGS.items():
            if name in cleaned and cleaned[name] in (None, "") and name not in EMPTY_IS_A_VALUE:
                cleaned[name] = setting.default
            low, high, value = setting.metadata["low"], setting.metadata["high"], cleaned.get(name)
            if low is not None and value is not None and not low <= value <= high:
                self.add_error(name, f"Must be from {low:,.12g} to {high:,.12g}.")
        return cleaned


def _check_address(url: str) -> None:
    """Say at once that an address is not allowed. Names are looked up when the endpoint is called: here they may not even be known."""
    try:
        AddressGuard.from_settings(settings.LIONWEB_PRIVATE_HOSTS).check_url(url, resolve=False)
    except ConfigError as error:
        raise forms.ValidationError(str(error)) from None
