import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeReferee
from trainer.discrimination import Case, judge_all, weigh
from trainer.records import Instruction, Judgement, Label, Order, Response, Verdict

scores = st.floats(1, 10)


def judgement(order: Order, teacher: float | None, student: float | None, failure: str = "") -> Judgement:
    return Judgement(instruction="a", order=order, teacher_score=teacher, student_score=student, evidence="", failure=failure)


def judge(cases: Sequence[Case], referee: FakeReferee, *, tau: float = 1.0) -> dict[str, tuple[Verdict, Sequence[Judgement]]]:
    kept: dict[str, tuple[Verdict, Sequence[Judgement]]] = {}

    async def keep(verdict: Verdict, judgements: Sequence[Judgement]) -> None:
        kept[verdict.instruction] = (verdict, judgements)

    asyncio.run(judge_all(cases, referee=referee, tau=tau, keep=keep, at_once=4))
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


def test_a_discrepancy_of_exactly_tau_is_hard() -> None:
    both = [judgement(order, 8.0, 7.0) for order in Order]
    assert weigh("a", both, tau=1.0).label is Label.HARD


def test_a_better_student_is_easy() -> None:
    both = [judgement(order, 5.0, 9.0) for order in Order]
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
    assert sorted(referee.asked) == sorted((key, order) for key in "abc" for order in Order)
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
