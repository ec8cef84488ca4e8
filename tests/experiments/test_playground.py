"""Questions to a checkpoint: who answers, what is paid, what is kept when something ends in between."""

from __future__ import annotations

from typing import Any

import pytest

from experiments import errand_runner
from experiments.errand_work import WORK
from experiments.models import Answer, Budget, Checkpoint, Completion, Errand, LedgerLine, PendingCall, Question, Response, Run, Speaker
from experiments.services import errands, playground
from experiments.states import JobState, Queue
from tests import make
from tests.speaking import make_speaking_run
from tests.stack import Workers, wait_until
from trainer.demo.process import OfflineTeacher
from trainer.plan import Stage

pytestmark = pytest.mark.django_db(transaction=True)

ASKED: dict[str, Any] = {"text": "upper: abc", "temperature": 0.0, "max_new_tokens": 20, "seed": 3}


@pytest.fixture
def run_of(person):
    """Makes a finished run whose checkpoints speak, and whose teacher is at an address."""
    return lambda **options: make_speaking_run(person("member"), **options)


def checkpoint_of(run: Run, number: int = 1) -> Checkpoint:
    return Checkpoint.objects.get(iteration__run=run, iteration__number=number)


def ask(run: Run, **options: Any) -> Question:
    return playground.ask(checkpoint_of(run), by=run.owner, **{**ASKED, **options})


def do(question: Question, queue: str) -> Errand:
    """Do the question's errand of a queue as a worker would; gives it as it ended."""
    errand = question.checkpoint.errands.filter(queue=queue).latest("pk")
    errand_runner.run_errand(errand.pk, worker="tests", work=WORK)
    return Errand.objects.get(pk=errand.pk)


def answers(question: Question) -> dict[str, Answer]:
    return {row.speaker: row for row in question.answers.all()}


def test_checkpoint_earlier_and_base_answer_in_one_errand(run_of):
    run = run_of()
    question = ask(run, earlier=checkpoint_of(run, 0), base=True)
    errand = do(question, Queue.GPU)
    said = answers(question)
    assert errand.state == JobState.FINISHED, errand.reason
    assert {row.errand_id for row in said.values()} == {errand.pk}
    assert all(row.finished and row.tokens and row.seconds for row in said.values())
    assert len({row.text for row in said.values()}) == 3
    assert Errand.objects.count() == 1


def test_the_same_seed_gives_the_same_answer_again(run_of):
    run = run_of()
    first, second, other = (ask(run, temperature=1.0, seed=seed) for seed in (7, 7, 8))
    for question, errand in zip((first, second, other), Errand.objects.order_by("pk"), strict=True):
        errand_runner.run_errand(errand.pk, worker="tests", work=WORK)
        assert answers(question)[Speaker.CHECKPOINT].finished
    texts = [answers(question)[Speaker.CHECKPOINT].text for question in (first, second, other)]
    assert texts[0] == texts[1] != texts[2]


def test_a_checkpoint_without_files_says_so_and_the_base_still_answers(run_of):
    run = run_of()
    Checkpoint.objects.filter(pk=checkpoint_of(run).pk).update(path="runs/nowhere")
    question = ask(run, base=True)
    errand = do(question, Queue.GPU)
    said = answers(question)
    assert errand.state == JobState.FAILED
    assert "nowhere" in said[Speaker.CHECKPOINT].failure
    assert said[Speaker.BASE].finished


def test_a_checkpoint_that_was_deleted_while_the_question_waited(run_of):
    run = run_of()
    question = ask(run)
    Checkpoint.objects.filter(pk=checkpoint_of(run).pk).update(deleted_at=run.created_at)
    errand = do(question, Queue.GPU)
    assert (errand.state, answers(question)[Speaker.CHECKPOINT].finished) == (JobState.FAILED, False)
    assert "deleted" in errand.reason


def test_a_withdrawn_question_is_not_answered(run_of):
    question = ask(run_of())
    playground.stop(question)
    errand = do(question, Queue.GPU)
    assert errand.state == JobState.STOPPED
    assert answers(question)[Speaker.CHECKPOINT].text == ""


# The teacher


