"""A run's config as dotted settings: for its table on the run page, the differences between runs, and the launch form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any, get_type_hints

from trainer.config import EndpointConfig, RunConfig, sections

UNCOMPARED = frozenset({"name"})
"""Settings that say nothing about what a run does."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What the trainer says of one setting."""

    name: str
    kind: Any
    metadata: Mapping[str, Any]

    @property
    def label(self) -> str:
        return str(self.metadata["label"])


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """One setting of one or more runs."""

    name: str
    label: str
    unit: str
    paper: str
    default: Any
    values: Sequence[Any]

    @property
    def value(self) -> Any:
        return self.values[0]

    @property
    def departs(self) -> bool:
        """Whether it is not the paper's (or, where the paper is silent, not the default)."""
        return self.default is not None and self.value != self.default

    @property
    def differs(self) -> bool:
        return any(value != self.values[0] for value in self.values)

    @property
    def cells(self) -> list[tuple[Any, bool]]:
        """Each run's value, and whether it is another than the first run's."""
        return [(value, value != self.values[0]) for value in self.values]


def specs() -> dict[str, Spec]:
    """Every setting of a run by its dotted name; endpoints stand apart."""
    found = {f.name: _spec(f.name, f, RunConfig) for f in fields(RunConfig) if f.metadata}
    for section, config_class in sections().items():
        found.update({f"{section}.{f.name}": _spec(f"{section}.{f.name}", f, config_class) for f in fields(config_class) if f.metadata})
    return found


def _spec(name: str, field: Field[Any], config_class: type) -> Spec:
    return Spec(name=name, kind=get_type_hints(config_class)[field.name], metadata=field.metadata)


def exact(value: Any) -> Any:
    """A number with every digit it has, and without a point it does not need; anything else as it is."""
    return repr(value).removesuffix(".0") if isinstance(value, float) else value


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a config's data."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


def config_rows(configs: Sequence[Mapping[str, Any]]) -> list[SettingRow]:
    """The settings of one or more configs side by side, in the order of the config."""
    known = specs()
    defaults = {name: value for name, value in flatten(RunConfig().as_dict()) if not name.startswith("endpoints.")}
    flat = [dict(flatten(config)) for config in configs]
    there = dict.fromkeys(name for settings in flat for name in settings if name not in UNCOMPARED)
    names = [name for name in known if name in there] + sorted(name for name in there if name not in known)  # jsonb keeps no order
    return [_row(name, [settings.get(name) for settings in flat], known.get(name), defaults.get(name)) for name in names]


def _row(name: str, values: Sequence[Any], spec: Spec | None, default: Any) -> SettingRow:
    metadata = spec.metadata if spec else _endpoint_metadata(name)
    if name == "seed" or name == "seed_pool" or name.endswith(".endpoint"):
        default = None  # always a run's own
    return SettingRow(
        name=name,
        label=metadata.get("label", name),
        unit=metadata.get("unit", ""),
        paper=metadata.get("paper", ""),
        default=default,
        values=values,
    )


def _endpoint_metadata(name: str) -> Mapping[str, Any]:
    last = name.rpartition(".")[2]
    return next((f.metadata for f in fields(EndpointConfig) if f.name == last), {})
