"""Reviews on an instruction's page: agree with the referee's verdict, overrule it, take that back."""

import pytest

from experiments.models import Instruction, Review, Verdict
from experiments.services.quarantine import score_by_hand
from tests import make
from tests.web.pages import body, text_of
from trainer.plan import Step
from trainer.records import Label

pytestmark = pytest.mark.django_db

HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def run(person):
    """Judged once; its new instructions are still to be made."""
    return make.make_run_until(person("member"), 1, Step.CANDIDATES)


@pytest.fixture
def verdict(run):
    return Verdict.objects.filter(iteration__run=run, label=Label.HARD).earliest("pk")


def address(verdict, rest="/review"):
    return f"/instructions/{verdict.instruction_id}{rest}?iteration={verdict.iteration.number}"


def page_of(client, verdict):
    return body(client.get(address(verdict, "/")))


def rule(client, verdict, label, comment=""):
    return body(client.post(address(verdict), {"label": label, "comment": comment}, follow=True))


def test_a_member_agrees_then_overrules_then_takes_it_back(client_of, verdict):
    client = client_of("member")
    assert "Nobody has reviewed this verdict yet." in page_of(client, verdict)
    assert "You agree with the referee: hard." in rule(client, verdict, "hard", "Clear enough.")
    page = rule(client, verdict, "easy", "On second thoughts.")
    assert "You overrule the referee: easy." in page
    assert "member overrules: easy" in text_of(page)
    assert "Clear enough." not in page
    assert "On second thoughts." in page
    assert Review.objects.get().label == "easy"
    page = body(client.post(address(verdict, "/review/withdraw"), follow=True))
    assert "Your review is withdrawn." in page
    assert not Review.objects.exists()


def test_reviews_of_several_stand_beside_each_other(client_of, verdict):
    rule(client_of("member"), verdict, "hard", "As it says.")
    rule(client_of("admin"), verdict, "easy")
    page = text_of(page_of(client_of("viewer"), verdict))
    assert "member agrees: hard" in page
    assert "As it says." in page
    assert "admin overrules: easy" in page


def test_the_review_of_somebody_who_is_gone_stays(client_of, person, verdict):
    rule(client_of("admin"), verdict, "easy")
    person("admin").delete()
    assert Review.objects.get().reviewer is None
    assert "somebody who is gone overrules: easy" in text_of(page_of(client_of("viewer"), verdict))


def test_a_viewer_reads_reviews_and_writes_none(client_of, verdict):
    client = client_of("viewer")
    for rest in ("/review", "/review/withdraw"):
        assert client.post(address(verdict, rest), {"label": "easy"}).status_code == 403
    assert "Agree: hard" not in page_of(client, verdict)
    assert not Review.objects.exists()


def test_a_stranger_is_sent_to_sign_in(client, verdict):
    for rest in ("/review", "/review/withdraw"):
        answer = client.post(address(verdict, rest), {"label": "easy"})
        assert answer.status_code == 302
        assert answer.url.startswith("/sign-in/")
    assert not Review.objects.exists()


def test_a_quarantined_one_is_scored_by_hand_and_not_reviewed(client_of, run, person):
    client, verdict = client_of("member"), Verdict.objects.filter(iteration__run=run, label=Label.QUARANTINED).earliest("pk")
    page = page_of(client, verdict)
    assert f"/runs/{run.pk}/referee?iteration=1#quarantine" in page
    assert "/review" not in page
    assert "score it by hand" in rule(client, verdict, "hard")
    score_by_hand(verdict, teacher=9, student=3, by=person("member"))
    assert "A person scored this instruction" in page_of(client, verdict)
    assert "A person scored this instruction" in rule(client, verdict, "easy")
    assert not Review.objects.exists()


@pytest.mark.parametrize("label", ["", "quarantined", "lovely"])
def test_another_label_is_refused(client_of, verdict, label):
    assert "A review says hard or easy" in rule(client_of("member"), verdict, label)
    assert not Review.objects.exists()


def test_a_comment_may_be_long_but_not_endless(client_of, verdict):
    client = client_of("member")
    rule(client, verdict, "hard", "line\r\n" * 400)  # as a browser sends 2,000 characters
    assert len(Review.objects.get().comment) == 1999
    assert "at most 2,000 characters" in rule(client, verdict, "easy", "x" * 2001)
    assert Review.objects.get().label == "hard"


def test_a_comment_is_shown_and_not_run(client_of, verdict):
    page = rule(client_of("member"), verdict, "easy", HOSTILE + "\0")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_only_what_was_judged_in_that_iteration_can_be_reviewed(client_of, run, verdict):
    client = client_of("member")
    for query in ("", "?iteration=9", "?iteration=x", "?iteration=" + "9" * 30):
        assert client.post(f"/instructions/{verdict.instruction_id}/review{query}", {"label": "easy"}).status_code == 404, query
    assert client.post("/instructions/999999/review?iteration=1", {"label": "easy"}).status_code == 404


@pytest.mark.parametrize("rest", ["/review", "/review/withdraw"])
def test_a_reload_of_what_the_form_was_answered_with_leads_to_the_page(client_of, verdict, rest):
    answer = client_of("member").get(address(verdict, rest))
    assert (answer.status_code, answer.url) == (302, address(verdict, "/"))


def test_once_new_ones_were_made_the_page_says_that_a_review_changes_them_no_more(client_of, person):
    run = make.make_finished_run(person("member"))
    verdict = Verdict.objects.filter(iteration__run=run, iteration__number=1, label=Label.HARD).earliest("pk")
    client = client_of("member")
    assert "no longer changes what was made from it" in page_of(client, verdict)
    assert "You overrule the referee: easy." in rule(client, verdict, "easy")
    assert "Overruled by people" not in page_of(client, verdict)


def test_an_overruled_verdict_is_marked_in_the_list_and_counted_in_the_flow(client_of, run, verdict):
    client = client_of("member")
    rule(client, verdict, "easy")
    assert "overruled: easy" in body(client.get(f"/runs/{run.pk}/instructions?iteration=1&state=overruled"))
    flow = text_of(body(client.get(f"/runs/{run.pk}/flow")))
    assert "of hard and easy, overruled by a person 1" in flow
    assert "do not add up" not in flow


def test_an_instruction_that_is_not_judged_has_no_review(client_of, person):
    bare = make.make_run(person("member"), name="bare-run-3")
    page = body(client_of("member").get(f"/instructions/{Instruction.objects.filter(run=bare).first().pk}/"))
    assert "review-title" not in page
