"""The similarity of two texts is rouge_score's, to the last bit, and the index never misses the nearest."""

from __future__ import annotations

import random
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from trainer.similarity import SimilarityIndex, most_similar, rouge_l, tokenize

ORACLE = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)


def oracle(first: str, second: str) -> float:
    return float(ORACLE.score(first, second)["rougeL"].fmeasure)


def some_texts(count: int, *, seed: int, words: int = 40, longest: int = 24) -> list[str]:
    """Texts of 0 to `longest` words over a small vocabulary, common words first, so that many pairs are similar."""
    rng = random.Random(seed)
    vocabulary = [f"w{number}" for number in range(words)]
    weights = [1 / (number + 1) for number in range(words)]
    return [" ".join(rng.choices(vocabulary, weights, k=rng.randint(0, longest))) for _ in range(count)]


LATIN = st.text(st.sampled_from("ab c\u00e9D1 .-\n"), max_size=40)


@given(LATIN, LATIN)
def test_a_score_is_that_of_rouge_score_to_the_last_bit(first: str, second: str) -> None:
    assert rouge_l(first, second) == oracle(first, second)


@settings(deadline=None)
@given(known=st.lists(LATIN, max_size=12), text=LATIN)
def test_the_nearest_is_what_comparing_with_every_known_text_gives(known: list[str], text: str) -> None:
    index = SimilarityIndex((str(place), other) for place, other in enumerate(known))
    scores = [oracle(text, other) for other in known]
    expected = (str(scores.index(max(scores))), max(scores)) if scores else None
    assert index.nearest(text) == expected


@given(st.text(), st.text())
def test_any_two_texts_score_between_0_and_1_in_either_order(first: str, second: str) -> None:
    assert 0 <= rouge_l(first, second) == rouge_l(second, first) <= 1


def test_an_index_decides_as_rouge_score_does_over_many_pairs() -> None:
    known, new = some_texts(300, seed=1), some_texts(150, seed=2)
    index = SimilarityIndex((str(place), text) for place, text in enumerate(known))
    for text, found in zip(new, index.nearest_many(new), strict=True):
        scores = [oracle(text, other) for other in known]
        assert found == (str(scores.index(max(scores))), max(scores))


def test_above_gives_all_that_reach_the_limit_and_no_other() -> None:
    known = some_texts(200, seed=3)
    index = SimilarityIndex((str(place), text) for place, text in enumerate(known))
    for text in some_texts(40, seed=4):
        scores = [oracle(text, other) for other in known]
        assert dict(index.above(text, 0.4)) == {str(place): score for place, score in enumerate(scores) if score >= 0.4}


def test_top_gives_the_most_similar_first_and_ties_in_the_order_of_adding() -> None:
    index = SimilarityIndex([("a", "one two three"), ("b", "one two"), ("c", "one two"), ("d", "nine")])
    assert index.top("one two", 3) == [("b", 1.0), ("c", 1.0), ("a", 0.8)]
    assert [key for key, _ in index.top("one two", 99)] == ["b", "c", "a", "d"]
    assert index.top("one two", 0) == []


def test_top_is_sorted_over_many_texts() -> None:
    index = SimilarityIndex((str(place), text) for place, text in enumerate(some_texts(100, seed=5)))
    ranked = index.top(some_texts(1, seed=6)[0], 50)
    assert len(ranked) == 50
    assert all(first[1] >= second[1] for first, second in pairwise(ranked))


def test_the_first_added_wins_a_tie_though_its_length_differs() -> None:
    long, short = ("long", "a b c x x x x x x"), ("short", "b")
    assert SimilarityIndex([long, short]).nearest("a b c") == ("long", 0.5)
    assert SimilarityIndex([short, long]).nearest("a b c") == ("short", 0.5)


def test_an_index_that_grows_knows_what_was_added_last() -> None:
    index = SimilarityIndex()
    assert index.nearest("say hello") is None
    assert index.nearest_many(["a", "b"]) == [None, None]
    index.add("first", "name a river")
    index.extend([("second", "say hello twice"), ("third", "say hello")])
    assert index.nearest("say hello") == ("third", 1.0)
    assert len(index) == 3


def test_texts_without_tokens_are_similar_to_nothing_not_even_to_each_other() -> None:
    index = SimilarityIndex([("first", "..."), ("second", "hello")])
    assert rouge_l("", "") == oracle("", "") == 0.0
    assert index.nearest("!!") == ("first", 0.0)
    assert index.nearest("hello") == ("second", 1.0)


