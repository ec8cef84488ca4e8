"""One instruction: both responses, both judgements, its lineage and its trajectory."""

import pytest

from experiments.models import Instruction, Judgement, Response
from tests import make
from tests.web.pages import body, links, queries, text_of


@pytest.fixture
def run(person):
    return make.make_finished_run(person("member"), seeds=12)


def test_responses_judgements_and_scores_are_of_the_chosen_iteration(client_of, run):
    item = run.instructions.get(position=0)
    Response.objects.filter(instruction=item, iteration__number=1).update(text="first try")
    Response.objects.filter(instruction=item, role="student", iteration__number=2).update(text="second try")
    Judgement.objects.filter(instruction=item, iteration__number=2).update(evidence="seen in two")
    client = client_of("viewer")
    last = client.get(f"/instructions/{item.pk}/")
    assert last.context["student"].text == "second try"
    assert body(last).count("seen in two") == 2
    first = client.get(f"/instructions/{item.pk}/?iteration=1")
    assert first.context["student"].text == "first try"
    assert first.context["verdict"].iteration.number == 1
    assert "teacher says" in body(first)


def test_an_iteration_it_was_not_judged_in_gives_the_last(client_of, run):
    item = run.instructions.get(position=0)
    for asked in ("99", "x", "-1"):
        assert client_of("viewer").get(f"/instructions/{item.pk}/?iteration={asked}").context["number"] == 2


def test_the_lineage_leads_to_the_seed_and_to_the_children(client_of, run):
    grandchild = Instruction.objects.filter(run=run, iteration__number=2, parent__iteration__number=1).first()
    if grandchild is None:
        child = run.instructions.filter(iteration__number=1).first()
        grandchild = run.instructions.filter(iteration__number=2).first()
        Instruction.objects.filter(pk=grandchild.pk).update(parent=child)
        grandchild.refresh_from_db()
    parent = grandchild.parent
    response = client_of("viewer").get(f"/instructions/{grandchild.pk}/")
    chain = response.context["ancestors"]
    assert [item.pk for item in chain] == [parent.parent_id, parent.pk]
    assert chain[0].origin == "seed"
    assert grandchild in client_of("viewer").get(f"/instructions/{parent.pk}/").context["children"]


def test_the_trajectory_has_each_iteration_it_was_judged_in(client_of, run):
    item = run.instructions.get(position=0)
    trajectory = client_of("viewer").get(f"/instructions/{item.pk}/").context["trajectory"]
    assert [(verdict.iteration.number, said.iteration.number) for verdict, said in trajectory] == [(1, 1), (2, 2)]


def test_a_quarantined_one_shows_why_and_no_number(client_of, run):
    item = run.instructions.get(position=10)
    page = text_of(body(client_of("viewer").get(f"/instructions/{item.pk}/?iteration=1")))
    assert "quarantined" in page
    assert "could not be read after 3 asks" in page
    assert "Discrepancy d" not in page


def test_model_text_is_escaped_wherever_it_is_shown(client_of, run):
    hostile = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>"
    item = run.instructions.get(position=0)
    Instruction.objects.filter(pk=item.pk).update(text=hostile, input=hostile, kind="<b>k</b>")
    Response.objects.filter(instruction=item).update(text=hostile)
    Judgement.objects.filter(instruction=item).update(evidence=hostile)
    page = body(client_of("viewer").get(f"/instructions/{item.pk}/"))
    for tag in ("<script>alert", "<img src=x", "</pre><script", "<b>k"):
        assert tag not in page


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "The referee reads both responses twice, in both orders."),
        ({"samples": 3}, "The referee reads both responses twice, in both orders, 3 times each."),
        ({"orders": "teacher_first"}, "The referee reads both responses once, the teacher's first."),
        ({"orders": "student_first", "samples": 2}, "The referee reads both responses 2 times, the student's first."),
        ({"scoring": "pointwise"}, "The referee reads each response alone."),
        ({"scoring": "pointwise", "samples": 2}, "The referee reads each response alone, 2 times each."),
        ({"panel": "offline: 2, other"}, "Each of the 2 referees of the panel reads both responses twice, in both orders."),
    ],
)
def test_the_page_says_how_the_run_is_judged(client_of, run, settings, said):
    run.config["discrimination"] |= settings
    run.config["endpoints"]["other"] = run.config["endpoints"]["offline"]
    run.save()
    page = text_of(body(client_of("viewer").get(f"/instructions/{run.instructions.first().pk}/")))
    assert f"Judgements {said}" in page


