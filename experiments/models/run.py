from django.conf import settings
from django.db import models
from django.db.models import F, Q

from experiments.models.experiment import Experiment
from experiments.models.pool import SeedPool
from experiments.states import LIVE, JobState, Queue
from trainer.config import RunConfig, stored_config
from trainer.plan import Stage as StageName
from trainer.plan import Step


class Run(models.Model):
    """One execution of the loop with a frozen config and a seed. Its state is derived from its jobs."""

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="runs")
    name = models.CharField(max_length=100, unique=True)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="runs")
    config = models.JSONField()
    seed = models.PositiveIntegerField()
    steps = models.PositiveIntegerField(help_text="how many steps its config plans")
    seed_pool = models.ForeignKey(SeedPool, null=True, on_delete=models.SET_NULL, related_name="runs")
    stop_requested_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-created_at", "-id")
        indexes = [models.Index(fields=["experiment", "-created_at"])]

    def __str__(self) -> str:
        return self.name

    def run_config(self) -> RunConfig:
        """The frozen config. Raises ConfigError where this version cannot read it."""
        return stored_config(self.config)


class Iteration(models.Model):
    """0 is the first imitation on the seed pool; 1..K are the adversarial iterations."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="iterations")
    number = models.PositiveSmallIntegerField()
    held_against = models.JSONField(
        null=True,
        help_text="imported benchmarks that its new instructions are held against, by name; null until one is asked for",
    )

    class Meta:
        ordering = ("number",)
        constraints = [models.UniqueConstraint(fields=["run", "number"], name="iteration_number_unique")]

    def __str__(self) -> str:
        return f"{self.run} iteration {self.number}"


class Threshold(models.Model):
    """A tau that a person set while a run was under way: it holds from an iteration on, until another does."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="thresholds")
    iteration = models.PositiveSmallIntegerField(help_text="the number of the first iteration that it holds for")
    tau = models.FloatField()
    set_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("iteration", "id")
        constraints = [
            models.CheckConstraint(condition=Q(tau__range=(-9, 9)), name="threshold_tau_range"),
            models.UniqueConstraint(fields=["run", "iteration"], name="threshold_one_per_iteration"),
        ]

    def __str__(self) -> str:
        return f"{self.run} tau {self.tau:g} from iteration {self.iteration}"


class Stage(models.Model):
    """Imitation, evaluation, discrimination or generation of one iteration. Its state is derived from its jobs."""

    iteration = models.ForeignKey(Iteration, on_delete=models.CASCADE, related_name="stages")
    name = models.CharField(max_length=20, choices=[(s.value, s.value) for s in StageName])

    class Meta:
        ordering = ("id",)
        constraints = [models.UniqueConstraint(fields=["iteration", "name"], name="stage_unique")]

    def __str__(self) -> str:
        return f"{self.iteration} {self.name}"


class Job(models.Model):
    """One attempt at a step of a stage by one worker. A retry is a new job."""

    stage = models.ForeignKey(Stage, on_delete=models.CASCADE, related_name="jobs")
    step = models.CharField(max_length=30, choices=[(s.value, s.value) for s in Step])
    queue = models.CharField(max_length=10, choices=Queue.choices)
    state = models.CharField(max_length=10, choices=JobState.choices, default=JobState.QUEUED)
    reason = models.TextField(blank=True, help_text="why it ended as it did, in words for a person")
    note = models.TextField(blank=True, help_text="what a person should know about how it went")
    use_saved = models.BooleanField(default=False, help_text="makes the last save the checkpoint instead of tuning on")
    over_budget = models.BooleanField(default=False, help_text="stopped at a budget: raising it queues the step again")
    config_at_fault = models.BooleanField(
        default=False, help_text="failed by a setting of its run's frozen config: to try again changes nothing"
    )
    worker = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    sent_at = models.DateTimeField(null=True, help_text="when a worker was last told to look at it")
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    lease_expires_at = models.DateTimeField(null=True, help_text="a running job whose lease is over is lost")
    items_before = models.PositiveIntegerField(default=0, help_text="items of the step that earlier jobs had done")
    items_done = models.PositiveIntegerField(default=0)
    items_total = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ("id",)
        constraints = [
            models.UniqueConstraint(fields=["stage", "step"], condition=Q(state__in=sorted(LIVE)), name="job_one_live_per_step"),
            models.UniqueConstraint(fields=["stage", "step"], condition=Q(state=JobState.FINISHED), name="job_one_finished_per_step"),
            models.CheckConstraint(
                condition=~Q(state=JobState.RUNNING) | (Q(lease_expires_at__isnull=False) & ~Q(worker="")), name="job_running_has_lease"
            ),
            models.CheckConstraint(condition=Q(items_before__lte=F("items_total")) | Q(items_total=0), name="job_items_before_of_total"),
        ]
        indexes = [
            models.Index(fields=["state", "lease_expires_at"], condition=Q(state__in=sorted(LIVE)), name="job_live"),
        ]

    def __str__(self) -> str:
        return f"job {self.pk}: {self.stage} {self.step}"