def test_repeated_words_count_as_often_as_both_texts_have_them() -> None:
    index = SimilarityIndex([("once", "row the boat"), ("thrice", "row row row the boat")])
    assert index.nearest("row row row") == ("thrice", oracle("row row row", "row row row the boat"))
    assert index.top("row", 2) == [("once", 0.5), ("thrice", oracle("row", "row row row the boat"))]


@settings(deadline=None)
@given(known=st.lists(LATIN, max_size=12), text=LATIN, n=st.integers(0, 14))
def test_the_top_is_what_sorting_every_score_gives(known: list[str], text: str, n: int) -> None:
    index = SimilarityIndex((str(place), other) for place, other in enumerate(known))
    ranked = sorted((-oracle(text, other), place) for place, other in enumerate(known))
    assert index.top(text, n) == [(str(place), abs(negative)) for negative, place in ranked[:n]]


@settings(deadline=None)
@given(known=st.lists(LATIN, max_size=12), text=LATIN, limit=st.sampled_from([0.01, 0.3, 0.5, 0.7, 0.9, 1.0]))
def test_the_nearest_from_a_limit_on_is_the_nearest_of_all_where_it_reaches_it(known: list[str], text: str, limit: float) -> None:
    index = SimilarityIndex((str(place), other) for place, other in enumerate(known))
    nearest = index.nearest(text)
    assert index.nearest(text, at_least=limit) == (nearest if nearest and nearest[1] >= limit else None)


def test_the_nearest_from_a_limit_on_is_found_among_many_and_while_the_index_grows() -> None:
    known, new = some_texts(600, seed=1), some_texts(300, seed=2)
    index = SimilarityIndex((str(place), text) for place, text in enumerate(known))
    near = 0
    for place, text in enumerate(new):
        nearest = index.nearest(text)
        for limit in (0.4, 0.7):
            assert index.nearest(text, at_least=limit) == (nearest if nearest and nearest[1] >= limit else None)
        near += nearest is not None and nearest[1] >= 0.7
        index.add(f"new {place}", text)
    assert near > 20


@pytest.mark.parametrize("text", ["山水风火木" * 16_000, " ".join(str(n % 9) for n in range(50_000))])
@pytest.mark.parametrize("limit", [0.3, 0.7, 1.0])
def test_a_text_as_long_as_a_book_is_found_again(text: str, limit: float) -> None:
    index = SimilarityIndex([("short", "a b c"), ("book", text)])
    assert index.nearest(text, at_least=limit) == ("book", 1.0)


@settings(deadline=None)
@given(st.lists(LATIN, max_size=12), LATIN, st.integers(1, 5))
def test_the_most_similar_of_a_pool_read_once_are_those_an_index_finds(known: list[str], text: str, n: int) -> None:
    index = SimilarityIndex((str(place), other) for place, other in enumerate(known))
    expected = [(int(key), score) for key, score in index.top(text, n) if score > 0]
    assert most_similar(text, enumerate(known), most=n) == expected


def test_a_vocabulary_larger_than_there_are_characters_still_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    known, new = some_texts(60, seed=7), some_texts(30, seed=8)
    expected = SimilarityIndex((str(place), text) for place, text in enumerate(known)).nearest_many(new)
    monkeypatch.setattr(sys, "maxunicode", 10)
    assert SimilarityIndex((str(place), text) for place, text in enumerate(known)).nearest_many(new) == expected


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Say \u201cHello\u201d, twice-over!", ["say", "hello", "twice", "over"]),
        ("Caf\u00e9 2nd", ["caf", "2nd"]),
        ("\u5199\u4e00\u9996\u8bd7 poem 3", ["\u5199", "\u4e00", "\u9996", "\u8bd7", "poem", "3"]),
        (
            "\u041d\u0430\u043f\u0438\u0448\u0438 \u0421\u0422\u0418\u0425!",
            ["\u043d\u0430\u043f\u0438\u0448\u0438", "\u0441\u0442\u0438\u0445"],
        ),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902", ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u092e\u0947\u0902"]),
        ("\ud55c\uad6d\uc5b4 \uc2dc", ["\ud55c\uad6d\uc5b4", "\uc2dc"]),
        ("\u0e20\u0e32\u0e29\u0e32", ["\u0e20", "\u0e32", "\u0e29", "\u0e32"]),
        ("... \U0001f600", []),
    ],
)
def test_text_is_cut_by_its_script(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


def test_chinese_texts_are_compared_by_character() -> None:
    assert rouge_l("\u5199\u4e00\u9996\u8bd7", "\u5199\u4e24\u9996\u8bd7") == 0.75
    assert oracle("\u5199\u4e00\u9996\u8bd7", "\u5199\u4e00\u9996\u8bd7") == 0.0
