"""Pools and roles that could make the loop go on for ever: each ends in a clear state that says why."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes import FakeDesk, FakeGenerator, FakeReferee
from trainer.config import LoopConfig, RunConfig
from trainer.errors import ConfigError, TooManyQuarantined
from trainer.folder import FolderBook
from trainer.loop import distil
from trainer.records import Fate, Instruction, Label

CONFIG = RunConfig(loop=LoopConfig(iterations=1, new_per_iteration=6))
CHINESE = (
    "请把下面的句子翻译成英文",
    "写一首关于春天的短诗",
    "列出五种常见的水果",
    "解释光合作用的过程",
    "给这封邮件拟一个标题",
    "计算一百以内的质数之和",
)


def pool(texts: list[str]) -> list[Instruction]:
    return [Instruction(key=f"seed-{n:06d}", text=text) for n, text in enumerate(texts)]


def run(folder: Path, desk: FakeDesk, seeds: list[Instruction] | None = None, config: RunConfig = CONFIG) -> FolderBook:
    book = FolderBook(folder, config, seeds or pool([f"seed{n} number{n}" for n in range(8)]))
    distil(book, desk, config)
    return book


def scored(teacher: float, student: float) -> FakeReferee:
    """A referee that says the same of every instruction."""
    return FakeReferee({f"seed-{n:06d}": (teacher, student) for n in range(200)})


@pytest.mark.parametrize(("referee", "empty", "made"), [(scored(9, 9), "hard", "easy"), (scored(9, 1), "easy", "hard")])
def test_an_empty_hard_or_easy_set_is_told_and_the_other_one_goes_on(tmp_path: Path, referee: FakeReferee, empty: str, made: str) -> None:
    desk = FakeDesk(tmp_path, referee=referee)
    book = run(tmp_path, desk)
    assert any(note.startswith(f"There is no {empty} parent to start from") for note in desk.notes)
    assert {candidate.origin for candidate in book.candidates(1)} == {made}
    assert len(book.train_pool(1)) == 3


@pytest.mark.parametrize(("ratio", "referee"), [("1:0", scored(9, 9)), ("0:1", scored(9, 1))])
def test_where_the_one_kind_that_is_wanted_has_no_parent_the_run_ends_and_says_so(tmp_path: Path, ratio: str, referee: FakeReferee) -> None:
    config = replace(CONFIG, loop=replace(CONFIG.loop, ratio=ratio))
    with pytest.raises(ConfigError, match=r"No new instruction was accepted in iteration 1\. There is no (hard|easy) parent"):
        run(tmp_path, FakeDesk(tmp_path, referee=referee), config=config)


def test_a_pool_that_is_all_quarantined_stops_and_asks(tmp_path: Path) -> None:
    desk = FakeDesk(tmp_path, referee=FakeReferee(unreadable=frozenset(f"seed-{n:06d}" for n in range(8))))
    with pytest.raises(TooManyQuarantined, match="8 of 8 judged instructions could not be scored"):
        run(tmp_path, desk)


def test_a_generator_that_repeats_its_parent_ends_at_the_cap_with_each_rejected_for_it(tmp_path: Path) -> None:
    desk = FakeDesk(tmp_path, generator=FakeGenerator(write=lambda parent, easy, sample: parent.text))
    with pytest.raises(ConfigError, match="Ended after 12 attempts at hard instructions, the most allowed: too_similar 12"):
        run(tmp_path, desk)
    assert len(desk.generator.asked) == 24


def test_a_pool_in_chinese_is_compared_by_its_characters(tmp_path: Path) -> None:
    def write(parent: Instruction, easy: bool, sample: int) -> str:
        if sample % 2:
            return parent.text + "吧"
        return "".join(random.Random(sample).sample("山水风火木金土日月星云雨雪江河湖海鸟鱼虫花草树叶", 12))

    book = run(tmp_path, FakeDesk(tmp_path, generator=FakeGenerator(write=write)), pool(list(CHINESE)))
    fates = [candidate.fate for candidate in book.candidates(1)]
    assert fates.count(Fate.ACCEPTED) == len(book.train_pool(1)) == 6
    assert {candidate.fate for candidate in book.candidates(1) if candidate.text.endswith("吧")} <= {Fate.TOO_SIMILAR}
    assert Fate.TOO_SIMILAR in fates
    assert {traits.language for key, traits in book.traits().items() if key.startswith("seed")} == {"zh"}


def test_a_pool_of_items_of_100_000_characters_comes_to_its_end(tmp_path: Path) -> None:
    rng = random.Random(1)
    words = [f"word{n}" for n in range(300)]
    texts = [" ".join(rng.choices(words, k=15_500))[:100_000] for _ in range(30)]
    book = run(tmp_path, FakeDesk(tmp_path), pool(texts))
    assert len(book.train_pool(1)) == 6
    assert {verdict.label for verdict in book.verdicts(1).values()} <= {Label.HARD, Label.EASY}
