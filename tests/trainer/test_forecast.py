"""The forecast: the paper's own call budget comes out, and each setting moves the figure it should."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import RunConfig, load_preset
from trainer.forecast import ACCEPTED_SHARE, CALL_S, Forecast, Known, Seeds, Seen, forecast
from trainer.plan import Stage, Step

ALPACA = Seeds(size=52_002, tokens=25)
SEEN = Seen(calls=412, input_tokens=100, output_tokens=50, latency_s=2.0)


def paper(*, priced: bool = True, **changes: object) -> RunConfig:
    """The paper's run; changes are of its one endpoint."""
    config = load_preset("paper-7b")
    prices = {"price_input": 0.5, "price_output": 1.5} if priced else {}
    return replace(config, endpoints={"teacher": replace(config.endpoints["teacher"], **prices, **changes)})


def calls_of(found: Forecast, role: str) -> int:
    return sum(line.calls for line in found.lines if line.role == role)


def words_of(found: Forecast) -> str:
    return " ".join(found.assumptions)


def test_the_papers_run_makes_the_papers_calls():
    found = forecast(paper(), ALPACA)
    assert calls_of(found, "teacher") == 52_002 + 3 * 6_000
    assert calls_of(found, "referee") == 2 * (52_002 + 58_002 + 64_002)
    assert calls_of(found, "generator") == 18_000 / ACCEPTED_SHARE
    assert found.calls - (calls_of(found, "generator") - 18_000) == 436_014


def test_each_stage_of_each_iteration_has_its_line():
    places = [(line.iteration, line.stage, line.role) for line in forecast(paper(), ALPACA).lines]
    turn = [(Stage.DISCRIMINATION, "referee"), (Stage.GENERATION, "generator"), (Stage.IMITATION, "teacher")]
    assert places == [(0, Stage.IMITATION, "teacher"), *((k, stage, role) for k in (1, 2, 3) for stage, role in turn)]


def test_the_lines_add_up_to_the_totals():
    found = forecast(paper(), ALPACA)
    assert found.calls == sum(line.calls for line in found.lines)
    assert found.tokens == sum(line.input_tokens + line.output_tokens for line in found.lines)
    assert found.nanodollars == sum(line.nanodollars for line in found.lines) > 0
    assert found.seconds == pytest.approx(sum(line.seconds or 0 for line in found.lines))


def test_what_was_seen_takes_the_place_of_what_was_assumed():
    found = forecast(paper(), ALPACA, Known(seen={"teacher": SEEN}))
    first = found.lines[0]
    assert (first.input_tokens, first.output_tokens) == (5_200_200, 2_600_100)
    assert first.nanodollars == 52_002 * (100 * 500 + 50 * 1500)
    assert "The teacher reads 100 tokens a call and answers in 50 on average: seen in 412 calls of this run." in found.assumptions
    assert "answers in 200 on average: assumed" in words_of(found)


def test_a_handful_of_calls_is_not_enough_to_go_by():
    few = replace(SEEN, calls=19, output_tokens=900)
    assert forecast(paper(), ALPACA, Known(seen={"teacher": few})) == forecast(paper(), ALPACA)


def test_replies_asked_for_again_are_calls_too():
    found = forecast(paper(), ALPACA, Known(seen={"referee": replace(SEEN, asks=1.05)}))
    assert calls_of(found, "referee") == pytest.approx(1.05 * 348_012, abs=3)
    assert "5.0 % of the referee's replies are asked for again: seen." in found.assumptions


def test_candidates_that_are_rejected_are_asked_for_again_up_to_the_cap():
    assert calls_of(forecast(paper(), ALPACA, Known(accepted=(100, 50))), "generator") == 36_000
    assert calls_of(forecast(paper(), ALPACA, Known(accepted=(100, 1))), "generator") == 3 * 6_000 * 4
    assert calls_of(forecast(paper(), ALPACA, Known(accepted=(100, 0))), "generator") == 3 * 6_000 * 4


