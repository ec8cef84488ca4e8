"""Settings that know how to be shown and checked: a dataclass field with its unit, range, the paper's value and a help text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, field, fields
from typing import Any, get_type_hints


def setting(
    default: Any,
    *,
    label: str,
    help: str = "",
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    paper: str = "",
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that knows how to be shown and checked.

    low, high: inclusive range; paper: the paper's value as text, empty where it has none; choices: the allowed values.
    """
    return field(
        default=default,
        metadata={"label": label, "help": help, "unit": unit, "low": low, "high": high, "paper": paper, "choices": choices},
    )


def build(config_class: type, values: Any, prefix: str, wrong: dict[str, str]) -> Any:
    """An instance of config_class with each value checked; complaints go to `wrong` under their dotted names."""
    hints = get_type_hints(config_class)
    by_name = {f.name: f for f in fields(config_class)}
    if not isinstance(values, Mapping):
        wrong[prefix] = "Must be a table of settings."
        values = {}
    kept: dict[str, Any] = {}
    for name, value in values.items():
        dotted = f"{prefix}.{name}" if prefix else name
        if name not in by_name:
            wrong[dotted] = f"Unknown setting. Known here: {', '.join(by_name)}."
        elif not by_name[name].metadata:
            kept[name] = value
        else:
            try:
                kept[name] = checked(by_name[name], hints[name], value)
            except ValueError as error:
                wrong[dotted] = str(error)
    return config_class(**kept)


def checked(spec: Field[Any], kind: Any, value: Any) -> Any:
    """The value in its type and within its range. Raises ValueError with a sentence a form can show."""
    value = _typed(kind, value)
    low, high, choices = spec.metadata["low"], spec.metadata["high"], spec.metadata["choices"]
    if isinstance(value, tuple):
        unknown = [item for item in value if item not in choices]
        if unknown:
            raise ValueError(f"Unknown: {', '.join(unknown)}. Choose from: {', '.join(choices)}.")
    elif choices and value not in choices:
        raise ValueError(f"{value!r} is not one of: {', '.join(choices)}.")
    if low is not None and not low <= value:
        raise ValueError(f"{value:,.12g} is too small: the least is {low:,.12g}.")
    if high is not None and not value <= high:
        raise ValueError(f"{value:,.12g} is too large: the most is {high:,.12g}.")
    return value


def _typed(kind: Any, value: Any) -> Any:
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is not true or false.")
        return value
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value != int(value):
            raise ValueError(f"{value!r} is not a whole number.")
        return int(value)
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{value!r} is not a number.")
        return float(value)
    if kind is str:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not a text.")
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{value!r} is not a list of names.")
    return tuple(value)
