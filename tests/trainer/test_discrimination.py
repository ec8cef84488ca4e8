import asyncio
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeReferee
from trainer.config import RunConfig, config_from_dict, referees_of
from trainer.discrimination import ALONE, ORDERS, Case, asks_of, judge_all, weigh
from trainer.errors import ConfigError
from trainer.records import Instruction, Judgement, Label, Order, Response, Verdict

scores = st.floats(1, 10)


BOTH = ORDERS["both"]
LEAST = config_from_dict({})


def judgement(
    order: Order, teacher: float | None, student: float | None, failure: str = "", *, referee: str = "", sample: int = 0
) -> Judgement:
    return Judgement(
        instruction="a",
        order=order,
        teacher_score=teacher,
        student_score=student,
        evidence="",
        failure=failure,
        referee=referee,
        sample=sample,
    )


def judge(
    cases: Sequence[Case], referee: FakeReferee, *, tau: float = 1.0, config: RunConfig = LEAST
) -> dict[str, tuple[Verdict, Sequence[Judgement]]]:
    kept: dict[str, tuple[Verdict, Sequence[Judgement]]] = {}

    async def keep(verdict: Verdict, judgements: Sequence[Judgement]) -> None:
        kept[verdict.instruction] = (verdict, judgements)

    asks, weights = asks_of(config), referees_of(config)
    asyncio.run(judge_all(cases, referee=referee, asks=asks, weights=weights, tau=tau, keep=keep, at_once=4))
    return kept


def case(key: str, *, student: str = "x", failure: str = "") -> Case:
    return Case(
        Instruction(key=key, text=key), Response(instruction=key, text="t"), Response(instruction=key, text=student, failure=failure)
    )


@given(scores, scores, scores, scores, st.floats(-9, 9))
def test_swapping_the_orders_changes_no_verdict(t1: float, s1: float, t2: float, s2: float, tau: float) -> None:
    one, other = judgement(Order.TEACHER_FIRST, t1, s1), judgement(Order.STUDENT_FIRST, t2, s2)
    assert weigh("a", [one, other], tau=tau).label == weigh("a", [other, one], tau=tau).label


@given(scores, scores, scores, scores, st.floats(-9, 9))
def test_an_instruction_is_hard_exactly_when_the_mean_discrepancy_reaches_tau(
    t1: float, s1: float, t2: float, s2: float, tau: float
) -> None:
    verdict = weigh("a", [judgement(Order.TEACHER_FIRST, t1, s1), judgement(Order.STUDENT_FIRST, t2, s2)], tau=tau)
    assert verdict.discrepancy is not None
    assert verdict.discrepancy == (t1 + t2) / 2 - (s1 + s2) / 2
    assert (verdict.label is Label.HARD) == (verdict.discrepancy >= tau)


@given(st.lists(st.tuples(scores, scores), min_size=1, max_size=6), st.randoms(use_true_random=False), st.floats(-9, 9))
def test_the_order_in_which_judgements_come_changes_no_verdict(pairs: list[tuple[float, float]], random: Random, tau: float) -> None:
    told = [judgement(BOTH[n % 2], t, s, referee="ab"[n % 3 % 2], sample=n) for n, (t, s) in enumerate(pairs)]
    shuffled = random.sample(told, len(told))
    weights = {"a": 2.0, "b": 0.1}
    assert weigh("a", told, tau=tau, weights=weights) == weigh("a", shuffled, tau=tau, weights=weights)


def test_a_panel_is_weighed_by_its_weights() -> None:
    told = [judgement(order, 9.0, 3.0, referee="strict") for order in BOTH] + [judgement(order, 6.0, 6.0, referee="mild") for order in BOTH]
    even, mild = weigh("a", told, tau=1.0), weigh("a", told, tau=1.0, weights={"strict": 1.0, "mild": 9.0})
    assert (even.teacher_score, even.student_score, even.label) == (7.5, 4.5, Label.HARD)
    assert mild.discrepancy is not None
    assert round(mild.discrepancy, 9) == 0.6
    assert mild.label is Label.EASY


def test_a_referee_with_more_judgements_has_no_more_weight() -> None:
    told = [judgement(Order.TEACHER_FIRST, 9.0, 1.0, referee="a", sample=n) for n in range(5)]
    assert weigh("a", [*told, judgement(Order.TEACHER_FIRST, 1.0, 9.0, referee="b")], tau=1.0).discrepancy == 0.0


def test_responses_read_alone_are_weighed_like_those_read_together() -> None:
    alone = [judgement(Order.TEACHER_ALONE, 8.0, None), judgement(Order.STUDENT_ALONE, None, 6.5)]
    verdict = weigh("a", alone, tau=1.0)
    assert (verdict.discrepancy, verdict.label, verdict.inconsistent) == (1.5, Label.HARD, False)


