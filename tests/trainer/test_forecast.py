"""The forecast: the paper's own call budget comes out, and each setting moves the figure it should."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import RunConfig, load_preset
from trainer.forecast import Forecast, forecast
from trainer.forecast_basis import (
    ACCEPTED_SHARE,
    BATCH_CALLS,
    CALL_S,
    MOST_PER_S,
    OFFLINE_ACCEPTED_SHARE,
    OFFLINE_PER_S,
    Known,
    Seeds,
    Seen,
)
from trainer.loop import BATCHED_AT_ONCE
from trainer.pace_parts import FoundRate, Slots
from trainer.pacing import HEADROOM, Pace
from trainer.plan import Stage, Step

ALPACA = Seeds(size=52_002, tokens=25)
DEMO = Seeds(size=1500, tokens=6)
SEEN = Seen(calls=412, input_tokens=100, output_tokens=50, latency_s=2.0)
QUICK = replace(SEEN, latency_s=0.05)
FIRST = 0, Step.TEACHER_RESPONSES


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
        ({"max_at_once": 512, "rpm": 600}, 52_002 / 10 / HEADROOM),
        ({"max_at_once": 512, "input_tpm": 60_000}, 52_002 * 100 / 1000 / HEADROOM),
        ({"max_at_once": 512, "output_tpm": 60_000}, 52_002 * 50 / 1000 / HEADROOM),
        ({"max_at_once": 1, "rpm": 600}, 52_002 * 2.0),
    ],
)
def test_a_stage_takes_as_long_as_what_is_slowest(limits, seconds):
    found = forecast(paper(**limits), ALPACA, Known(seen={"teacher": SEEN}))
    assert found.lines[0].seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("pace", "seconds", "words"),
    [
        (Pace(found=FoundRate(estimate=18, climbed_s=2.0)), 52_002 / 18, "1,080 requests a minute (found by trying)"),
        (Pace(told={"requests": 10}), 52_002 * 6 / HEADROOM, "9.8 requests a minute (98 % of what its headers tell)"),
        (Pace(told={"tokens": 60_000}), 52_002 * 150 / 1000 / HEADROOM, "58,800 tokens a minute (98 % of what its headers tell)"),
        (Pace(left={"requests": 30}), 52_002 * 2, "30 requests a minute (left of a limit that its headers tell)"),
        (Pace(slots=Slots(number=4.0)), 52_002 * 0.05 / 4, "4 calls at once (found by trying), no other limit is known"),
        (Pace(slots=Slots(number=1.0)), 52_002 * 0.05, "1 call at once (found by trying), no other limit is known"),
    ],
)
def test_what_the_pace_has_found_holds_a_stage_back(pace, seconds, words):
    found = forecast(paper(max_at_once=64), ALPACA, Known(seen={"teacher": QUICK}, paces={"teacher": pace}))
    assert found.lines[0].seconds == pytest.approx(seconds)
    assert words in words_of(found)


def test_calls_at_once_that_were_cut_count_where_they_are_what_holds_calls_back():
    pace = Pace(slots=Slots(number=4.0), found=FoundRate(estimate=18, climbed_s=2.0), held_by="rate")
    known = Known(seen={"teacher": SEEN}, paces={"teacher": pace})
    assert forecast(paper(max_at_once=64), ALPACA, known).lines[0].seconds == pytest.approx(52_002 / 18)
    pace.held_by = "slots"
    assert forecast(paper(max_at_once=64), ALPACA, known).lines[0].seconds == pytest.approx(52_002 * 2.0 / 4)


def test_of_two_limits_the_smaller_counts_and_is_named():
    known = Known(seen={"teacher": QUICK}, paces={"teacher": Pace(told={"requests": 300})})
    assert "98 % of what its headers tell" in words_of(forecast(paper(rpm=600), ALPACA, known))
    assert "588 requests a minute (98 % of what is set)" in words_of(forecast(paper(rpm=600), ALPACA, replace(known, paces={})))


def test_a_step_under_way_goes_on_as_fast_as_it_went():
    known = Known(seen={"teacher": QUICK}, left={FIRST: 1_049}, per_s={FIRST: 0.17})
    found = forecast(paper(max_at_once=64), ALPACA, known)
    assert found.lines[0].seconds == pytest.approx(1_049 / 0.17)
    assert "The teacher of iteration 0 goes on at the rate seen so far: 10.2 a minute." in found.assumptions


def test_a_step_under_way_by_batches_has_no_rate():
    config = paper(batch_api=True)
    known = Known(left={FIRST: 1_049}, per_s={FIRST: 0.17})
    found = forecast(replace(config, teacher=replace(config.teacher, batch=True)), ALPACA, known)
    assert found.lines[0].seconds is None
    assert "rate seen" not in words_of(found)


@pytest.mark.parametrize(("latency_s", "words"), [(0.05, "50 ms"), (0.0004, "0.4 ms"), (0.32, "320 ms"), (4.04, "4.0 s")])
def test_a_short_latency_keeps_its_digits(latency_s, words):
    found = forecast(paper(), ALPACA, Known(seen={"teacher": replace(SEEN, latency_s=latency_s)}))
    assert f"A call of the teacher takes {words}: seen." in found.assumptions


def test_an_unknown_latency_is_assumed_and_said():
    found = forecast(paper(max_at_once=5), ALPACA)
    assert found.lines[0].seconds == pytest.approx(52_002 * CALL_S / 5)
    assert f"A call of the teacher takes {CALL_S} s: assumed." in found.assumptions


def test_a_role_is_assumed_as_quick_as_another_that_was_seen_on_its_endpoint():
    found = forecast(paper(max_at_once=5), ALPACA, Known(seen={"teacher": SEEN}))
    assert found.lines[1].seconds == pytest.approx(104_004 * 2.0 / 5)
    assert "A call of the referee takes 2.0 s: assumed, as those of the teacher take there." in found.assumptions
    config = paper()
    apart = replace(
        config, endpoints=config.endpoints | {"other": config.endpoints["teacher"]}, referee=replace(config.referee, endpoint="other")
    )
    assert f"A call of the referee takes {CALL_S} s: assumed." in forecast(apart, ALPACA, Known(seen={"teacher": SEEN})).assumptions


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


def test_batches_are_counted_by_step_and_by_round_of_candidates():
    config = paper(batch_api=True)
    roles = {role: replace(getattr(config, role), batch=True) for role in ("teacher", "referee", "generator")}
    found = forecast(replace(config, **roles), ALPACA, Known(accepted=(100, 90)))
    batches = {(line.iteration, line.role): line.batches for line in found.lines}
    assert batches[0, "teacher"] == 3  # 52,002 calls
    assert batches[1, "teacher"] == 1
    assert batches[1, "referee"] == 6  # 104,004 calls
    assert batches[1, "generator"] == 4  # 6,000 missing, then 600, 60 and 6
    assert found.batches == sum(batches.values())
    words = words_of(found)
    assert "The teacher's are 6 batches at least: one takes 20,000 calls at most, and each step has its own." in words
    assert BATCH_CALLS == BATCHED_AT_ONCE
    assert forecast(config, ALPACA).batches == 0


def test_of_calls_that_are_at_hand_there_is_no_batch():
    config = paper(batch_api=True)
    batched = replace(config, teacher=replace(config.teacher, batch=True))
    first = forecast(batched, ALPACA, Known(stored={FIRST: 1.0})).lines[0]
    assert (first.batches, first.seconds) == (0, 0)


def test_the_last_candidate_that_is_missing_is_a_batch_too():
    config = paper(batch_api=True)
    batched = replace(config, generator=replace(config.generator, batch=True))
    lines = forecast(batched, ALPACA, Known(left={(1, Step.CANDIDATES): 1})).lines
    assert next(line.batches for line in lines if line.role == "generator") == 1


def test_where_all_goes_by_batches_no_limit_is_told():
    config = paper(batch_api=True)
    roles = {role: replace(getattr(config, role), batch=True) for role in ("teacher", "referee", "generator")}
    assert "Endpoint 'teacher' takes 16 calls at once" in words_of(forecast(config, ALPACA))
    assert "calls at once" not in words_of(forecast(replace(config, **roles), ALPACA))


# The demo


def test_the_demo_is_forecast_as_it_came_out():
    """9,968 calls and 1.50 M tokens on the web and in the shell, seed 1; 61 s of calls on the web (docs/log.md)."""
    found = forecast(load_preset("demo"), DEMO)
    assert found.calls == pytest.approx(9_968, rel=0.25)
    assert found.tokens == pytest.approx(1_496_000, rel=0.25)
    assert 61 / 1.5 < found.seconds < 61 * 1.5
    assert calls_of(found, "teacher") == 3_300
    assert calls_of(found, "generator") == pytest.approx(1_824, rel=0.01)
    assert [line.calls for line in found.lines if line.role == "referee"] == pytest.approx([1_887, 1_897, 1_060], rel=0.2)
    assert sum(line.saved for line in found.lines) == pytest.approx(2_599, rel=0.1)


def test_what_was_measured_is_said_and_the_students_time_with_it():
    words = words_of(forecast(load_preset("demo"), DEMO))
    assert "measured in the demo" in words
    assert "about 3 min in the demo as it is, on two cores" in words
    assert "about 3 min" not in words_of(forecast(paper(), ALPACA))


def test_a_second_demo_is_not_promised_faster_by_how_quick_each_call_was():
    seen = dict.fromkeys(("teacher", "referee", "generator"), replace(SEEN, latency_s=0.06))
    found = forecast(load_preset("demo"), DEMO, Known(seen=seen))
    assert found.seconds == pytest.approx(found.calls / OFFLINE_PER_S)
    assert "170 calls a second is the most that was measured on two cores" in words_of(found)


def test_no_endpoint_is_called_faster_than_we_can():
    found = forecast(paper(max_at_once=512), ALPACA, Known(seen={"teacher": QUICK}))
    assert found.lines[0].seconds == pytest.approx(52_002 / MOST_PER_S)


def test_more_iterations_of_the_demo_go_on_as_the_last_that_was_measured():
    config = load_preset("demo")
    longer = replace(config, loop=replace(config.loop, iterations=5))
    referee = [line for line in forecast(longer, DEMO).lines if line.role == "referee"]
    assert (referee[4].calls + referee[4].saved) / 3_900 == pytest.approx((referee[2].calls + referee[2].saved) / 2_700, rel=0.01)


def test_of_the_offline_teacher_too_what_was_seen_comes_first():
    known = Known(seen={"teacher": SEEN}, accepted=(100, 50), same={1: 0.5}, stored={(2, Step.JUDGEMENTS): 0.1})
    found = forecast(load_preset("demo"), DEMO, known)
    assert "The teacher reads 100 tokens a call" in words_of(found)
    assert calls_of(found, "generator") == 3 * 1_200
    second = next(line for line in found.lines if (line.iteration, line.role) == (2, "referee"))
    assert (second.calls, second.saved) == (2_835, 315)  # 1.5 calls for each of 2,100, a tenth of them stored
    assert f"{100 * OFFLINE_ACCEPTED_SHARE:.0f} % of the candidates" not in words_of(found)


def test_identical_answers_are_said_to_need_one_call():
    same = "Identical answers need one call: where the student says what the teacher says, both orders are the same request."
    assert f"{same} That is none: assumed." in words_of(forecast(paper(), ALPACA))
    assert f"{same} That is 71 to 91 % of what is judged: measured in the demo." in words_of(forecast(load_preset("demo"), DEMO))
    seen = forecast(paper(), ALPACA, Known(same={1: 0.25, 2: 0.5}))
    assert f"{same} That is 50 % of what is judged: seen in iteration 2." in words_of(seen)
    assert calls_of(seen, "referee") == 1.5 * (52_002 + 58_002 + 64_002)


# The rest of a run


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
