"""Rows for tests: a whole run as the workers would have left it, through the ORM and so under all its constraints."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from django.contrib.auth.models import User
from django.utils import timezone

from experiments.models import (
    BenchmarkAnswer,
    BenchmarkScore,
    Candidate,
    Checkpoint,
    Completion,
    Diversity,
    Experiment,
    Imitation,
    Instruction,
    Iteration,
    Job,
    Judgement,
    LedgerLine,
    Metric,
    Response,
    Role,
    Run,
    SeedInstruction,
    SeedPool,
    Stage,
    Traits,
    Verdict,
)
from experiments.states import JobState, Queue
from trainer import records as records_of
from trainer.config import RunConfig, load_preset
from trainer.diversity import measure, traits_of
from trainer.plan import GPU_STEPS, ROLE_OF, Planned, Step, plan
from trainer.plan import Stage as StageName
from trainer.records import Fate, FirstBatch, Label, Order, Origin, Preflight, ShownExample

KINDS = ("copy", "upper", "reverse", "parity", "next", "mirror")
BENCHMARK = "demo_skills"


def make_config(*, iterations: int = 2, new: int = 8, **loop: Any) -> RunConfig:
    """The demo's config with a small loop."""
    preset = load_preset("demo")
    return replace(preset, loop=replace(preset.loop, iterations=iterations, new_per_iteration=new, **loop))


def make_experiment(owner: User, name: str = "Long tails") -> Experiment:
    return Experiment.objects.get_or_create(name=name, defaults={"owner": owner, "description": "Does the loop help on a long tail?"})[0]


def make_pool(name: str = "tiny pool", *, size: int = 12) -> SeedPool:
    pool = SeedPool.objects.create(name=name, source="tests", licence="CC0-1.0")
    rows = [SeedInstruction(pool=pool, position=i, text=_text(i), kind=KINDS[i % len(KINDS)]) for i in range(size)]
    SeedInstruction.objects.bulk_create(rows)
    return pool


def make_run(
    owner: User, *, name: str = "calm-lion-1", config: RunConfig | None = None, seeds: int = 12, experiment: Experiment | None = None
) -> Run:
    """A run that has only its seeds, and no job yet."""
    config = config or make_config()
    pool = SeedPool.objects.filter(name=f"pool of {seeds}").first() or make_pool(f"pool of {seeds}", size=seeds)
    run = Run.objects.create(
        experiment=experiment or make_experiment(owner),
        name=name,
        owner=owner,
        config=config.as_dict(),
        seed=config.seed,
        steps=sum(1 for _ in plan(config)),
        seed_pool=pool,
    )
    iteration = Iteration.objects.create(run=run, number=0)
    make_instructions(iteration, [("seed", None)] * seeds, first=0)
    return run


def make_finished_run(owner: User, *, draw: int = 0, **options: Any) -> Run:
    """A run that went through its whole plan; the same numbers for the same `draw`."""
    run = make_run(owner, **options)
    rng = random.Random(draw)
    for planned in plan(run.run_config()):
        do_step(run, planned, rng)
    return run


def make_run_until(owner: User, iteration: int, step: Step, *, draw: int = 0, **options: Any) -> Run:
    """A run that has done every step before this one."""
    run = make_run(owner, **options)
    rng = random.Random(draw)
    for planned in plan(run.run_config()):
        if (planned.iteration, planned.step) == (iteration, step):
            break
        do_step(run, planned, rng)
    return run


def do_step(run: Run, planned: Planned, rng: random.Random) -> None:
    """Leave the rows of one finished step."""
    iteration, _ = Iteration.objects.get_or_create(run=run, number=planned.iteration)
    job = make_job(iteration, planned.stage, planned.step, state=JobState.FINISHED)
    works: dict[Step, Callable[[Iteration, random.Random], int]] = {
        Step.PREFLIGHT: _preflight,
        Step.TEACHER_RESPONSES: _teacher_responses,
        Step.TUNING: partial(_tuning, job=job),
        Step.BENCHMARKS: _benchmarks,
        Step.STUDENT_RESPONSES: _student_responses,
        Step.JUDGEMENTS: _judgements,
        Step.CANDIDATES: _candidates,
    }
    done = works[planned.step](iteration, rng)
    Job.objects.filter(pk=job.pk).update(items_total=done, items_done=done)