def test_one_unread_response_of_a_pointwise_pair_quarantines() -> None:
    alone = [judgement(Order.TEACHER_ALONE, 8.0, None), judgement(Order.STUDENT_ALONE, None, None, "There is no score.")]
    assert weigh("a", alone, tau=1.0).label is Label.QUARANTINED


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [(order, 0) for order in BOTH]),
        ({"orders": "student_first"}, [(Order.STUDENT_FIRST, 0)]),
        ({"scoring": "pointwise", "orders": "teacher_first"}, [(order, 0) for order in ALONE]),
        ({"samples": 2}, [(order, n) for order in BOTH for n in range(2)]),
    ],
)
def test_the_settings_say_what_a_case_is_asked(settings: dict[str, object], expected: list[tuple[Order, int]]) -> None:
    assert [(ask.order, ask.sample) for ask in asks_of(config_from_dict({"discrimination": settings}))] == expected


def test_each_referee_of_a_panel_is_asked_for_itself() -> None:
    config = config_from_dict({"endpoints": {"teacher": {}, "other": {}}, "discrimination": {"panel": "teacher: 2, other"}})
    assert referees_of(config) == {"teacher": 2.0, "other": 1.0}
    assert [ask.referee for ask in asks_of(config)] == ["teacher", "teacher", "other", "other"]


@pytest.mark.parametrize(
    ("panel", "said"),
    [
        ("nobody: 1", "There is no endpoint 'nobody'"),
        ("teacher: much", "'much' is no weight"),
        ("teacher: 0", "above 0"),
        ("teacher: nan", "above 0"),
        ("teacher, teacher: 2", "stands twice"),
        (": 2", "names no endpoint"),
    ],
)
def test_a_panel_that_cannot_be_read_is_refused_in_its_field(panel: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config_from_dict({"discrimination": {"panel": panel}})
    assert said in refused.value.fields["discrimination.panel"]


def test_a_discrepancy_of_exactly_tau_is_hard() -> None:
    both = [judgement(order, 8.0, 7.0) for order in BOTH]
    assert weigh("a", both, tau=1.0).label is Label.HARD


def test_a_better_student_is_easy() -> None:
    both = [judgement(order, 5.0, 9.0) for order in BOTH]
    assert weigh("a", both, tau=1.0).label is Label.EASY


def test_one_unreadable_judgement_quarantines_and_its_reason_is_told() -> None:
    both = [judgement(Order.TEACHER_FIRST, 8.0, 2.0), judgement(Order.STUDENT_FIRST, None, None, "There is no score.")]
    verdict = weigh("a", both, tau=1.0)
    assert verdict.label is Label.QUARANTINED
    assert verdict.discrepancy is None
    assert verdict.teacher_score is None
    assert "There is no score." in verdict.reason


def test_orders_on_different_sides_of_tau_are_inconsistent() -> None:
    both = [judgement(Order.TEACHER_FIRST, 9.0, 6.0), judgement(Order.STUDENT_FIRST, 7.0, 8.0)]
    assert weigh("a", both, tau=1.0).inconsistent
    assert not weigh("a", both, tau=5.0).inconsistent


def test_every_case_is_judged_once_in_each_order() -> None:
    referee = FakeReferee()
    kept = judge([case("a"), case("b"), case("c")], referee)
    assert sorted(referee.asked) == sorted((key, order) for key in "abc" for order in BOTH)
    assert {key: len(judgements) for key, (_, judgements) in kept.items()} == {"a": 2, "b": 2, "c": 2}


def test_a_position_bias_is_cancelled_by_the_second_order() -> None:
    cases = [case(key) for key in "abcd"]
    table = {"a": (7.0, 6.5), "b": (7.0, 5.0), "c": (3.0, 6.0), "d": (6.0, 5.0)}
    fair = judge(cases, FakeReferee(table))
    biased = judge(cases, FakeReferee(table, bias=2.0))
    assert {key: verdict.label for key, (verdict, _) in biased.items()} == {key: verdict.label for key, (verdict, _) in fair.items()}


def test_a_missing_or_failed_response_is_quarantined_without_a_call() -> None:
    referee = FakeReferee()
    failed = case("a", failure="The prompt is too long.")
    missing = Case(Instruction(key="b", text="b"), None, Response(instruction="b", text="x"))
    kept = judge([failed, missing], referee)
    assert referee.asked == []
    assert "The student gave no response: The prompt is too long." in kept["a"][0].reason
    assert kept["b"][0].reason == "The teacher gave no response."
    assert {verdict.label for verdict, _ in kept.values()} == {Label.QUARANTINED}
