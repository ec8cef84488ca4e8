"""The referee page: how often it flips, what another tau would make, and rulings over what it could not score."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.length_bias import length_bias, read_length_bias
from experiments.models import Response, Verdict
from experiments.models.verdict import EASY, HARD
from experiments.querysets_referee import LENGTH_STATES, LengthGroup
from experiments.querysets_reviews import REVIEW_STATES
from experiments.referee_board import read_referee
from experiments.services.quarantine import leave_out, score_by_hand
from experiments.services.reviews import review
from tests import make
from tests.web.pages import body, figure, links, queries, text_of, total
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
    told = read_referee(run, run.iterations.get(number=1)).first_preferred
    assert (told.value, told.low, told.high) == (2.0, 2.0, 2.0)
    assert told.n == rows.filter(order="teacher_first").count()


def test_a_fair_referee_prefers_no_place_though_some_second_orders_failed(run):
    rows = run.iterations.get(number=1).judgements.filter(failure="")
    for n, judgement in enumerate(rows.filter(order="teacher_first").order_by("instruction")):
        pair = rows.filter(instruction=judgement.instruction)
        pair.update(teacher_score=9, student_score=1 + n % 8)
        if n % 3 == 0:
            pair.filter(order="student_first").update(teacher_score=None, student_score=None, failure="There is no score.")
    told = read_referee(run, run.iterations.get(number=1)).first_preferred
    assert (told.value, told.low, told.high) == (0, 0, 0)
    assert told.n < rows.filter(order="teacher_first").count()


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
    for nonsense in ("-3", "x", "", "9" * 30):
        client.post(f"/runs/{run.pk}/referee/leave-out", {"iteration": 1, "verdict": nonsense})
    assert waiting(run).count() == before - 1
    client.post(f"/runs/{run.pk}/referee/leave-out", {"iteration": 1})
    assert waiting(run).count() == 0


def test_what_waits_is_judged_once_more_from_the_page(client_of, run):
    client = client_of("member")
    address = f"/runs/{run.pk}/referee?iteration=1"
    assert f"Judge {waiting(run).count()} once more" in client.get(address).content.decode()
    page = client.post(f"/runs/{run.pk}/referee/again", {"iteration": 1}, follow=True).content.decode()
    assert "They are judged once more." in page
    assert "once more</button>" not in page
    again = client.post(f"/runs/{run.pk}/referee/again", {"iteration": 1}, follow=True).content.decode()
    assert "the run is at work" in again
    assert client_of("viewer").post(f"/runs/{run.pk}/referee/again", {"iteration": 1}).status_code == 403


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


# Every number opens


@pytest.fixture
def varied_run(person):
    """Judged once, with some of everything that the page counts: flips, hand-scored and left-out verdicts, lengths, reviews."""
    run = make.make_run_until(person("member"), 1, Step.CANDIDATES, seeds=90)
    member, rows = person("member"), list(Verdict.objects.filter(iteration__run=run).order_by("pk"))
    quarantined = [verdict for verdict in rows if verdict.label == Label.QUARANTINED]
    score_by_hand(quarantined[0], teacher=9, student=4.5, by=member)
    leave_out(quarantined[1].iteration, by=member, verdicts=[quarantined[1].pk])
    Verdict.objects.filter(pk=quarantined[2].pk).update(reason="Another reason, 100 % of it & more.")
    scored = [verdict for verdict in rows if verdict.label != Label.QUARANTINED]
    for place, verdict in enumerate(scored):
        Response.objects.filter(instruction=verdict.instruction, role="student").update(text="x" * (place % 5))
        Response.objects.filter(instruction=verdict.instruction, role="teacher").update(text="\N{LION FACE}" * 2)
    for verdict, teacher, student in zip(scored, (8, 5, 7, 7, 10), (8, 9, 7, 6.5, 1), strict=False):
        label = HARD if teacher - student >= 1 else EASY
        scores = {"teacher_score": teacher, "student_score": student, "discrepancy": teacher - student, "label": label}
        Verdict.objects.filter(pk=verdict.pk).update(**scores)
    people = [person("admin"), member]
    for place, verdict in enumerate(Verdict.objects.filter(pk__in=[verdict.pk for verdict in scored[:12]]).order_by("pk")):
        other = EASY if verdict.label == HARD else HARD
        for by, label in zip(people, ((verdict.label, other), (other, other), (verdict.label, verdict.label))[place % 3], strict=True):
            review(verdict, label=label, by=by)
    return run


def counted(page):
    """(address, number) of every link to instructions whose text is a number."""
    return [(url, int(text.replace(",", ""))) for url, text in links(page) if "/instructions?" in url and re.fullmatch(r"[\d,]+", text)]


def test_every_count_opens_just_the_rows_it_counts(client_of, varied_run):
    client = client_of("viewer")
    found = counted(page_of(client, varied_run, "?tau=2.3"))
    assert len(found) > 30
    states = {*LENGTH_STATES, *REVIEW_STATES, "by_referee", "waiting", "scored"}
    for part in (*states, "gap_from", "reason=", "d_from=2.3", "d_to=2.3", "inconsistent=on", "verdict=hard", "verdict=easy"):
        assert any(part in url for url, _ in found), part
    for url, n in found:
        assert total(body(client.get(url))) == n, url


def test_the_counts_of_the_board_are_all_among_those_that_open(client_of, varied_run):
    page = page_of(client_of("viewer"), varied_run)
    board = read_referee(varied_run, varied_run.iterations.get(number=1))
    opened = {n for _, n in counted(page)}
    assert {board.scored, board.flips, board.quarantined, board.waiting, board.overruled, board.agreement.reviewed} <= opened
    assert {one.share.n for one in board.bins if one.share} <= opened
    assert {n for _, cells in board.agreement.rows for _, n in cells if n} <= opened


@pytest.mark.parametrize("tau", [1.0, 1.3, -2.25])
def test_every_bar_opens_just_the_rows_it_counts(client_of, varied_run, tau):
    varied_run.thresholds.create(iteration=1, tau=tau)
    client, scored = client_of("viewer"), Verdict.objects.filter(iteration__run=varied_run, discrepancy__isnull=False)
    page = page_of(client, varied_run)
    easy, hard = figure(page, "d-chart")["data"]
    assert sum(hard["y"]) == scored.filter(discrepancy__gte=tau).count()
    assert sum(easy["y"]) == scored.filter(discrepancy__lt=tau).count()
    teacher, student = figure(page, "scores-chart")["data"]
    assert sum(teacher["y"]) == sum(student["y"]) == scored.count()
    for trace in (easy, hard, teacher, student):
        for url, n in zip(trace["customdata"], trace["y"], strict=True):
            assert total(body(client.get(url))) == n, url
    assert figure(page, "d-chart")["layout"]["shapes"][0]["x0"] == tau


def test_the_page_takes_as_many_queries_however_many_verdicts_there_are(client_of, varied_run, person):
    client = client_of("viewer")
    small = make.make_run_until(person("member"), 1, Step.CANDIDATES, name="small-run-2", seeds=12)
    assert queries(client, f"/runs/{small.pk}/referee") == queries(client, f"/runs/{varied_run.pk}/referee") <= 32


def test_an_iteration_that_is_quarantined_throughout_has_a_page(client_of, run):
    nothing = {"discrepancy": None, "teacher_score": None, "student_score": None, "inconsistent": False}
    Verdict.objects.filter(iteration__run=run).update(label=Label.QUARANTINED, reason="for the test", **nothing)
    page = text_of(page_of(client_of("viewer"), run))
    assert "Too few to tell" in page
    assert "nothing scored" in page


# Length bias


def lengths_of(run, *, teacher, student):
    Response.objects.filter(instruction__run=run, role="teacher").update(text="t" * teacher)
    Response.objects.filter(instruction__run=run, role="student").update(text="s" * student)


def test_length_bias_counts_characters_and_leaves_hand_scores_out(varied_run):
    iteration = varied_run.iterations.get(number=1)
    bias, rows = read_length_bias(iteration), Verdict.objects.filter(iteration=iteration, by_hand=False).exclude(label=Label.QUARANTINED)
    longer = shorter = alike = same = 0
    for verdict in rows:
        texts = {said.role: said.text for said in Response.objects.filter(instruction=verdict.instruction)}
        product = (len(texts["teacher"]) - len(texts["student"])) * verdict.discrepancy
        same += len(texts["teacher"]) == len(texts["student"])
        longer += product > 0
        shorter += product < 0
        alike += len(texts["teacher"]) != len(texts["student"]) and verdict.discrepancy == 0
    assert (bias.longer_won, bias.shorter_won, bias.scored_alike, bias.same_length) == (longer, shorter, alike, same)
    assert bias.scored == rows.count()
    assert bias.longer_share == wilson(longer, longer + shorter)


def test_a_longer_teacher_who_wins_is_told_apart_from_length(client_of, varied_run):
    lengths_of(varied_run, teacher=30, student=10)
    bias = read_length_bias(varied_run.iterations.get(number=1))
    won_by_student = Verdict.objects.filter(iteration__run=varied_run, discrepancy__lt=0).count()
    assert (bias.shorter_won, bias.same_length) == (won_by_student, 0)
    assert (bias.controlled.low < 0.1, bias.controlled.high > 0.95) == (True, True)  # no two were equally long: nothing can be told
    lengths_of(varied_run, teacher=30, student=30)
    bias = read_length_bias(varied_run.iterations.get(number=1))
    assert (bias.won, bias.longer_share) == (0, None)
    assert bias.controlled == bias.teacher_share
    page = text_of(page_of(client_of("viewer"), varied_run))
    assert "Won by the longer response too few to tell" in page
    assert "lengths in characters" in page


groups = st.lists(st.builds(LengthGroup, st.sampled_from([-1.0, 0.0, 1.0]), st.integers(-5000, 5000), st.integers(1, 500)), max_size=40)


@given(groups)
def test_won_scored_alike_and_equally_long_are_all_there_is(drawn):
    bias = length_bias(drawn)
    assert bias.scored == sum(group.n for group in drawn)
    assert (bias.controlled is None) == (bias.teacher_share is None) == (bias.scored < 10)


# Agreement


def test_agreement_is_counted_from_what_most_reviewers_say(client_of, varied_run):
    agreement = read_referee(varied_run, varied_run.iterations.get(number=1)).agreement
    assert (agreement.reviewed, agreement.split, agreement.ruled, agreement.agreed) == (12, 4, 8, 4)
    assert agreement.share == wilson(4, 8)
    assert agreement.kappa is not None
    page = text_of(page_of(client_of("viewer"), varied_run))
    assert "4 of 8, 50.0 %" in page
    assert "Cohen's kappa" in page


def test_without_reviews_a_sentence_leads_to_the_hard_instructions(client_of, run):
    client = client_of("viewer")
    page = page_of(client, run)
    assert "Nobody has reviewed a verdict of this iteration yet" in page
    address = next(url for url, text in links(page) if text == "hard instructions")
    assert total(body(client.get(address))) == Verdict.objects.filter(iteration__run=run, label=HARD).count()


def test_reviews_that_came_too_late_are_counted_and_said_to_change_nothing(client_of, person):
    run = make.make_finished_run(person("member"))
    review(Verdict.objects.filter(iteration__run=run, iteration__number=1, label=HARD).earliest("pk"), label=EASY, by=person("member"))
    page = page_of(client_of("viewer"), run, "?iteration=1")
    assert "no longer change what was made" in page
    assert "Overruled by people" not in page