def make_job(iteration: Iteration, stage: StageName, step: Step, *, state: str = JobState.RUNNING, **values: Any) -> Job:
    """A job as it is in a state: a running one holds a lease, one that is over has ended."""
    now = timezone.now()
    times: dict[str, Any] = {"started_at": None if state == JobState.QUEUED else now - timedelta(seconds=100)}
    if state == JobState.RUNNING:
        times |= {"lease_expires_at": now + timedelta(minutes=5)}
    if state not in (JobState.QUEUED, JobState.RUNNING):
        times |= {"ended_at": now - timedelta(seconds=20)}
    row, _ = Stage.objects.get_or_create(iteration=iteration, name=stage)
    queue = Queue.GPU if step in GPU_STEPS else Queue.TEACHER
    return Job.objects.create(stage=row, step=step, queue=queue, state=state, **{"worker": "host/7/9", **times, **values})


def make_metrics(job: Job, losses: Sequence[float], *, steps: int, first: int = 1, every: int = 1, **values: Any) -> list[Metric]:
    """The logged steps of a tuning, one a loss."""
    shared = {"learning_rate": 2e-3, "grad_norm": 1.25, "tokens_per_s": 500.0, "memory_gib": 0.75, **values}
    iteration = job.stage.iteration
    rows = [Metric(iteration=iteration, job=job, step=first + i * every, steps=steps, loss=loss, **shared) for i, loss in enumerate(losses)]
    return Metric.objects.bulk_create(rows, batch_size=2000)


def make_instructions(iteration: Iteration, origins: Sequence[tuple[str, Instruction | None]], *, first: int) -> list[Instruction]:
    """Instructions of an iteration, each with an origin and a parent."""
    rows = [
        Instruction(
            run=iteration.run,
            iteration=iteration,
            key=f"{origin}-{iteration.number}-{i:06d}",
            position=first + i,
            text=_text(first + i),
            origin=origin,
            parent=parent,
            kind=parent.kind if parent else KINDS[i % len(KINDS)],
        )
        for i, (origin, parent) in enumerate(origins)
    ]
    return Instruction.objects.bulk_create(rows, batch_size=2000)


def _text(i: int) -> str:
    return f"{KINDS[i % len(KINDS)]}: item{i:05d}"


def make_preflight(**values: Any) -> Preflight:
    """What a small student takes: it fits."""
    small: dict[str, Any] = {
        "model": "scratch-llama", "method": "full", "precision": "fp32", "parameters": 600_000, "trainable": 600_000,
        "device": "CPU, 2 cores",
        "weights": 2_400_000, "gradients": 2_400_000, "optimizer": 4_800_000, "memory": 8 * 2**30, "disk_needed": 50 * 2**20,
        "disk_free": 9 * 2**30, "context": 256,
    }  # fmt: skip
    return Preflight(**{**small, **values})


COUNTED = {"examples": 12, "steps": 40, "response_tokens": 4000, "device_tokens": 9000, "seconds": 12.5, "activations": 9_000_000}
"""What a preflight knows once there are examples."""


def make_first_batch(*pieces: tuple[str, bool]) -> FirstBatch:
    """A first batch of one example, of a copy task where its pieces are not given."""
    pieces = pieces or (("<s>### Instruction:\ncopy: item00003\n\n### Response:", False), ("item00003</s>", True))
    shown = ShownExample(instruction="seed-000003", tokens=31, learnt=9, pieces=pieces)
    return FirstBatch(examples=(shown,), batch_size=8)


def make_imitation(iteration: Iteration, *, found: Preflight | None = None, batch: FirstBatch | None = None, **values: Any) -> Imitation:
    """What is known of an iteration's imitation once its tuning has begun."""
    told = {
        "preflight": (found or make_preflight(**COUNTED)).as_dict(),
        "first_batch": (batch or make_first_batch()).as_dict(),
        **values,
    }
    return Imitation.objects.update_or_create(iteration=iteration, defaults=told)[0]


def _preflight(iteration: Iteration, rng: random.Random) -> int:
    Imitation.objects.create(iteration=iteration, preflight=make_preflight().as_dict())
    return 0


def _teacher_responses(iteration: Iteration, rng: random.Random) -> int:
    made = list(Instruction.objects.filter(iteration=iteration))
    rows = [Response(instruction=i, iteration=iteration, role=Role.TEACHER, text=f"teacher says {i.text[::-1]}", tokens=9) for i in made]
    Response.objects.bulk_create(rows, batch_size=2000)
    return len(rows)


