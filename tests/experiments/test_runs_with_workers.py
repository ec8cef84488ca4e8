"""Whole runs through real workers, a real offline teacher over HTTP and a real student: undisturbed, killed, garbled, refused."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.contrib.auth.models import User

from experiments import models
from experiments.models import Candidate, Completion, Job, Judgement, Metric, Response, Run, Verdict
from experiments.querysets import runs_with_state
from experiments.services import jobs, runs
from experiments.services.pools import import_seed_pool
from experiments.states import JobState, RunState
from tests import compare, make, tiny
from tests.stack import Workers, free_port, wait_until
from trainer.config import EndpointConfig, RunConfig
from trainer.demo.knobs import Knobs
from trainer.demo.process import OfflineTeacher
from trainer.pacing import Pace
from trainer.records import Instruction, Label
from trainer.seed_pools import read_seed_pool

pytestmark = pytest.mark.slow

PORT = free_port()
"""One address for all offline teachers here: the config, and so the run in a folder, is the same for every test."""


@pytest.fixture(scope="module")
def seed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_seeds(tmp_path_factory.mktemp("seeds") / "seeds.json")


@pytest.fixture(scope="module")
def config(seed_file: Path) -> RunConfig:
    return tiny.make_config(seed_file, port=PORT)


@pytest.fixture(scope="module")
def undisturbed(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.run_in_shell(config, tmp_path_factory.mktemp("undisturbed"), port=PORT)


@pytest.fixture
def teacher() -> Iterator[OfflineTeacher]:
    """Slow enough that a stage can be caught in the middle."""
    with OfflineTeacher(Knobs(latency_ms=15), port=PORT) as it:
        yield it


Launch = Callable[[RunConfig], Run]


@pytest.fixture
def launch(person: Callable[[Any], User], seed_file: Path) -> Launch:
    owner = person("member")

    def make_run(config: RunConfig) -> Run:
        pool = import_seed_pool(seed_file.read_text(), name="sixty seeds", source=seed_file.name)
        return runs.launch(config, experiment=make.make_experiment(owner), seed_pool=pool, owner=owner)

    return make_run


def state_of(run: Run) -> str:
    return str(runs_with_state().get(pk=run.pk).state)


def wait_for_end(run: Run) -> None:
    """Sweep as `manage.py sweep` does, until the run is over."""

    def is_over() -> bool:
        jobs.sweep()
        return state_of(run) not in (RunState.QUEUED, RunState.RUNNING, RunState.STOPPING)

    wait_until(is_over, timeout_s=240, what=f"the end of {run}: {_jobs(run)}")


def _jobs(run: Run) -> list[tuple[str, str, str]]:
    return list(Job.objects.filter(stage__iteration__run=run).values_list("step", "state", "reason"))


def wait_for_middle_of(step: str, *, iteration: int = 1) -> Job:
    """Wait until a job of the step has begun; gives it."""
    running = Job.objects.filter(step=step, state=JobState.RUNNING, stage__iteration__number=iteration)
    wait_until(lambda: running.exists() and _has_begun(step, iteration), timeout_s=120, what=f"the middle of {step}")
    return running.get()


def _has_begun(step: str, iteration: int) -> bool:
    if step == "tuning":
        return Metric.objects.filter(iteration__number=iteration).exists()
    return Verdict.objects.filter(iteration__number=iteration).count() >= 5


def _is_child(command: list[str]) -> bool:
    return "trainer.child" in command and "accelerate.commands.launch" not in command


def tuning_child() -> psutil.Process:
    """The process that holds the student, found among all that run the trainer's child below this test's workers."""
    found = [p for p in psutil.process_iter(["cmdline"]) if _is_child(p.info["cmdline"] or []) and _is_ours(p)]
    assert len(found) == 1
    return found[0]


def _is_ours(process: psutil.Process) -> bool:
    return process.environ().get("LIONWEB_DATA") == os.environ["LIONWEB_DATA"]


def assert_adds_up(run: Run) -> None:
    for iteration in run.iterations.filter(number__gt=0):
        verdicts = Verdict.objects.filter(iteration=iteration)
        labels = [verdicts.filter(label=label).count() for label in Label]
        assert sum(labels) == verdicts.count() == run.instructions.filter(iteration__number__lt=iteration.number).count()
        candidates = Candidate.objects.filter(iteration=iteration)
        assert candidates.filter(fate="accepted").count() == run.instructions.filter(iteration=iteration).count()


def test_the_web_and_the_shell_give_the_same_pools_and_verdicts(
    celery_workers: Workers, teacher: OfflineTeacher, launch: Launch, config: RunConfig, undisturbed: dict[str, Any]
) -> None:
    run = launch(config)
    wait_for_end(run)
    assert (state_of(run), _failed(run)) == (RunState.FINISHED, [])
    assert compare.of_database(run) == undisturbed
    assert_adds_up(run)
    assert teacher.stats()["repeated"] == 0
    assert Completion.objects.count() == teacher.stats()["distinct"]
    assert run.iterations.get(number=2).checkpoint.last_loss < run.iterations.get(number=0).checkpoint.first_loss


@pytest.mark.parametrize(("victim", "step"), [("teacher", "judgements"), ("gpu", "tuning"), ("child", "tuning"), ("gpu", "judgements")])
def test_a_kill_in_the_middle_of_a_stage_changes_nothing(
    celery_workers: Workers, teacher: OfflineTeacher, launch: Launch, config: RunConfig, undisturbed: dict[str, Any], victim: str, step: str
) -> None:
    run = launch(config)
    job = wait_for_middle_of(step)
    if victim == "child":
        tuning_child().send_signal(signal.SIGKILL)
    else:
        celery_workers.kill(victim)
        celery_workers.start(victim)
    wait_for_end(run)
    job.refresh_from_db()
    assert state_of(run) == RunState.FINISHED
    if (victim, step) != ("gpu", "judgements"):
        assert job.state == JobState.CRASHED
    assert compare.of_database(run) == undisturbed
    assert_adds_up(run)
    assert Completion.objects.count() == teacher.stats()["distinct"]
    # Only what the teacher worker had on its way when it died may be asked twice, and the ledger counts it.
    on_the_way = config.endpoints["offline"].max_at_once
    assert teacher.stats()["repeated"] <= (on_the_way if victim == "teacher" else 0)


def test_a_stopped_run_goes_on_from_its_saved_step(
    celery_workers: Workers, teacher: OfflineTeacher, launch: Launch, config: RunConfig, undisturbed: dict[str, Any]
) -> None:
    longer = replace(config, imitation=replace(config.imitation, first_steps=2000))
    run = launch(longer)
    wait_for_middle_of("tuning", iteration=0)
    jobs.stop_run(run)
    wait_for_end(run)
    assert state_of(run) == RunState.STOPPED
    stopped = Job.objects.get(stage__iteration__run=run, state=JobState.STOPPED)
    assert "Stopped at step" in stopped.reason
    calls = Completion.objects.count()
    jobs.resume_run(run)
    wait_for_middle_of("tuning", iteration=0)
    jobs.stop_run(run)
    wait_for_end(run)
    resumed = Job.objects.filter(stage__iteration__run=run, state=JobState.STOPPED).latest("id")
    first_step = Metric.objects.filter(job=resumed).order_by("step").values_list("step", flat=True).first()
    assert first_step is not None
    assert first_step > 1
    assert Completion.objects.count() == calls


def test_one_garbled_reply_in_five_is_asked_again_or_quarantined_never_a_number(
    celery_workers: Workers, launch: Launch, config: RunConfig
) -> None:
    impatient, lenient = replace(config.referee, asks=1), replace(config.discrimination, most_quarantined=1.0)
    with OfflineTeacher(Knobs(garble=0.2), port=PORT):
        run = launch(replace(config, referee=impatient, discrimination=lenient))
        wait_for_end(run)
    assert state_of(run) == RunState.FINISHED
    assert_adds_up(run)
    quarantined = Verdict.objects.filter(instruction__run=run, label=Label.QUARANTINED)
    assert quarantined.count() > 5
    assert not quarantined.exclude(discrepancy=None).exists()
    unread = Judgement.objects.filter(instruction__run=run, teacher_score=None)
    assert unread.count() > 5
    assert not unread.filter(failure="").exists()
    for judgement in unread:
        assert Verdict.objects.get(instruction=judgement.instruction, iteration=judgement.iteration).label == Label.QUARANTINED


def _failed(run: Run) -> list[str]:
    return list(Job.objects.filter(stage__iteration__run=run, state=JobState.FAILED).values_list("reason", flat=True))


def _with_endpoint(config: RunConfig, **values: Any) -> RunConfig:
    endpoint: EndpointConfig = replace(config.endpoints["offline"], **values)
    return replace(config, endpoints={"offline": endpoint})


def test_an_unreachable_endpoint_is_told_and_waited_for(celery_workers: Workers, launch: Launch, config: RunConfig) -> None:
    run = launch(replace(config, loop=replace(config.loop, iterations=0)))
    wait_until(lambda: bool(_waits_for_endpoint()), timeout_s=60, what="the endpoint to be found unwell")
    assert "could not be reached" in _waits_for_endpoint()
    assert state_of(run) == RunState.RUNNING
    with OfflineTeacher(port=PORT):
        wait_for_end(run)
    assert state_of(run) == RunState.FINISHED
    assert not Response.objects.exclude(failure="").exists()


def _waits_for_endpoint() -> str:
    """What is said of an endpoint that is unwell, or ""."""
    return "".join(Pace.from_dict(row.state).words(time.time()) for row in models.Pace.objects.all())


def test_a_budget_stops_a_run_with_all_it_has_and_raising_it_goes_on(
    celery_workers: Workers, launch: Launch, config: RunConfig, undisturbed: dict[str, Any]
) -> None:
    with OfflineTeacher(port=PORT) as teacher:
        run = launch(config)
        models.Budget.objects.create(run=run, most_calls=150)
        wait_for_end(run)
        assert state_of(run) == RunState.STOPPED
        stopped = Job.objects.get(stage__iteration__run=run, over_budget=True)
        assert "150 of 150 calls are made" in stopped.reason
        assert teacher.stats()["answered"] == Completion.objects.count() == 150
        models.Budget.objects.update(most_calls=100_000)
        jobs.resume_run(run)
        wait_for_end(run)
    assert (state_of(run), _failed(run)) == (RunState.FINISHED, [])
    assert compare.of_database(run) == undisturbed


def test_a_missing_key_names_its_variable(celery_workers: Workers, launch: Launch, config: RunConfig) -> None:
    run = launch(_with_endpoint(config, key_env="LIONWEB_TEST_NO_SUCH_KEY"))
    wait_for_end(run)
    assert "LIONWEB_TEST_NO_SUCH_KEY, which is not set" in _failed(run)[0]


def test_an_unknown_student_is_told_and_the_paid_answers_are_kept(
    celery_workers: Workers, teacher: OfflineTeacher, launch: Launch, config: RunConfig
) -> None:
    run = launch(replace(config, student=replace(config.student, model="no-such-folder/../student")))
    wait_for_end(run)
    assert "There is no student 'no-such-folder/../student'" in _failed(run)[0]
    assert Completion.objects.count() == tiny.SEEDS


def test_a_student_that_cannot_be_tuned_ends_the_run_before_a_call_is_paid(
    celery_workers: Workers, launch: Launch, config: RunConfig
) -> None:
    careful = replace(config, imitation=replace(config.imitation, preflight=True), student=replace(config.student, model="/nowhere"))
    run = launch(careful)
    wait_for_end(run)

    assert state_of(run) == RunState.FAILED
    [(step, state, reason)] = _jobs(run)
    assert (step, state) == ("preflight", JobState.FAILED)
    assert "There is no student '/nowhere'" in reason
    assert not Completion.objects.exists()


def test_a_save_of_a_stopped_tuning_is_used_and_the_run_goes_on(
    celery_workers: Workers, teacher: OfflineTeacher, launch: Launch, config: RunConfig
) -> None:
    long = replace(config, imitation=replace(config.imitation, preflight=True, steps=5000))
    run = launch(long)
    wait_for_middle_of("tuning")
    jobs.stop_run(run)
    wait_until(lambda: state_of(run) == RunState.STOPPED, timeout_s=60, what="the stop")
    saved = run.iterations.get(number=1).imitation.saved_step
    assert saved
    jobs.use_save(run)
    wait_until(lambda: models.Checkpoint.objects.filter(iteration__number=1).exists(), timeout_s=60, what="the checkpoint")
    jobs.stop_run(run)

    assert models.Checkpoint.objects.get(iteration__number=1).step == saved
    first = run.iterations.get(number=0).imitation
    assert first.preflight["parameters"] > 40_000
    assert first.first_batch["examples"]
    wait_until(lambda: not Job.objects.filter(state=JobState.RUNNING).exists(), timeout_s=60, what="the end")


def test_the_seed_file_is_read_alike_by_both(seed_file: Path) -> None:
    seeds: tuple[Instruction, ...] = read_seed_pool(seed_file).instructions
    assert [seed.key for seed in seeds[:2]] == ["seed-000000", "seed-000001"]
    assert len(seeds) == tiny.SEEDS


def test_a_run_goes_through_a_real_redis_as_well(redis_workers: Workers, launch: Launch, config: RunConfig) -> None:
    with OfflineTeacher(port=PORT):
        run = launch(replace(config, loop=replace(config.loop, iterations=0)))
        wait_for_end(run)
    assert (state_of(run), _failed(run)) == (RunState.FINISHED, [])
    assert run.iterations.get().checkpoint.step == config.imitation.first_steps
