"""A referee that prefers what it reads first, over HTTP: two orders cancel that, one order does not."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.config import RunConfig, load_preset, referees_of
from trainer.demo.knobs import Knobs
from trainer.demo.pool import demo_seed_pool
from trainer.demo.process import OfflineTeacher
from trainer.demo.tasks import answer
from trainer.discrimination import Case, asks_of, judge_all
from trainer.endpoints import open_roles
from trainer.folder_calls import FolderCalls
from trainer.records import Judgement, Label, Response, Verdict

BIAS = 2.0


def cases(count: int) -> list[Case]:
    """Tasks of the demo with their exact answers, and a student's that are right, nearly right or wrong in equal shares."""
    rng = random.Random(1)
    found = []
    for instruction in demo_seed_pool(1, count):
        truth = answer(instruction.text) or ""
        wrong = rng.choice([truth, truth[:-1] + "?", "".join(rng.choices("abcdefghij", k=len(truth)))])
        said = [Response(instruction=instruction.key, text=text) for text in (truth, wrong)]
        found.append(Case(instruction, said[0], said[1]))
    return found


def verdicts(folder: Path, *, bias: float, orders: str) -> dict[str, Verdict]:
    preset = load_preset("demo")
    config = replace(preset, discrimination=replace(preset.discrimination, orders=orders))
    with OfflineTeacher(Knobs(position_bias=bias)) as running:
        return asyncio.run(_judged(cases(120), config, folder / f"{orders}-{bias}.jsonl", url=running.base_url))


async def _judged(some: Sequence[Case], config: RunConfig, path: Path, *, url: str) -> dict[str, Verdict]:
    kept: dict[str, Verdict] = {}

    async def keep(verdict: Verdict, judgements: Sequence[Judgement]) -> None:
        kept[verdict.instruction] = verdict

    async with open_roles(config, FolderCalls(path, config.endpoints), offline_url=url) as roles:
        await judge_all(
            some, referee=roles.referee, asks=asks_of(config), weights=referees_of(config), tau=config.loop.tau, keep=keep, at_once=16
        )
    return kept


@pytest.fixture(scope="module")
def fair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdict]:
    return verdicts(tmp_path_factory.mktemp("fair"), bias=0.0, orders="both")


def same_labels(one: dict[str, Verdict], other: dict[str, Verdict]) -> float:
    assert set(one) == set(other)
    return sum(one[key].label is other[key].label for key in one) / len(one)


def test_two_orders_cancel_what_the_first_place_gains(tmp_path: Path, fair: dict[str, Verdict]) -> None:
    biased = verdicts(tmp_path, bias=BIAS, orders="both")
    assert {verdict.label for verdict in fair.values()} == {Label.HARD, Label.EASY}
    assert any(verdict.inconsistent for verdict in biased.values())
    assert same_labels(biased, fair) >= 0.95


def test_one_order_does_not(tmp_path: Path, fair: dict[str, Verdict]) -> None:
    for orders, label in (("teacher_first", Label.HARD), ("student_first", Label.EASY)):
        biased = verdicts(tmp_path, bias=BIAS, orders=orders)
        assert same_labels(biased, fair) < 0.8
        assert sum(v.label is label for v in biased.values()) > sum(v.label is label for v in fair.values())
