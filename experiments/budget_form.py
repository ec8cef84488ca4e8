"""The fields of a budget: dollars and calls as people type them."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, TypedDict

from django import forms

from experiments.models import Budget
from experiments.typed_numbers import NotANumberError, read_dollars, read_whole_number
from trainer.prices import NANODOLLARS

MOST_DOLLARS = 100_000_000
MOST_CALLS = 10_000_000_000


class Caps(TypedDict):
    """The caps of a budget by the names of its model; None is no cap."""

    most_calls: int | None
    most_nanodollars: int | None


def caps_of(budget: Budget | None) -> Caps:
    """The caps of a budget; of none, no caps."""
    if budget is None:
        return {"most_calls": None, "most_nanodollars": None}
    return {"most_calls": budget.most_calls, "most_nanodollars": budget.most_nanodollars}


class DollarsField(forms.CharField):
    """An amount of money as it is typed; nanodollars, or None where it is left empty."""

    def __init__(self, **options: Any) -> None:
        attrs = {"inputmode": "decimal", "autocomplete": "off", "placeholder": "no limit"}
        super().__init__(required=False, max_length=40, widget=forms.TextInput(attrs=attrs), **options)

    def clean(self, value: Any) -> int | None:
        try:
            dollars = read_dollars(super().clean(value), wanted="an amount in dollars, for instance 12.50")
        except NotANumberError as error:
            raise forms.ValidationError(str(error)) from None
        if dollars is None:
            return None
        _check_cap(dollars, most=Decimal(MOST_DOLLARS), sign="$")
        if dollars * NANODOLLARS < 1:
            raise forms.ValidationError(f"No call costs so little: the least is ${Decimal(1) / NANODOLLARS:f}.")
        return round(dollars * NANODOLLARS)


class CallsField(forms.CharField):
    """A number of calls as it is typed, or None where it is left empty."""

    def __init__(self, **options: Any) -> None:
        attrs = {"inputmode": "numeric", "autocomplete": "off", "placeholder": "no limit"}
        super().__init__(required=False, max_length=40, widget=forms.TextInput(attrs=attrs), **options)

    def clean(self, value: Any) -> int | None:
        try:
            calls = read_whole_number(super().clean(value), wanted="a whole number of calls, for instance 5000")
        except NotANumberError as error:
            raise forms.ValidationError(str(error)) from None
        if calls is not None:
            _check_cap(Decimal(calls), most=Decimal(MOST_CALLS))
        return calls


def _check_cap(value: Decimal, *, most: Decimal, sign: str = "") -> None:
    if value <= 0:
        raise forms.ValidationError("A budget is more than 0. Leave it empty for no limit.")
    if value > most:
        raise forms.ValidationError(f"The most is {sign}{most:,}. Leave it empty for no limit.")


class BudgetForm(forms.Form):
    """The most that a run, or all runs on an endpoint, may spend."""

    most_dollars = DollarsField(label="Most dollars")
    most_calls = CallsField(label="Most calls")

    def __init__(self, data: Mapping[str, Any] | None = None, *, budget: Budget | None = None) -> None:
        caps = caps_of(budget)
        super().__init__(data, initial={"most_dollars": in_dollars(caps["most_nanodollars"]), "most_calls": caps["most_calls"]})

    @property
    def caps(self) -> Caps:
        """The caps of a valid form."""
        return {"most_calls": self.cleaned_data["most_calls"], "most_nanodollars": self.cleaned_data["most_dollars"]}


def in_dollars(nanodollars: int | None) -> str | None:
    """An amount as its field shows it, with every digit it has and none it does not need: 12.5."""
    return None if nanodollars is None else f"{(Decimal(nanodollars) / NANODOLLARS).normalize():f}"


def whole_cents(nanodollars: int) -> int:
    """The amount, rounded up to a whole cent."""
    cent = NANODOLLARS // 100
    return -(-nanodollars // cent) * cent