def _tuning(iteration: Iteration, rng: random.Random, *, job: Job) -> int:
    steps = 40 if iteration.number == 0 else 12
    losses = [3.2 * 0.97 ** (step + 30 * iteration.number) + 0.1 + rng.random() * 0.05 for step in range(steps)]
    make_imitation(iteration, found=make_preflight(**{**COUNTED, "steps": steps}))
    make_metrics(job, losses, steps=steps)
    Checkpoint.objects.create(
        iteration=iteration, path=f"runs/{iteration.run_id}/iteration-{iteration.number}", step=steps, first_loss=losses[0],
        last_loss=losses[-1], size_bytes=2_400_000,
    )  # fmt: skip
    return steps


def _benchmarks(iteration: Iteration, rng: random.Random) -> int:
    base = min(0.95, 0.5 + 0.12 * iteration.number)
    shares = {kind: min(1.0, max(0.0, base + rng.uniform(-0.2, 0.2))) for kind in KINDS}
    scores = [
        BenchmarkScore(iteration=iteration, benchmark=BENCHMARK, task=kind, value=v, n=10, standard_error=0.06)
        for kind, v in shares.items()
    ]
    macro = sum(shares.values()) / len(shares)
    BenchmarkScore.objects.bulk_create(
        [*scores, BenchmarkScore(iteration=iteration, benchmark=BENCHMARK, value=macro, n=10 * len(KINDS), standard_error=0.025)]
    )
    answers = [
        BenchmarkAnswer(
            iteration=iteration, benchmark=BENCHMARK, item=f"{kind}-{i}", task=kind, prompt=f"{kind}: abc{i}", gold=f"cba{i}",
            reply=f"cba{i}" if i < 10 * shares[kind] else "cab", correct=i < 10 * shares[kind],
        )
        for kind in KINDS
        for i in range(10)
    ]  # fmt: skip
    BenchmarkAnswer.objects.bulk_create(answers)
    return len(answers)


def _student_responses(iteration: Iteration, rng: random.Random) -> int:
    judged = list(iteration.run.instructions.filter(iteration__number__lt=iteration.number))
    rows = [Response(instruction=i, iteration=iteration, role=Role.STUDENT, text=f"student says {i.text}", tokens=7) for i in judged]
    Response.objects.bulk_create(rows, batch_size=2000)
    return len(rows)


def _judgements(iteration: Iteration, rng: random.Random) -> int:
    judged = list(iteration.run.instructions.filter(iteration__number__lt=iteration.number))
    verdicts, judgements = [], []
    for position, item in enumerate(judged):
        if position % 11 == 10:
            reason = "The referee's scores could not be read after 3 asks."
            verdicts.append(Verdict(instruction=item, iteration=iteration, label=Label.QUARANTINED, reason=reason))
            judgements.append(Judgement(instruction=item, iteration=iteration, order=Order.TEACHER_FIRST, failure=reason))
            continue
        student = round(rng.uniform(1 + iteration.number, 10), 1)
        swap = 1.5 if position % 7 == 3 else 0.0
        d = round(9.5 - student, 2)
        label = Label.HARD if d >= 1 else Label.EASY
        verdicts.append(
            Verdict(
                instruction=item, iteration=iteration, label=label, teacher_score=9.5, student_score=student, discrepancy=d,
                inconsistent=(d + swap >= 1) != (d - swap >= 1),
            )
        )  # fmt: skip
        for order, shift in ((Order.TEACHER_FIRST, swap / 2), (Order.STUDENT_FIRST, -swap / 2)):
            score = min(10.0, max(1.0, student + shift))
            evidence = "The first answer follows the task; the second stops half way."
            judgements.append(
                Judgement(instruction=item, iteration=iteration, order=order, teacher_score=9.5, student_score=score, evidence=evidence)
            )
    Judgement.objects.bulk_create(judgements, batch_size=2000)
    Verdict.objects.bulk_create(verdicts, batch_size=2000)
    return len(verdicts)


