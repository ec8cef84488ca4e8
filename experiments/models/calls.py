"""Calls on their way and what they cost: the ledger, budgets, the pace of endpoints, and batches."""

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from experiments.models.endpoint import Endpoint
from experiments.models.run import Iteration, Job, Run
from trainer.plan import Stage as StageName


class LedgerLine(models.Model):
    """What a role's calls to an endpoint cost in one stage of one iteration of one run; adds up to its completions.

    calls and tokens: answered and paid. unanswered: sent without an answer (time-out, lost connection, killed worker); a server that
    does not honour Idempotency-Key may have charged them. saved: answered from the store. Lines without a run are tests of an endpoint.
    """

    run = models.ForeignKey(Run, null=True, on_delete=models.SET_NULL, related_name="ledger")
    iteration = models.ForeignKey(Iteration, null=True, on_delete=models.SET_NULL, related_name="ledger")
    stage = models.CharField(max_length=20, blank=True, choices=[(s.value, s.value) for s in StageName])
    role = models.CharField(max_length=20)
    endpoint = models.CharField(max_length=100)
    calls = models.PositiveBigIntegerField(default=0)
    prompt_tokens = models.PositiveBigIntegerField(default=0)
    cached_tokens = models.PositiveBigIntegerField(default=0)
    completion_tokens = models.PositiveBigIntegerField(default=0)
    nanodollars = models.PositiveBigIntegerField(default=0)
    unanswered = models.PositiveBigIntegerField(default=0)
    unanswered_nanodollars = models.PositiveBigIntegerField(default=0, help_text="the most that the unanswered calls can have cost")
    limited = models.PositiveBigIntegerField(default=0, help_text="attempts answered 429")
    failed = models.PositiveBigIntegerField(default=0, help_text="attempts answered 5xx, or by nobody")
    saved = models.PositiveBigIntegerField(default=0, help_text="answered from the store")
    saved_nanodollars = models.PositiveBigIntegerField(default=0)

    class Meta:
        ordering = ("id",)
        constraints = [
            # Lines of a run that was deleted keep what was paid; they have lost their place, and may look alike.
            models.UniqueConstraint(
                fields=["run", "iteration", "stage", "role", "endpoint"],
                condition=Q(run__isnull=False, iteration__isnull=False),
                name="ledger_line_unique",
            ),
            # The role of `trainer.endpoint_test`, which no run has.
            models.UniqueConstraint(fields=["endpoint"], condition=Q(run__isnull=True, role="test"), name="ledger_line_of_tests_unique"),
        ]
        indexes = [models.Index(fields=["endpoint"])]

    def __str__(self) -> str:
        return f"{self.run} {self.stage} {self.role} {self.endpoint}"


class Budget(models.Model):
    """The most that a run, or all runs on an endpoint, may spend. An empty cap is none.

    A budget that is lifted stays as a row without caps: when that was decides, as with any other change, who may go on.
    """

    run = models.OneToOneField(Run, null=True, on_delete=models.CASCADE, related_name="budget")
    endpoint = models.OneToOneField(Endpoint, null=True, on_delete=models.CASCADE, related_name="budget")
    most_calls = models.PositiveBigIntegerField(null=True, blank=True)
    most_nanodollars = models.PositiveBigIntegerField(null=True, blank=True)
    set_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    set_at = models.DateTimeField(db_default=Now(), help_text="by the clock of the database, as the times of jobs are")

    class Meta:
        ordering = ("id",)
        constraints = [
            models.CheckConstraint(
                condition=Q(run__isnull=False, endpoint__isnull=True) | Q(run__isnull=True, endpoint__isnull=False),
                name="budget_of_run_or_endpoint",
            ),
        ]

    def __str__(self) -> str:
        return f"budget of {self.run or self.endpoint}"


class Pace(models.Model):
    """How fast a server may be called, shared by all workers: a row for each server, model and key. `state` is a `trainer.pacing.Pace`."""

    base_url = models.CharField(max_length=500)
    model = models.CharField(max_length=200)
    key_env = models.CharField(max_length=100, blank=True)
    state = models.JSONField(default=dict)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["base_url", "model", "key_env"], name="pace_unique")]

    def __str__(self) -> str:
        return f"{self.model} at {self.base_url}"


class Batch(models.Model):
    """Calls handed over to a provider's Batch API together; it outlives the worker that did so."""

    class State(models.TextChoices):
        SUBMITTING = "submitting"
        IN_PROGRESS = "in_progress"
        COMPLETED = "completed"
        FAILED = "failed"
        EXPIRED = "expired"
        CANCELLED = "cancelled"

    id = models.CharField(max_length=32, primary_key=True)
    pace = models.ForeignKey(Pace, on_delete=models.CASCADE, related_name="batches")
    line = models.ForeignKey(LedgerLine, on_delete=models.CASCADE, related_name="batches")
    remote_id = models.CharField(max_length=200, blank=True)
    state = models.CharField(max_length=20, choices=State.choices, default=State.SUBMITTING)
    calls = models.PositiveIntegerField()
    done = models.PositiveIntegerField(default=0)
    error = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    polled_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ("-created_at",)
        verbose_name_plural = "batches"

    def __str__(self) -> str:
        return f"batch {self.remote_id or self.id}"


class PendingCall(models.Model):
    """A call that was permitted and is not done: nobody else makes it, and the budget holds what it can cost at most.

    It belongs to a job and is given up with it, or to a batch, which outlives the job.
    """

    key = models.CharField(max_length=64, primary_key=True)
    pace = models.ForeignKey(Pace, on_delete=models.CASCADE, related_name="pending")
    line = models.ForeignKey(LedgerLine, on_delete=models.CASCADE, related_name="pending")
    job = models.ForeignKey(Job, null=True, on_delete=models.CASCADE, related_name="pending_calls")
    batch = models.ForeignKey(Batch, null=True, on_delete=models.CASCADE, related_name="pending_calls")
    most_nanodollars = models.PositiveBigIntegerField(default=0)
    request = models.JSONField(null=True, help_text="kept for a batch alone: whoever comes by can store its answers")
    expires_at = models.DateTimeField(help_text="a call without a job or batch is lost after this")

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(key__regex="^[0-9a-f]{64}$"), name="pending_call_key_is_sha256")]
        indexes = [models.Index(fields=["pace"], condition=Q(request__isnull=True), name="pending_call_alone")]

    def __str__(self) -> str:
        return self.key[:12]
