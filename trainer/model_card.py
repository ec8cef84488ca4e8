"""The README of an export: what a checkpoint is, how it was made and what it is not, for whoever meets it elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoints import Manifest
from trainer.config import SCRATCH_MODEL

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a card tells beyond the checkpoint's own manifest.

    scores: (benchmark, share right from 0 to 1, half the 95 % interval, items); examples: how many the student was tuned on.
    """

    name: str
    seed_pool: str = ""
    licence: str = ""
    teacher: str = ""
    examples: int | None = None
    scores: Sequence[tuple[str, float, float, int]] = ()


def model_card(manifest: Manifest, told: Told, *, merged: bool = False) -> str:
    """The card as Markdown, with the front matter the Hub reads. Whatever a person or a server named stands in it as plain code."""
    parts = [
        _front_matter(manifest, plain=merged or manifest.method == "full"),
        f"# {_plain(told.name)}\n",
        "A student distilled from a teacher by LionWeb: it imitates the teacher's responses, is judged against it, "
        "and is tuned on new instructions of the kind it was worst at.\n",
        _table("What it is", _facts(manifest, told)),
        _scores(told.scores),
        _table("Made with", sorted(manifest.versions.items())),
        _limits(told),
    ]
    return "\n".join(filter(None, parts))


def _front_matter(manifest: Manifest, *, plain: bool) -> str:
    """Only what the Hub can check: a base that is a folder of ours means nothing there."""
    lines = ["---", "library_name: " + ("transformers" if plain else "peft"), "pipeline_tag: text-generation"]
    if is_hub_name(manifest.base):
        lines.append(f"base_model: {json.dumps(manifest.base)}")
    return "\n".join([*lines, "tags:", "- distillation", "- lionweb", "---", ""])


def _facts(manifest: Manifest, told: Told) -> list[tuple[str, str]]:
    facts = [
        ("Base", base_words(manifest.base)),
        ("Revision", manifest.revision),
        ("Method", manifest.method),
        ("Iteration", str(manifest.iteration)),
        ("Step", str(manifest.step)),
        ("Loss, first to last", f"{manifest.first_loss:.4f} to {manifest.last_loss:.4f}"),
        ("Seed", str(manifest.seed)),
        ("Teacher", told.teacher),
        ("Seed pool", told.seed_pool),
        ("Licence of the seed pool", told.licence or "not stated"),
        ("Examples", "" if told.examples is None else str(told.examples)),
        ("sha256 of the checkpoint", manifest.digest),
    ]
    return [(name, value) for name, value in facts if value]


def is_hub_name(base: str) -> bool:
    """Whether a base is named as on the Hub, OWNER/NAME, and is no folder of this machine."""
    return bool(_HUB_NAME.fullmatch(base)) and not Path(base).is_dir()


def base_words(base: str) -> str:
    """A base as others may read it: no folder of this machine by its path."""
    if base == SCRATCH_MODEL:
        return "none: a small Llama from random weights"
    return base if is_hub_name(base) else f"a local folder named {base.rstrip('/').rpartition('/')[2]}"


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"## {title}\n", "| | |", "|---|---|", *(f"| {name} | {_code(value)} |" for name, value in rows)]
    return "\n".join(lines) + "\n" if rows else ""


def _scores(scores: Sequence[tuple[str, float, float, int]]) -> str:
    rows = [f"| {_code(name)} | {value:.1%} | ± {half:.1%} | {n} |" for name, value, half, n in scores]
    head = ["## Scores\n", "| benchmark | right, mean over tasks | 95 % | items |", "|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n" if rows else ""


def _limits(told: Told) -> str:
    return (
        "## Limits\n\n"
        "- It repeats what its teacher says, errors and biases included, and was measured on nothing but the scores above.\n"
        "- Nobody has tested it for safety. Do not let it decide anything about people.\n"
        "- The terms of the base model, of the teacher's service and of the data hold for it too; "
        "read all three before you publish it or sell its use.\n"
    )


def _plain(text: str) -> str:
    """Text that can neither end its line nor become markup."""
    return re.sub(r"[^\w .,:+-]", " ", " ".join(text.split())).strip() or "A student"


def _code(text: str) -> str:
    """Text as code in one cell of a table."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "/") + "`"
