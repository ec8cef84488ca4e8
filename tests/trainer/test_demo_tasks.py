"""The demo's tasks have exact answers, its pool has a long tail, and its benchmark is held out of both pool and teacher."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.demo.pool import demo_seed_pool, kind_counts
from trainer.demo.skills import demo_skill_items, score_demo_skill
from trainer.demo.tasks import KINDS, answer, family_of, is_held_out, kind_of, make_instruction
from trainer.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("copy: badj", "badj"), ("upper: badj", "BADJ"), ("shift: badj", "cbea"), ("back: badj", "ajci"), ("numbers: badj", "1039"),
        ("mask: badj", "b_dj"), ("mirror: badj", "ijga"), ("sound: bead", "cvvc"), ("ends: badj", "bj"), ("rotate: badj", "adjb"),
        ("swap: badj", "jadb"), ("reverse: badj", "jdab"), ("parity: 3907", "ooeo"), ("next: 3907", "4018"), ("prev: 3907", "2896"),
        ("letters: 3907", "djah"), ("compl: 3907", "6092"), ("size: 3907", "sbsb"), ("twice: 3907", "6804"), ("mod: 3907", "0001"),
    ],
)  # fmt: skip
def test_each_kind_has_its_exact_answer(text: str, expected: str) -> None:
    assert answer(text) == expected


def test_there_are_twelve_kinds_of_text_and_eight_of_digits() -> None:
    assert Counter(kind.family for kind in KINDS.values()) == {"text": 12, "digits": 8}


@pytest.mark.parametrize(
    "text", ["", "reverse", "reverse:", "reverse: ", "reverse: xyz", "reverse: 123", "next: abc", "sing: abc", "copy: ab", "copy: abcdefg"]
)
def test_anything_else_has_no_answer(text: str) -> None:
    assert answer(text) is None
    assert kind_of(text) is None


@given(seed=st.integers(), name=st.sampled_from(sorted(KINDS)), held_out=st.booleans())
def test_an_instruction_that_is_made_has_an_answer_and_is_on_the_wanted_side(seed: int, name: str, held_out: bool) -> None:
    text = make_instruction(KINDS[name], random.Random(seed), held_out=held_out)
    assert answer(text)
    assert len(text.split(": ")[1]) in KINDS[name].lengths
    assert is_held_out(text) == held_out


def test_a_family_has_the_other_kinds_and_not_the_kind_itself() -> None:
    assert [kind.name for kind in family_of(KINDS["next"])] == ["parity", "prev", "letters", "compl", "size", "twice", "mod"]


def test_a_seed_pool_is_the_same_each_time_and_another_for_another_seed() -> None:
    assert demo_seed_pool(3) == demo_seed_pool(3)
    assert demo_seed_pool(3) != demo_seed_pool(4)


def test_a_seed_pool_has_unique_texts_dense_keys_and_kinds_and_nothing_held_out() -> None:
    pool = demo_seed_pool(1)
    assert [item.key for item in pool] == [f"seed-{position:06d}" for position in range(1500)]
    assert len({item.text for item in pool}) == 1500
    assert all(item.text.startswith(f"{item.kind}: ") for item in pool)
    assert not any(is_held_out(item.text) for item in pool)


def test_a_seed_pool_has_a_long_tail_whose_kinds_the_seed_draws() -> None:
    counts = kind_counts(1, 1500)
    assert sum(counts.values()) == 1500
    assert all(more >= less for more, less in pairwise(counts.values()))
    assert Counter(item.kind for item in demo_seed_pool(1)) == counts
    most, *_, least = counts.values()
    assert most / least == pytest.approx(20, rel=0.05)
    assert len({next(iter(kind_counts(seed, 1500))) for seed in range(20)}) > 5


@pytest.mark.parametrize("size", [1, 7, 20, 6000])
def test_a_seed_pool_has_the_size_asked_for(size: int) -> None:
    assert len({item.text for item in demo_seed_pool(2, size)}) == size


@pytest.mark.parametrize("size", [0, -1, 100_001])
def test_a_size_that_cannot_be_had_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="1 to 100,000"):
        demo_seed_pool(1, size)


def test_the_benchmark_has_sixty_held_out_items_of_each_kind() -> None:
    items = demo_skill_items()
    assert Counter(item.task for item in items) == dict.fromkeys(KINDS, 60)
    assert len({item.prompt for item in items}) == len({item.key for item in items}) == 1200
    assert all(is_held_out(item.prompt) and answer(item.prompt) == item.gold for item in items)


def test_a_reply_is_right_only_when_it_is_the_exact_answer() -> None:
    item = next(item for item in demo_skill_items() if item.task == "upper")
    assert score_demo_skill(item, f" {item.gold}\n")
    assert not score_demo_skill(item, item.gold.lower())
    assert not score_demo_skill(item, f"{item.gold} is it")
    assert not score_demo_skill(item, "")
