"""Shares with intervals, agreement beyond chance, and a win share that length has no part in: laws and textbook cases."""

import math
import subprocess
import sys
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.statistics import RIDGE, cohen_kappa, wilson, win_share_at_equal_length


def drawn(draw: int, n: int, win: float) -> tuple[list[float], list[float]]:
    """Wins that have nothing to do with the lengths."""
    rng = Random(draw)
    return [float(rng.random() < win) for _ in range(n)], [rng.gauss(40, 200) for _ in range(n)]


@pytest.mark.parametrize("win", [0.2, 0.5, 0.8])
def test_where_length_plays_no_part_the_controlled_share_is_the_raw_one(win: float) -> None:
    wins, differences = drawn(3, 2000, win)
    raw, controlled = wilson(sum(wins), len(wins)), win_share_at_equal_length(wins, differences)
    assert raw
    assert controlled
    assert controlled.low <= raw.value <= controlled.high
    assert controlled.n == 2000
    assert controlled.high - controlled.low < 1.2 * (raw.high - raw.low)


def test_a_referee_who_always_prefers_the_longer_says_nothing_of_who_is_better() -> None:
    rng = Random(5)
    differences = [rng.gauss(150, 150) for _ in range(1000)]  # the first is the longer in five of six
    wins = [float(d > 0) for d in differences]
    raw, controlled = wilson(sum(wins), len(wins)), win_share_at_equal_length(wins, differences)
    assert raw
    assert controlled
    assert raw.low > 0.75
    assert abs(controlled.value - 0.5) < 0.15
    assert controlled.low < 0.5 < controlled.high


def test_a_known_effect_of_length_is_taken_out() -> None:
    rng = Random(7)
    differences = [rng.gauss(300, 300) for _ in range(4000)]
    scale = math.sqrt(sum(d * d for d in differences) / len(differences))
    wins = [float(rng.random() < 1 / (1 + math.exp(0.4 - 2.0 * math.tanh(d / scale)))) for d in differences]
    raw, controlled = wilson(sum(wins), len(wins)), win_share_at_equal_length(wins, differences)
    assert raw
    assert controlled
    assert raw.low > 0.5
    assert controlled.low <= 1 / (1 + math.exp(0.4)) <= controlled.high < 0.5


def test_it_solves_the_equations_of_the_regression() -> None:
    """At the intercept that was found, with the slope that is best beside it, wins and expected wins add up to the same."""
    rng = Random(11)
    differences = [rng.gauss(20, 90) for _ in range(300)]
    wins = [rng.choice([0.0, 0.5, 1.0]) for _ in differences]
    scale = math.sqrt(sum(d * d for d in differences) / 300)
    found = win_share_at_equal_length(wins, differences)
    assert found
    intercept = math.log(found.value / (1 - found.value))

    def left(slope: float) -> tuple[float, float]:
        rest = [*((math.tanh(d / scale), y) for d, y in zip(differences, wins, strict=True)), (0.0, 0.5)]
        rest = [(x, y - 1 / (1 + math.exp(-intercept - slope * x))) for x, y in rest]
        return sum(r for _, r in rest), sum(x * r for x, r in rest) - RIDGE * slope

    low, high = -10.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle)[1] > 0 else (low, middle)
    assert left(low)[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("won", [1.0, 0.0])
def test_where_one_side_wins_throughout_and_is_always_the_longer_nothing_is_known_of_equal_length(won: float) -> None:
    longer = [500.0 + n if won else -500.0 - n for n in range(50)]
    found = win_share_at_equal_length([won] * 50, longer)
    assert found
    assert found.low < 0.5 < found.high


@pytest.mark.parametrize("won", [1.0, 0.0])
def test_where_one_side_wins_throughout_at_all_lengths_that_is_known(won: float) -> None:
    found = win_share_at_equal_length([won] * 200, [n - 99.5 for n in range(200)])
    assert found
    assert abs(found.value - won) < 0.02
    assert abs((found.low if won else found.high) - won) < 0.1


def test_where_all_lengths_are_equal_there_is_nothing_to_control_for() -> None:
    assert win_share_at_equal_length([1, 0, 0.5, 1], [0, 0, 0, 0]) == wilson(2.5, 4)
    assert win_share_at_equal_length([], []) is None


def test_counts_are_so_many_cases() -> None:
    one = win_share_at_equal_length([1, 0, 1], [10, -5, 0], counts=[3, 2, 1])
    other = win_share_at_equal_length([1, 1, 1, 0, 0, 1], [10, 10, 10, -5, -5, 0])
    assert one
    assert other
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_swapping_the_two_mirrors_the_share() -> None:
    wins, differences = drawn(13, 200, 0.7)
    one, other = win_share_at_equal_length(wins, differences), win_share_at_equal_length([1 - w for w in wins], [-d for d in differences])
    assert one
    assert other
    assert (other.value, other.low, other.high) == pytest.approx((1 - one.value, 1 - one.high, 1 - one.low), abs=1e-6)


cases = st.tuples(
    st.sampled_from([0.0, 0.5, 1.0]),
    st.one_of(st.integers(-100_000, 100_000), st.floats(-1e300, 1e300)),
    st.integers(1, 100_000),
)


@given(st.lists(cases, min_size=1, max_size=60))
def test_it_never_raises_and_stays_a_share(drawn: list[tuple[float, float, int]]) -> None:
    wins, differences, counts = zip(*drawn, strict=True)
    found = win_share_at_equal_length(wins, differences, counts=counts)
    assert found
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.n == sum(counts)


def test_kappa_is_the_textbooks() -> None:
    # Cohen's formula by hand: agreed 35 / 50, by chance 0.5 (25 and 20 of 50 said yes); the deviation as in Fleiss, Cohen and Everitt.
    found = cohen_kappa([[20, 5], [10, 15]])
    assert found
    assert found.value == pytest.approx(0.4)
    assert (found.low, found.high) == pytest.approx((0.1511, 0.6489), abs=5e-4)


def test_kappa_is_undefined_where_nothing_could_differ() -> None:
    assert cohen_kappa([[0, 0], [0, 0]]) is None
    assert cohen_kappa([[7, 0], [0, 0]]) is None
    full = cohen_kappa([[4, 0], [0, 3]])
    assert full
    assert (full.value, full.low, full.high) == (1.0, 1.0, 1.0)
    none = cohen_kappa([[0, 5], [5, 0]])
    assert none
    assert none.value == -1.0


counts = st.integers(0, 1000)


@given(counts, counts, counts, counts)
def test_kappa_stays_in_its_range_and_does_not_mind_who_is_asked_first(a: int, b: int, c: int, d: int) -> None:
    one, other = cohen_kappa([[a, b], [c, d]]), cohen_kappa([[a, c], [b, d]])
    if one is None:
        assert other is None
        return
    assert other
    assert -1 <= one.low <= one.value <= one.high <= 1
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_the_module_costs_no_numpy_until_it_is_needed() -> None:
    code = "import sys, trainer.statistics; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