def test_the_teacher_is_paid_once_and_stands_in_the_runs_ledger(run_of, offline_teacher: OfflineTeacher):
    run = run_of(base_url=offline_teacher.base_url)
    before = Completion.objects.count()
    question = ask(run, teacher=True, text="reverse: badc")
    errand = do(question, Queue.TEACHER)
    said = answers(question)[Speaker.TEACHER]
    assert (errand.state, errand.result) == (JobState.FINISHED, {"from_store": False}), errand.reason
    assert said.finished
    assert said.text == "cdab"
    line = LedgerLine.objects.get(run=run, stage="")
    assert (line.role, line.iteration, line.calls) == ("teacher", question.checkpoint.iteration, 1)
    assert Completion.objects.get(pk=said.completion_id).line == line

    again = ask(run, teacher=True, text="reverse: badc", seed=99)
    assert do(again, Queue.TEACHER).result == {"from_store": True}
    assert answers(again)[Speaker.TEACHER].text == "cdab"
    line.refresh_from_db()
    assert (line.calls, line.saved) == (1, 1)
    assert Completion.objects.count() == before + 1
    assert not PendingCall.objects.exists()


def test_what_the_run_has_the_teachers_response_to_is_not_asked_again(run_of):
    run = run_of()
    response = Response.objects.filter(role="teacher", instruction__run=run, failure="").select_related("instruction").first()
    assert response
    question = ask(run, teacher=True, text=response.instruction.text)
    said = answers(question)[Speaker.TEACHER]
    assert (said.text, said.finished, said.errand_id, said.instruction_id) == (response.text, True, None, response.instruction_id)
    assert not Errand.objects.filter(queue=Queue.TEACHER).exists()


def test_another_runs_response_is_not_taken_for_ours(run_of, person):
    run = run_of()
    other = make.make_finished_run(person("member"), name="other", seeds=20)
    known = set(run.instructions.values_list("text", flat=True))
    ask(run, teacher=True, text=next(row.text for row in other.instructions.filter(responses__role="teacher") if row.text not in known))
    assert Errand.objects.filter(queue=Queue.TEACHER).count() == 1


@pytest.mark.parametrize("owner", ["run", "endpoint"])
def test_a_spent_budget_refuses_the_teacher_in_words(run_of, offline_teacher: OfflineTeacher, owner):
    run = run_of(base_url=offline_teacher.base_url)
    if owner == "run":
        LedgerLine.objects.create(run=run, iteration=run.iterations.first(), stage=Stage.IMITATION, role="x", endpoint="offline", calls=5)
        Budget.objects.create(run=run, most_calls=5)
    else:
        from experiments.models import Endpoint

        endpoint = Endpoint.objects.create(name="offline", base_url="http://127.0.0.1:1/v1", model="m")
        LedgerLine.objects.create(run=run, iteration=run.iterations.first(), stage=Stage.IMITATION, role="x", endpoint="offline", calls=500)
        Budget.objects.create(endpoint=endpoint, most_calls=5)
    question = ask(run, teacher=True, text="upper: dear")
    errand = do(question, Queue.TEACHER)
    assert errand.state == JobState.FAILED
    assert "budget" in errand.reason
    assert not LedgerLine.objects.filter(stage="", calls__gt=0).exists()


def test_a_teacher_that_does_not_answer_says_so(run_of):
    question = ask(run_of(), teacher=True, text="upper: nobody")
    errand = do(question, Queue.TEACHER)
    assert errand.state == JobState.FAILED
    assert answers(question)[Speaker.TEACHER].failure == errand.reason != ""


# Real workers


def test_a_worker_that_is_killed_leaves_an_answer_to_ask_again(run_of, celery_workers: Workers):
    run = run_of()
    question = ask(run, max_new_tokens=2000)
    errand = Errand.objects.get()
    wait_until(lambda: answers(question)[Speaker.CHECKPOINT].text != "", timeout_s=60, what="the first words")
    celery_workers.kill("gpu")
    wait_until(lambda: bool(errands.sweep()), timeout_s=20, what="the sweep to find it lost")
    errand.refresh_from_db()
    said = answers(question)[Speaker.CHECKPOINT]
    assert (errand.state, said.finished) == (JobState.CRASHED, False)
    assert said.text


def test_a_stop_ends_an_answer_and_keeps_what_was_said(run_of, celery_workers: Workers):
    question = ask(run_of(), max_new_tokens=2000, base=True)
    wait_until(lambda: answers(question)[Speaker.CHECKPOINT].text != "", timeout_s=60, what="the first words")
    playground.stop(question)
    wait_until(lambda: Errand.objects.get().state == JobState.STOPPED, timeout_s=30, what="the stop")
    said = answers(question)
    assert said[Speaker.CHECKPOINT].text
    assert not said[Speaker.CHECKPOINT].finished
    assert not said[Speaker.BASE].text