def test_a_run_that_cannot_be_read_shows_its_judgements_all_the_same(client_of, run):
    run.config["discrimination"]["scoring"] = "by lot"
    run.save()
    page = text_of(body(client_of("viewer").get(f"/instructions/{run.instructions.first().pk}/")))
    assert "The referee reads" not in page
    assert "teacher first" in page


def test_judgements_of_several_referees_and_samples_say_whose_they_are(client_of, run):
    item = run.instructions.get(position=0)
    rows = Judgement.objects.filter(instruction=item, iteration__number=2)
    assert "sample 1" not in text_of(body(client_of("viewer").get(f"/instructions/{item.pk}/")))
    rows.update(referee="gpt")
    scored = {"instruction": item, "iteration": rows[0].iteration, "order": "teacher_first", "teacher_score": 9, "student_score": 3}
    for referee, sample in (("gpt", 1), ("other", 0)):
        Judgement.objects.create(referee=referee, sample=sample, **scored)
    page = text_of(body(client_of("viewer").get(f"/instructions/{item.pk}/")))
    for said in ("teacher first gpt sample 1", "student first gpt sample 1", "teacher first gpt sample 2", "teacher first other sample 1"):
        assert said in page, said


def test_of_a_response_read_alone_the_other_score_is_not_shown(client_of, run):
    item = run.instructions.get(position=0)
    Judgement.objects.filter(instruction=item, iteration__number=2, order="student_first").delete()
    Judgement.objects.filter(instruction=item, iteration__number=2).update(order="teacher_alone", student_score=None)
    page = body(client_of("viewer").get(f"/instructions/{item.pk}/"))
    scores = page.split('class="scores"')[1].split("</p>")[0]
    assert "tone-teacher" in scores
    assert "tone-student" not in scores


def test_previous_and_next_follow_the_positions(client_of, run):
    first, second = run.instructions.order_by("position")[:2]
    context = client_of("viewer").get(f"/instructions/{first.pk}/").context
    assert context["previous"] is None
    assert context["next"] == second


def test_previous_and_next_stay_in_the_chosen_iteration(client_of, run):
    before, item, after = run.instructions.order_by("position")[:3]
    client = client_of("viewer")
    chosen = {text: url for url, text in links(body(client.get(f"/instructions/{item.pk}/?iteration=1")))}
    assert chosen["Previous"] == f"/instructions/{before.pk}/?iteration=1"
    assert chosen["Next"] == f"/instructions/{after.pk}/?iteration=1"
    bare = {text: url for url, text in links(body(client.get(f"/instructions/{item.pk}/")))}
    assert bare["Next"] == f"/instructions/{after.pk}/"
    hostile = body(client.get(f"/instructions/{item.pk}/", {"iteration": '"><script>&x=1'}))
    assert "<script>&" not in hostile


def test_an_instruction_nobody_answered_yet_has_a_page(client_of, person):
    run = make.make_run(person("member"), name="bare")
    page = text_of(body(client_of("viewer").get(f"/instructions/{run.instructions.first().pk}/")))
    assert "None yet." in page


def test_it_takes_few_queries(client_of, run):
    item = run.instructions.filter(iteration__number=1).first()
    assert queries(client_of("viewer"), f"/instructions/{item.pk}/") <= 14


def test_a_stranger_and_an_unknown_number(client, client_of, run):
    assert client.get(f"/instructions/{run.instructions.first().pk}/").status_code == 302
    assert client_of("viewer").get("/instructions/999999/").status_code == 404


def test_nearest_neighbours_are_looked_for_when_asked_and_come_in_order(client_of, run):
    texts = {
        0: "name the five largest lakes of Africa",
        1: "name the five largest rivers of Africa",
        2: "name a lake",
        3: "<b>name the lakes</b>",
    }
    for position, text in texts.items():
        run.instructions.filter(position=position).update(text=text)
    item = run.instructions.get(position=0)
    client = client_of("viewer")
    assert "similar" not in client.get(f"/instructions/{item.pk}/").context
    page = client.get(f"/instructions/{item.pk}/?similar=on")
    found = [(row.position, round(score, 3)) for row, score in page.context["similar"]]
    assert found == [(1, round(2 * 6 / 14, 3)), (3, round(2 * 3 / 12, 3)), (2, round(2 * 1 / 10, 3))]
    assert "<b>name the lakes" not in body(page)
    assert f"{page.context['compared']} others" in text_of(body(page))


def test_a_response_that_was_cut_says_so(client_of, run):
    item = run.instructions.get(position=0)
    client = client_of("viewer")
    assert "cut off" not in body(client.get(f"/instructions/{item.pk}/"))
    Response.objects.filter(instruction=item, role="student").update(cut=True, tokens=1024)
    assert "cut off after 1024 tokens" in text_of(body(client.get(f"/instructions/{item.pk}/")))