def _candidates(iteration: Iteration, rng: random.Random) -> int:
    run = iteration.run
    wanted = run.run_config().loop.new_per_iteration
    verdicts = Verdict.objects.filter(iteration=iteration).select_related("instruction")
    parents = {label: [v.instruction for v in verdicts if v.label == label] for label in (Label.HARD, Label.EASY)}
    everything = [*parents[Label.HARD], *parents[Label.EASY]]
    origins = [Origin.HARD if i % 2 == 0 else Origin.EASY for i in range(wanted)]
    chosen = [(origin.value, rng.choice(parents[Label(origin.value)] or everything)) for origin in origins]
    made = make_instructions(iteration, chosen, first=run.instructions.count())
    rows = [
        Candidate(
            iteration=iteration, key=item.key, origin=item.origin, attempt=i, parent_id=item.parent_id or 0, text=item.text,
            fate=Fate.ACCEPTED, nearest=everything[i % len(everything)], similarity=0.31,
        )
        for i, item in enumerate(made)
    ]  # fmt: skip
    rows += [
        Candidate(
            iteration=iteration, key=f"rejected-{i}", origin=Origin.HARD, attempt=wanted + i, parent=parent, text=parent.text,
            fate=Fate.EMPTY if i % 3 == 2 else Fate.TOO_SIMILAR, nearest=parent, similarity=0.92,
        )
        for i, parent in enumerate(rng.choices(everything, k=max(3, wanted // 3)))
    ]  # fmt: skip
    Candidate.objects.bulk_create(rows, batch_size=2000)
    make_diversity(iteration)
    return wanted


def make_diversity(iteration: Iteration) -> None:
    """How varied an iteration's instructions are, and the traits of all that have none yet."""
    known = Instruction.objects.filter(run=iteration.run).select_related("iteration").order_by("position")
    records = {row: records_of.Instruction(key=row.key, text=row.text, input=row.input, iteration=row.iteration.number) for row in known}
    fresh = [Traits(instruction=row, **traits_of(row.text).as_dict()) for row in records if not hasattr(row, "traits")]
    Traits.objects.bulk_create(fresh, ignore_conflicts=True)
    seeds = [record for record in records.values() if not record.iteration]
    for number in {0, iteration.number}:
        made = [record for record in records.values() if record.iteration == number]
        told = measure(made, seeds, traits=lambda record: traits_of(record.text), seed=1, iteration=number)
        row = Iteration.objects.get(run=iteration.run, number=number)
        Diversity.objects.update_or_create(iteration=row, defaults={"values": told.as_dict()})


# Calls


def make_line(
    run: Run, *, iteration: int = 0, stage: str = "imitation", role: str = "teacher", endpoint: str = "", **values: Any
) -> LedgerLine:
    """A line of a run's ledger, without completions."""
    row, _ = Iteration.objects.get_or_create(run=run, number=iteration)
    return LedgerLine.objects.create(run=run, iteration=row, stage=stage, role=role, endpoint=endpoint or _endpoint(run, role), **values)


def _endpoint(run: Run, role: str) -> str:
    return str(run.config[role]["endpoint"])


def make_completions(line: LedgerLine, amount: int, *, cost: int = 1000, **values: Any) -> list[Completion]:
    """Completions that a line paid for, added up in it."""
    rows = []
    for i in range(amount):
        given = {"prompt_tokens": 60 + i, "completion_tokens": 20, "latency_s": 0.5, "nanodollars": cost, "text": f"reply {i}", **values}
        request = {
            "endpoint": line.endpoint, "model": "offline-teacher", "temperature": 0.7, "sample": 0,
            "messages": [{"role": "system", "content": "You help people."}, {"role": "user", "content": f"Task {i}"}],
        }  # fmt: skip
        key = hashlib.sha256(f"{line.pk} {line.calls + i}".encode()).hexdigest()
        shared = {"endpoint": line.endpoint, "role": line.role, "model": "offline-teacher", "request": request, "finish_reason": "stop"}
        rows.append(Completion(key=key, line=line, **{**shared, **given}))
    made = Completion.objects.bulk_create(rows, batch_size=2000)
    line.calls += amount
    for name in ("prompt_tokens", "completion_tokens", "cached_tokens", "nanodollars"):
        setattr(line, name, getattr(line, name) + sum(getattr(row, name) for row in made))
    line.save()
    return made


def make_ledger(run: Run, *, calls: int = 3, **values: Any) -> list[LedgerLine]:
    """A ledger with its completions for every stage of a run's plan that calls an endpoint, the teacher's answers pointing at theirs."""
    lines = []
    for planned in plan(run.run_config()):
        if role := ROLE_OF.get(planned.step):
            line = make_line(run, iteration=planned.iteration, stage=planned.stage, role=role, saved=2, saved_nanodollars=500)
            made = make_completions(line, calls, **values)
            lines.append(line)
            _point_at(made, line)
    return lines


def _point_at(made: Sequence[Completion], line: LedgerLine) -> None:
    """Let rows of the stage that have no completion yet be made from these."""
    rows: Any = {
        "teacher": Response.objects.filter(iteration=line.iteration, role=Role.TEACHER),
        "referee": Judgement.objects.filter(iteration=line.iteration),
        "generator": Candidate.objects.filter(iteration=line.iteration),
    }[line.role]
    for completion, pk in zip(made, rows.filter(completion=None).order_by("pk").values_list("pk", flat=True), strict=False):
        rows.filter(pk=pk).update(completion=completion)
