"""The page of an experiment with 500 finished runs, each with its config, metrics, verdicts and scores, as a browser asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.bench.place import database, web_server
from tests.bench.report import Bar, Figure, quantile, say
from trainer.config import load_preset
from trainer.plan import Stage, Step, plan

if TYPE_CHECKING:
    from django.test import Client

    from experiments.models import Experiment

RUNS = 500
SEEDS = 100
LOGGED_STEPS = 40
REQUESTS = 60
WARM_UP = 5


def measure() -> Iterator[Figure]:
    with database() as data:
        from django.db import connection

        client, experiment = make_runs()
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
        path = f"/experiments/{experiment.pk}/"
        pages = -(-RUNS // 50)
        paths = [f"{path}?page={1 + n % pages}" for n in range(REQUESTS)]
        with web_server(data, client.cookies["sessionid"].value) as web:
            for warm in paths[:WARM_UP]:
                web.seconds(warm)
            over_http = [web.seconds(each) for each in paths]
        yield _figure("pages_runs", over_http)
        for warm in paths[:WARM_UP]:
            client.get(warm)
        yield _figure("pages_runs_view", [_seconds_of_view(client, each) for each in paths])


def _figure(name: str, seconds: list[float]) -> Figure:
    say(f"{name}: from {1000 * min(seconds):.0f} to {1000 * max(seconds):.0f} ms over {len(seconds)} requests")
    return Figure(name=name, value=1000 * quantile(seconds, 0.5), unit="ms p50", bar=Bar(at_most=60))


def _seconds_of_view(client: Client, path: str) -> float:
    from time import monotonic

    started = monotonic()
    response = client.get(path)
    assert response.status_code == 200
    return monotonic() - started


def make_runs() -> tuple[Client, Experiment]:
    """Rows in bulk, table by table: what 500 runs of the demo leave, with a pool of 100."""
    from django.db import connection
    from django.test import Client

    from experiments.management.commands.sign_in_link import ensure_user
    from experiments.models import BenchmarkScore, Iteration, Run
    from tests import make

    say(f"making {RUNS} runs")
    owner = ensure_user("member", role="member")
    experiment = make.make_experiment(owner)
    pool = make.make_pool(size=SEEDS)
    preset = load_preset("demo")
    config = replace(preset, loop=replace(preset.loop, new_per_iteration=SEEDS))
    rows = [
        Run(
            experiment=experiment, name=f"calm-lion-{n}", owner=owner, config=replace(config, seed=n).as_dict(), seed=n,
            steps=sum(1 for _ in plan(config)), seed_pool=pool,
        )
        for n in range(RUNS)
    ]  # fmt: skip
    runs = Run.objects.bulk_create(rows)
    iterations = Iteration.objects.bulk_create(
        Iteration(run=run, number=number) for run in runs for number in range(config.loop.iterations + 1)
    )
    _make_jobs(iterations, config)
    BenchmarkScore.objects.bulk_create(
        (
            BenchmarkScore(iteration=i, benchmark="demo_skills", task=task, value=0.2 * i.number + 0.1, n=60, standard_error=0.05)
            for i in iterations
            for task in ("", *make.KINDS)
        ),
        batch_size=2000,
    )
    with connection.cursor() as cursor:
        cursor.execute(INSTRUCTIONS, {"seeds": SEEDS})
        cursor.execute(VERDICTS)
        cursor.execute(METRICS, {"steps": LOGGED_STEPS})
    client = Client(SERVER_NAME="127.0.0.1")
    client.force_login(owner, backend="django.contrib.auth.backends.ModelBackend")
    return client, experiment


def _make_jobs(iterations: list[Any], config: Any) -> None:
    """A finished job of every planned step."""
    from django.utils import timezone

    from experiments.models import Job
    from experiments.models import Stage as StageRow
    from experiments.states import JobState, Queue
    from trainer.plan import GPU_STEPS

    steps: dict[int, list[tuple[Stage, Step]]] = {}
    for planned in plan(config):
        steps.setdefault(planned.iteration, []).append((planned.stage, planned.step))
    stages = StageRow.objects.bulk_create(
        (StageRow(iteration=i, name=name) for i in iterations for name in dict.fromkeys(stage for stage, _ in steps[i.number])),
        batch_size=2000,
    )
    now = timezone.now()
    Job.objects.bulk_create(
        (
            Job(
                stage=stage, step=step, queue=Queue.GPU if step in GPU_STEPS else Queue.TEACHER, state=JobState.FINISHED,
                worker="host/7/9", started_at=now, ended_at=now, items_done=SEEDS, items_total=SEEDS,
            )
            for stage in stages
            for name, step in steps[stage.iteration.number]
            if name == stage.name
        ),
        batch_size=2000,
    )  # fmt: skip


INSTRUCTIONS = """
    INSERT INTO experiments_instruction (run_id, iteration_id, key, position, text, input, origin, kind)
    SELECT run_id, id, 'seed-' || n, n, 'reverse: item' || n, '', 'seed', 'reverse'
    FROM experiments_iteration, generate_series(0, %(seeds)s - 1) n WHERE number = 0
"""
VERDICTS = """
    INSERT INTO experiments_verdict (instruction_id, iteration_id, label, teacher_score, student_score, discrepancy, inconsistent, reason,
                                     created_at)
    SELECT i.id, t.id, CASE WHEN i.position %% 3 < 2 THEN 'hard' ELSE 'easy' END, 9, 9 - i.position %% 3, i.position %% 3, false, '', now()
    FROM experiments_iteration t JOIN experiments_instruction i ON i.run_id = t.run_id WHERE t.number > 0
""".replace("%%", "%")
METRICS = """
    INSERT INTO experiments_metric (iteration_id, job_id, step, steps, loss, learning_rate)
    SELECT s.iteration_id, j.id, n, %(steps)s, 3.0 / n, 0.002
    FROM experiments_job j JOIN experiments_stage s ON s.id = j.stage_id, generate_series(1, %(steps)s) n WHERE j.step = 'tuning'
"""
