"""The playground's pages: a form that says what is wrong in place, answers as they come, and what stands before a question."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from django.utils import timezone

from experiments.models import Answer, Checkpoint, Errand, Question, Run, Speaker
from experiments.services import playground
from experiments.states import JobState
from tests import make
from tests.web.pages import asks_the_same_of, body, links, text_of
from trainer.plan import Stage, Step

pytestmark = pytest.mark.django_db

TYPED = {"text": "Why is the sky blue?", "temperature": "0.5", "max_new_tokens": "64", "seed": "9"}
HOSTILE = "</pre><script>alert(1)</script>"


@pytest.fixture
def run(person) -> Run:
    return make.make_finished_run(person("member"))


@pytest.fixture
def checkpoint(run: Run) -> Checkpoint:
    return Checkpoint.objects.get(iteration__run=run, iteration__number=1)


def url(checkpoint: Checkpoint, rest: str = "") -> str:
    return f"/checkpoints/{checkpoint.pk}/playground{rest}"


def ask(checkpoint: Checkpoint, **options: Any) -> Question:
    asked: dict[str, Any] = {"text": "upper: abc", "temperature": 0.7, "max_new_tokens": 16, "seed": 1, **options}
    return playground.ask(checkpoint, by=checkpoint.iteration.run.owner, **asked)


def begin(question: Question) -> Errand:
    """As a worker that has taken the question up."""
    errand = question.answers.get(speaker=Speaker.CHECKPOINT).errand
    assert errand
    values = {
        "state": JobState.RUNNING,
        "worker": "host/7/9",
        "lease_expires_at": timezone.now() + timedelta(minutes=5),
        "started_at": timezone.now(),
    }
    Errand.objects.filter(pk=errand.pk).update(**values)
    return errand


def page_of(client: Client, address: str) -> str:
    return body(client.get(address))


# Asking


def test_a_member_asks_and_gets_the_questions_page(client_of, checkpoint):
    earlier = Checkpoint.objects.get(iteration__run=checkpoint.iteration.run, iteration__number=0)
    asked = {**TYPED, "earlier": str(earlier.pk), "base": "on", "teacher": "on"}
    response = client_of("member").post(url(checkpoint, "/ask"), asked)
    question = Question.objects.get()
    assert response.headers["Location"] == url(checkpoint, f"/{question.pk}/")
    assert (question.text, question.temperature, question.max_new_tokens, question.seed) == (TYPED["text"], 0.5, 64, 9)
    said = {row.speaker: row.checkpoint for row in question.answers.all()}
    assert said == {"checkpoint": checkpoint, "earlier": earlier, "base": None, "teacher": None}


def test_a_viewer_reads_and_may_not_ask_or_stop(client_of, checkpoint):
    question = ask(checkpoint)
    client = client_of("viewer")
    assert "upper: abc" in page_of(client, url(checkpoint))
    assert "<textarea" not in page_of(client, url(checkpoint))
    assert client.post(url(checkpoint, "/ask"), TYPED).status_code == 403
    assert client.post(url(checkpoint, f"/{question.pk}/stop")).status_code == 403
    assert Question.objects.count() == 1


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"text": ""}, "Write what to ask."),
        ({"text": "   "}, "Write what to ask."),
        ({"text": "a" * 20_001}, "The text is 20,001 characters long, and the most is 20,000. Shorten it by 1."),
        ({"temperature": "2.5"}, "Must be from 0 to 2."),
        ({"temperature": "hot"}, "Give a number, for instance 0.7."),
        ({"max_new_tokens": "0"}, "Must be from 1 to 2,048."),
        ({"max_new_tokens": "2049"}, "Must be from 1 to 2,048."),
        ({"max_new_tokens": "1.5"}, "Give a whole number of tokens."),
        ({"seed": "-1"}, "Must be from 0 to 2,147,483,647."),
        ({"earlier": "999999"}, "That checkpoint is not to be had, or was deleted meanwhile. Choose one from the list."),
    ],
)
def test_bad_input_is_told_in_place_and_nothing_typed_is_lost(client_of, checkpoint, typed, said):
    sent = {**TYPED, "base": "on", **typed}
    response = client_of("member").post(url(checkpoint, "/ask"), sent)
    page = body(response)
    assert response.status_code == 422
    assert said in text_of(page)
    assert not Question.objects.exists()
    assert sent["text"].strip() in page
    for name in ("temperature", "max_new_tokens", "seed"):
        assert f'value="{sent[name]}"' in page
    assert re.search(r'name="base"[^>]* checked', page)


def test_line_ends_of_a_browser_become_ours(client_of, checkpoint):
    client_of("member").post(url(checkpoint, "/ask"), {**TYPED, "text": "one\r\ntwo"})
    assert Question.objects.get().text == "one\ntwo"


def test_a_deleted_checkpoint_is_asked_nothing_and_says_so(client_of, checkpoint):
    Checkpoint.objects.filter(pk=checkpoint.pk).update(deleted_at=checkpoint.created_at)
    client = client_of("member")
    assert "The files of this checkpoint were deleted" in text_of(page_of(client, url(checkpoint)))
    assert 'name="text"' not in page_of(client, url(checkpoint))
    response = client.post(url(checkpoint, "/ask"), TYPED)
    assert response.status_code == 422
    assert TYPED["text"] in body(response)
    assert not Question.objects.exists()


def test_a_deleted_earlier_checkpoint_is_not_offered(client_of, checkpoint):
    client = client_of("member")
    assert 'name="earlier"' in page_of(client, url(checkpoint))
    Checkpoint.objects.filter(iteration__number=0).update(deleted_at=checkpoint.created_at)
    assert 'name="earlier"' not in page_of(client, url(checkpoint))


def test_asking_again_fills_the_form(client_of, checkpoint):
    question = ask(checkpoint, base=True, seed=77)
    page = page_of(client_of("member"), url(checkpoint, f"?again={question.pk}"))
    assert 'value="77"' in page
    assert re.search(r'name="base"[^>]* checked', page)
    assert "upper: abc</textarea>" in page


@pytest.mark.parametrize("again", ["x", "999", "²", "9" * 40])
def test_asking_again_what_was_never_asked_gives_an_empty_form(client_of, checkpoint, again):
    assert client_of("member").get(url(checkpoint, f"?again={again}")).status_code == 200


def test_a_question_of_another_checkpoint_is_not_found(client_of, checkpoint):
    question = ask(checkpoint)
    assert client_of("viewer").get(f"/checkpoints/{checkpoint.pk + 1}/playground/{question.pk}/").status_code == 404
    assert client_of("viewer").get("/checkpoints/999/playground").status_code == 404


# Waiting


def test_a_question_that_waits_names_what_is_before_it_and_can_be_withdrawn(client_of, run, checkpoint):
    make.make_job(run.iterations.get(number=2), Stage.EVALUATION, Step.BENCHMARKS, state=JobState.RUNNING)
    question = ask(checkpoint)
    client = client_of("member")
    page = page_of(client, url(checkpoint, f"/{question.pk}/"))
    assert f"The gpu worker is busy with run {run.name} : benchmarks of iteration 2" in text_of(page)
    assert "Withdraw" in page
    assert client.post(url(checkpoint, f"/{question.pk}/stop")).status_code == 302
    page = page_of(client, url(checkpoint, f"/{question.pk}/"))
    assert "Stopped before it began." in page
    assert "Withdraw" not in page
    assert "hx-trigger" not in page


def test_questions_before_it_are_counted(client_of, checkpoint):
    ask(checkpoint)
    second = ask(checkpoint)
    assert "1 other question or export of a checkpoint comes first." in text_of(
        page_of(client_of("viewer"), url(checkpoint, f"/{second.pk}/"))
    )


# Answers


def test_the_part_that_polls_grows_and_ends_by_itself(client_of, checkpoint):
    question = ask(checkpoint)
    client, address = client_of("viewer"), url(checkpoint, f"/{question.pk}/")
    part = body(client.get(address, headers={"HX-Request": "true"}))
    assert "<html" not in part
    assert 'hx-trigger="every 2s"' in part
    begin(question)
    answer = question.answers.get()
    playground.keep_growing(answer, "AB", tokens=2, seconds=0.5)
    part = body(client.get(address, headers={"HX-Request": "true"}))
    assert 'hx-trigger="every 500ms"' in part
    assert "2 tokens · 0.5 s · 4.0 tokens/s" in text_of(part)
    playground.keep_said(answer, "ABC", tokens=3, seconds=1.0)
    part = body(client.get(address, headers={"HX-Request": "true"}))
    assert "ABC" in part
    assert "hx-trigger" not in part


def test_only_one_of_an_errand_speaks_and_the_next_waits(client_of, checkpoint):
    question = ask(checkpoint, base=True)
    begin(question)
    part = text_of(page_of(client_of("viewer"), url(checkpoint, f"/{question.pk}/")))
    assert "Checkpoint running" in part
    assert "Base student waiting Speaks when the one before is done." in part


def test_a_crashed_answer_keeps_its_text_and_offers_to_ask_again(client_of, checkpoint):
    question = ask(checkpoint)
    errand = begin(question)
    playground.keep_growing(question.answers.get(), "half a", tokens=4, seconds=1.0)
    Errand.objects.filter(pk=errand.pk).update(state=JobState.CRASHED, reason="Worker host/7/9 was not heard of any more. Ask again.")
    page = page_of(client_of("member"), url(checkpoint, f"/{question.pk}/"))
    assert "half a" in page
    assert "was not heard of any more" in page
    assert (url(checkpoint, f"?again={question.pk}#ask"), "Ask again") in links(page)
    assert "hx-trigger" not in page


def test_the_teachers_response_in_the_run_is_shown_as_that(client_of, run, checkpoint):
    instruction = run.instructions.filter(responses__role="teacher", responses__failure="").first()
    question = ask(checkpoint, text=instruction.text, teacher=True)
    page = page_of(client_of("viewer"), url(checkpoint, f"/{question.pk}/"))
    assert (f"/instructions/{instruction.pk}/", "its response in the run") in links(page)
    assert "nothing was paid" in page


def test_hostile_text_is_escaped_everywhere(client_of, checkpoint):
    question = ask(checkpoint, text=HOSTILE)
    playground.keep_said(question.answers.get(), HOSTILE, tokens=3, seconds=1.0)
    for address in (url(checkpoint), url(checkpoint, f"?again={question.pk}"), url(checkpoint, f"/{question.pk}/")):
        page = page_of(client_of("member"), address)
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert" in page


# The list


def test_questions_are_listed_newest_first_a_page_at_a_time(client_of, checkpoint):
    questions = [ask(checkpoint, text=f"number {n}") for n in range(12)]
    first, second = (page_of(client_of("viewer"), url(checkpoint, f"?page={n}")) for n in (1, 2))
    found = [int(pk) for pk in re.findall(r'id="question-(\d+)"', first + second)]
    assert found == [question.pk for question in reversed(questions)]
    assert 'data-total="12"' in first


def test_the_list_asks_the_same_of_the_database_for_many_questions(client_of, checkpoint):
    ask(checkpoint, base=True)
    asks_the_same_of(client_of("member"), url(checkpoint), after=lambda: [ask(checkpoint, base=True, teacher=True) for _ in range(5)])


def test_reading_writes_nothing(client_of, checkpoint):
    question = ask(checkpoint)
    before = list(Answer.objects.values()), list(Errand.objects.values())
    for address in (url(checkpoint), url(checkpoint, f"/{question.pk}/")):
        client_of("member").get(address)
    assert (list(Answer.objects.values()), list(Errand.objects.values())) == before


@pytest.mark.parametrize("rest", ["/ask", "/stop"])
def test_a_reloaded_post_leads_back_to_its_page(client_of, checkpoint, rest):
    question = ask(checkpoint)
    rest = rest if rest == "/ask" else f"/{question.pk}/stop"
    assert client_of("member").get(url(checkpoint, rest)).status_code == 302


def test_an_empty_answer_is_said_to_be_one_and_leaves_no_stray_dot(client_of, checkpoint):
    question = ask(checkpoint)
    begin(question)
    answer = question.answers.get()
    playground.keep_said(answer, " ", tokens=0, seconds=0.01)
    page = page_of(client_of("viewer"), url(checkpoint, f"/{question.pk}/"))
    assert "(it ended at once: an empty answer)" in text_of(page)
    numbers = page[page.index("answer-numbers") :].split("</p>")[0]
    assert "\N{MIDDLE DOT}" not in numbers
    assert "0.0 s" not in numbers
    Answer.objects.filter(pk=answer.pk).update(text="A", tokens=1, seconds=0.5)
    assert "1 token \N{MIDDLE DOT} 0.5 s" in text_of(page_of(client_of("viewer"), url(checkpoint, f"/{question.pk}/")))


def test_a_worker_that_is_silent_is_told_of(client_of, checkpoint):
    question = ask(checkpoint)
    errand = begin(question)
    Errand.objects.filter(pk=errand.pk).update(lease_expires_at=timezone.now() + timedelta(seconds=settings.LIONWEB_LEASE_S - 15))
    assert "No sign of life from its worker for 15 s" in text_of(page_of(client_of("viewer"), url(checkpoint, f"/{question.pk}/")))
