"""How varied new instructions are: distinct-n, nearest neighbours, traits, and the alarm when they collapse."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.demo.pool import demo_seed_pool
from trainer.diversity import Diversity, Traits, distinct, diversity_from_dict, measure, nearest_neighbours, traits_of
from trainer.records import Instruction
from trainer.root_words import LONGEST_WORD, RootWords, root_words
from trainer.similarity import rouge_l

TASKS = (
    "Write a short poem about rain in the mountains",
    "Explain how a diesel engine works to a child of ten",
    "Find the smallest prime number above one hundred",
    "Translate this sentence into French without an idiom",
    "List three birds that cannot fly and where they live",
    "Summarize the plot of a film you saw last year",
    "Sort these numbers from the largest to the smallest",
    "Suggest a menu for a birthday party with ten guests",
    "Describe the taste of a ripe mango to someone who never had one",
    "Correct the grammar of the following letter to the bank",
)
PLACES = ("Rome", "Oslo", "Lima", "Cairo", "Quito", "Delhi", "Seoul", "Tunis", "Paris", "Turin", "Perth", "Minsk")


def instructions(texts: list[str], *, iteration: int = 0) -> list[Instruction]:
    return [Instruction(key=f"i{iteration}-{n:06d}", text=text, iteration=iteration) for n, text in enumerate(texts)]


def mixed(count: int, *, seed: int) -> list[str]:
    """Instructions of the tasks' own verbs, each with words of all of them."""
    words, rng = [word for task in TASKS for word in task.split()[1:]], random.Random(seed)
    return [f"{TASKS[n % len(TASKS)].split()[0]} {' '.join(rng.sample(words, 8))}" for n in range(count)]


SEEDS = instructions(mixed(120, seed=1))


def measured(texts: list[str]) -> Diversity:
    return measure(instructions(texts, iteration=1), SEEDS, traits=lambda i: traits_of(i.prompt), seed=1, iteration=1)


def test_distinct_n_is_the_share_of_different_n_grams() -> None:
    texts = ["a b a b", "a b c"]
    assert distinct(texts, 1, most=100) == 3 / 7
    assert distinct(texts, 2, most=100) == 3 / 5  # ab ba bc of ab ba ab ab bc
    assert distinct(texts, 2, most=3) == 2 / 3
    assert distinct([], 2, most=10) is None


@given(st.lists(st.text(alphabet="ab c", max_size=12), max_size=8))
def test_each_nearest_neighbour_is_the_best_of_all_others(texts: list[str]) -> None:
    brute = [max(rouge_l(text, other) for place2, other in enumerate(texts) if place2 != place) for place, text in enumerate(texts)] if len(
        texts
    ) > 1 else []  # fmt: skip
    assert nearest_neighbours(texts) == pytest.approx(brute)


def test_the_same_seed_gives_the_same_numbers_and_they_come_back_from_json() -> None:
    one = measured([f"{task} near {place}" for place in PLACES for task in TASKS[:4]])
    assert one == measured([f"{task} near {place}" for place in PLACES for task in TASKS[:4]])
    assert diversity_from_dict(one.as_dict()) == one


def test_both_sides_are_counted_over_as_much() -> None:
    told = measured([f"{task} near {place}" for place in PLACES[:3] for task in TASKS])
    assert told.made == 30
    assert told.new.ngrams == told.seeds.ngrams > 0
    assert told.new.compared == told.seeds.compared == 30


def test_the_like_of_the_seeds_raises_no_alarm() -> None:
    assert measured(mixed(80, seed=2)).alarms == ()


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (
            [f"Write a story about {place} and the old king" for place in PLACES * 3],
            ("repeat their words", "close to each other", "'write'"),
        ),
        ([f"Name {place}" for place in PLACES * 3], ("length has changed",)),
        ([f"Schreibe bitte eine kurze Geschichte über die Stadt {place} und ihre Menschen" for place in PLACES * 2], ("language 'de'",)),
    ],
)
def test_a_collapse_raises_an_alarm_that_says_what_collapsed(texts: list[str], said: tuple[str, ...]) -> None:
    alarms = " ".join(measured(texts).alarms)
    for words in said:
        assert words in alarms


def test_of_too_few_nothing_is_said() -> None:
    assert measured(["Write a story about Rome"] * 19).alarms == ()


def test_without_one_word_there_is_nothing_to_say() -> None:
    told = measured(["!!", "??"])
    assert told.new.distinct_1 is None
    assert told.new.nearest == 0.0
    assert told.alarms == ()


def test_the_demos_seeds_are_measured_without_an_alarm() -> None:
    pool = demo_seed_pool(1, 200)
    assert measure(pool, pool, traits=lambda i: traits_of(i.prompt), seed=1, iteration=0).alarms == ()


def test_traits_are_told_of_each_text() -> None:
    assert traits_of("Write two short poems about the rain in spring.") == Traits(words=9, language="en", verb="write", noun="poem")
    assert traits_of("请把下面的句子翻译成英文并解释其中的每一个词语") == Traits(words=23, language="zh")


@pytest.mark.parametrize(
    ("text", "verb", "noun"),
    [
        ("Write a story about a dog.", "write", "story"),
        ("Please generate three catchy titles for this email:", "generate", "title"),
        ("Given a set of numbers, find all possible subsets that sum to a given number.", "find", "subset"),
        ("Can you give me some suggestions?", "give", "suggestion"),
        ("You need to write a creative opening scene for a horror movie.", "write", "scene"),
        ("In this task, your job is to compare the meaning of two sentences.", "compare", "meaning"),
        ("Explain why the sky is blue.", "explain", ""),
        ("Come up with a metaphor.", "come", ""),
        ("Write down a main dish.", "write", "dish"),
        ("What is the relation between the given pairs?", "", ""),
        ("Question: explain the rule.", "explain", "rule"),
        ("Quickly sort the given list ascendingly.", "sort", "list"),
        ("Make a one-sentence summarization of the paper.", "make", "summarization"),
        ("Transcribe " + "ATGCCGTA" * 10, "transcribe", ""),
        ("reverse: badc", "reverse", ""),
        ("", "", ""),
        ("\x00 <script>", "", ""),
    ],
)
def test_root_words_are_those_of_the_first_request(text: str, verb: str, noun: str) -> None:
    assert root_words(text) == RootWords(verb, noun)


@given(st.one_of(st.text(max_size=80), st.text(alphabet="ACGT -", max_size=300).map("transcribe {}".format)))
def test_root_words_never_raise_and_are_short(text: str) -> None:
    found = root_words(text)
    assert len(found.verb) <= LONGEST_WORD
    assert len(found.noun) <= LONGEST_WORD
    assert found.verb or not found.noun