def test_what_is_at_hand_is_not_paid_for():
    found = forecast(paper(), ALPACA, Known(stored={(0, Step.TEACHER_RESPONSES): 1.0}))
    first = found.lines[0]
    assert (first.calls, first.saved, first.nanodollars, first.seconds) == (0, 52_002, 0, 0)
    assert found.saved == 52_002


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ({"max_at_once": 10}, 52_002 * 2.0 / 10),
        ({"max_at_once": 512, "rpm": 600}, 52_002 / 10),
        ({"max_at_once": 512, "input_tpm": 60_000}, 52_002 * 100 / 1000),
        ({"max_at_once": 512, "output_tpm": 60_000}, 52_002 * 50 / 1000),
        ({"max_at_once": 1, "rpm": 600}, 52_002 * 2.0),
    ],
)
def test_a_stage_takes_as_long_as_what_is_slowest(limits, seconds):
    found = forecast(paper(**limits), ALPACA, Known(seen={"teacher": SEEN}))
    assert found.lines[0].seconds == pytest.approx(seconds)


def test_an_unknown_latency_is_assumed_and_said():
    found = forecast(paper(max_at_once=5), ALPACA)
    assert found.lines[0].seconds == pytest.approx(52_002 * CALL_S / 5)
    assert f"A call of the teacher takes {CALL_S} s: assumed." in found.assumptions


def test_batch_mode_costs_half_and_gives_no_number_of_seconds():
    config = paper(batch_api=True)
    batched = replace(config, referee=replace(config.referee, batch=True))
    plain, found = forecast(config, ALPACA), forecast(batched, ALPACA)
    of_referee = [(a, b) for a, b in zip(plain.lines, found.lines, strict=True) if a.role == "referee"]
    assert all(b.nanodollars == pytest.approx(a.nanodollars / 2, abs=1) and b.seconds is None for a, b in of_referee)
    assert found.batched
    assert not plain.batched
    assert 0 < found.seconds < plain.seconds
    assert "half the price, and up to 24 h a batch" in words_of(found)


def test_an_endpoint_without_a_price_is_named_and_not_promised_as_free():
    found = forecast(paper(priced=False), ALPACA)
    assert not found.priced
    assert found.unpriced == ["teacher"]
    assert "No price is set on endpoint 'teacher'" in words_of(found)


def test_the_offline_teacher_needs_no_price():
    found = forecast(load_preset("demo"), Seeds(size=1500, tokens=6))
    assert found.priced
    assert not found.unpriced
    assert found.nanodollars == 0


def test_a_run_under_way_needs_only_the_rest():
    known = Known(
        over=frozenset({(0, Step.TEACHER_RESPONSES), (1, Step.JUDGEMENTS), (1, Step.CANDIDATES)}),
        left={(1, Step.TEACHER_RESPONSES): 1_000},
        made={0: 52_002, 1: 5_000},
    )
    lines = forecast(paper(), ALPACA, known).lines
    assert [(line.iteration, line.role) for line in lines][:2] == [(1, "teacher"), (2, "referee")]
    assert [line.calls for line in lines][:2] == [1_000, 2 * 57_002]  # what the first iteration made, not what it wanted


def test_a_run_that_is_over_needs_nothing():
    every = frozenset((k, step) for k in range(4) for step in Step)
    assert forecast(paper(), ALPACA, Known(over=every)).lines == []


def test_the_students_time_is_said_to_be_missing():
    assert "The student's own time" in words_of(forecast(paper(), ALPACA))


def test_replies_are_assumed_no_longer_than_they_may_be():
    config = paper()
    short = replace(config, teacher=replace(config.teacher, max_tokens=10), referee=replace(config.referee, max_tokens=20))
    lines = forecast(short, ALPACA).lines
    assert lines[0].output_tokens == 10 * lines[0].calls
    assert lines[1].output_tokens == 20 * lines[1].calls


@given(
    size=st.integers(0, 100_000),
    share=st.floats(0, 1),
    left=st.integers(0, 100_000),
    accepted=st.integers(0, 500).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))),
)
def test_no_figure_is_negative_and_more_at_hand_never_costs_more(size, share, left, accepted):
    seeds = Seeds(size=size, tokens=12.5)
    known = Known(accepted=accepted, left={(1, Step.JUDGEMENTS): left}, stored={(0, Step.TEACHER_RESPONSES): share})
    found, bare = forecast(paper(), seeds, known), forecast(paper(), seeds, replace(known, stored={}))
    assert all(min(line.calls, line.saved, line.input_tokens, line.output_tokens, line.nanodollars) >= 0 for line in found.lines)
    assert found.nanodollars <= bare.nanodollars
    assert found.calls + found.saved == bare.calls
