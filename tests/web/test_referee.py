"""The referee page: how often it flips, what another tau would make, and rulings over what it could not score."""

import pytest

from experiments.models import Verdict
from experiments.referee_board import read_referee
from tests import make
from trainer.plan import Step
from trainer.records import Label
from trainer.statistics import wilson

pytestmark = pytest.mark.django_db

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def run(person):
    """Judged once; its new instructions are still to be made."""
    return make.make_run_until(person("member"), 1, Step.CANDIDATES)


def page_of(client, run, query=""):
    return client.get(f"/runs/{run.pk}/referee{query}").content.decode()


def waiting(run):
    return Verdict.objects.filter(iteration__run=run, label=Label.QUARANTINED, left_out=False)


def test_flips_and_splits_are_those_of_the_rows(run):
    board = read_referee(run, run.iterations.get(number=1))
    verdicts = list(Verdict.objects.filter(iteration__run=run).exclude(label=Label.QUARANTINED))
    assert (board.flips, board.flip_share.n) == (sum(v.inconsistent for v in verdicts), len(verdicts))
    assert sum(one.share.n for one in board.bins if one.share) == len(verdicts)
    for tau in (-9.0, 0.5, 1.0, 3.3, 9.0):
        split = board.split(tau)
        assert (split.hard, split.easy) == (sum(v.discrepancy >= tau for v in verdicts), sum(v.discrepancy < tau for v in verdicts))
    assert board.split(board.tau).hard == sum(v.label == Label.HARD for v in verdicts)


def test_what_is_read_first_is_preferred_by_as_many_points_as_the_scores_say(run):
    rows = run.iterations.get(number=1).judgements.filter(failure="")
    rows.filter(order="teacher_first").update(teacher_score=8, student_score=5)
    rows.filter(order="student_first").update(teacher_score=6, student_score=7)
    assert read_referee(run, run.iterations.get(number=1)).first_preferred == 2.0


def test_the_page_splits_by_the_tau_of_its_address_and_refuses_a_bad_one(client_of, run):
    client = client_of("viewer")
    scored = Verdict.objects.filter(iteration__run=run, discrepancy__isnull=False).count()
    assert f'id="split-hard">{scored}<' in page_of(client, run, "?tau=-9")
    assert f'id="split-easy">{scored}<' in page_of(client, run, "?tau=9")
    for bad in ("99", "much", "nan"):
        assert "field-error" in page_of(client, run, f"?tau={bad}"), bad


def test_a_member_sets_the_tau_of_the_next_iteration(client_of, run):
    page = client_of("member").post(f"/runs/{run.pk}/referee/tau", {"tau": "2.5"}, follow=True).content.decode()
    assert "Tau is 2.5 from iteration 2 on." in page
    assert "by member" in page
    assert run.thresholds.get().tau == 2.5


@pytest.mark.parametrize("tau", ["", "99", "nan", "much"])
def test_a_bad_tau_sets_nothing(client_of, run, tau):
    client_of("member").post(f"/runs/{run.pk}/referee/tau", {"tau": tau})
    assert not run.thresholds.exists()


def test_a_quarantined_instruction_is_scored_by_hand(client_of, run):
    verdict = waiting(run).earliest("pk")
    page = client_of("member").post(f"/runs/{run.pk}/referee/score", {"verdict": verdict.pk, "teacher": "9", "student": "4"}, follow=True)
    assert "Scored by hand: d is 5, hard." in page.content.decode()
    verdict.refresh_from_db()
    assert (verdict.label, verdict.by_hand, verdict.ruled_by.username) == (Label.HARD, True, "member")


@pytest.mark.parametrize(
    "scores", [{}, {"teacher": "0", "student": "5"}, {"teacher": "5", "student": "nan"}, {"teacher": "x", "student": "11"}]
)
def test_bad_scores_change_nothing_and_say_what_to_give(client_of, run, scores):
    verdict = waiting(run).earliest("pk")
    page = client_of("member").post(f"/runs/{run.pk}/referee/score", {"verdict": verdict.pk, **scores}, follow=True).content.decode()
    assert "Give both scores, from 1 to 10." in page
    assert waiting(run).filter(pk=verdict.pk).exists()


def test_one_or_all_are_left_out(client_of, run):
    Verdict.objects.filter(iteration__run=run, label=Label.EASY).update(
        label=Label.QUARANTINED, reason="for the test", discrepancy=None, teacher_score=None, student_score=None
    )
    client, before = client_of("member"), waiting(run).count()
    assert before > 2
    client.post(f"/runs/{run.pk}/referee/leave-out", {"iteration": 1, "verdict": waiting(run).earliest("pk").pk})
    assert waiting(run).count() == before - 1
    client.post(f"/runs/{run.pk}/referee/leave-out", {"iteration": 1})
    assert waiting(run).count() == 0


def test_where_new_instructions_were_made_nothing_is_ruled_any_more(client_of, person):
    run = make.make_run_until(person("member"), 2, Step.STUDENT_RESPONSES)
    client, verdict = client_of("member"), waiting(run).earliest("pk")
    assert "they stay as they are" in page_of(client, run)
    assert "referee/score" not in page_of(client, run)
    page = client.post(
        f"/runs/{run.pk}/referee/score", {"verdict": verdict.pk, "teacher": "9", "student": "4"}, follow=True
    ).content.decode()
    assert "made by the verdicts of iteration 1" in page


@pytest.mark.parametrize("path", ["tau", "leave-out"])
def test_a_viewer_rules_nothing(client_of, run, path):
    client = client_of("viewer")
    assert client.post(f"/runs/{run.pk}/referee/{path}", {"tau": "2", "iteration": "1"}).status_code == 403
    assert (
        client.post(
            f"/runs/{run.pk}/referee/score", {"verdict": waiting(run).earliest("pk").pk, "teacher": "9", "student": "1"}
        ).status_code
        == 403
    )
    assert f"referee/{path}" not in page_of(client, run)


@pytest.mark.parametrize("path", ["tau", "leave-out", "score"])
def test_a_reload_of_what_a_form_was_answered_with_leads_to_the_page(client_of, run, path):
    answer = client_of("member").get(f"/runs/{run.pk}/referee/{path}?iteration=1")
    assert (answer.status_code, answer.url) == (302, f"/runs/{run.pk}/referee?iteration=1")


def test_hostile_text_is_shown_and_not_run(client_of, run):
    verdict = waiting(run).earliest("pk")
    verdict.instruction.responses.update(text=HOSTILE)
    type(verdict.instruction).objects.filter(pk=verdict.instruction_id).update(text=HOSTILE)
    Verdict.objects.filter(pk=verdict.pk).update(reason=HOSTILE)
    page = page_of(client_of("member"), run)
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;alert(1)") >= 4


def test_a_run_without_verdicts_or_with_one_order_says_so(client_of, person, run):
    client = client_of("viewer")
    assert "Nothing was judged yet." in page_of(client, make.make_run(person("member"), name="new-run-2"))
    run.config["discrimination"]["orders"] = "teacher_first"
    run.save()
    assert "the responses in one order" in page_of(client, run)


def test_wilsons_interval_is_the_textbooks():
    found = wilson(10, 100)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0552, 0.1744)
    assert wilson(0, 0) is None
    assert wilson(0, 10).low == 0.0
    assert wilson(10, 10).high == 1.0


def test_quarantine_that_stops_a_stage_leads_here(client_of, run):
    assert f"/runs/{run.pk}/referee" in client_of("viewer").get(f"/runs/{run.pk}/").content.decode()
