from django.db import models
from django.db.models import Q

from experiments.models.run import Iteration, Job


class Checkpoint(models.Model):
    """A student's saved weights after an imitation.

    The row outlives the files: `deleted_at` says when they were deleted to make room. A pinned checkpoint is never deleted.
    """

    iteration = models.OneToOneField(Iteration, on_delete=models.CASCADE, related_name="checkpoint")
    path = models.CharField(max_length=500, help_text="below the data folder")
    step = models.PositiveIntegerField()
    first_loss = models.FloatField()
    last_loss = models.FloatField()
    size_bytes = models.PositiveBigIntegerField()
    manifest = models.JSONField(default=dict, help_text="config, versions and sha256 of each file")
    parent = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="children", help_text="what it was tuned from")
    pinned = models.BooleanField(default=False)
    deleted_at = models.DateTimeField(null=True, help_text="when its files were deleted")
    stored_at = models.CharField(max_length=500, blank=True, help_text="where a copy lies in the team's storage")
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.path


class Metric(models.Model):
    """One logged step of training. Each attempt keeps its own rows; the last attempt at a step is the one that counts."""

    iteration = models.ForeignKey(Iteration, on_delete=models.CASCADE, related_name="metrics")
    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="metrics")
    step = models.PositiveIntegerField()
    steps = models.PositiveIntegerField()
    loss = models.FloatField()
    learning_rate = models.FloatField()
    grad_norm = models.FloatField(null=True)
    tokens_per_s = models.FloatField(null=True)
    memory_gib = models.FloatField(null=True)
    gpu_percent = models.FloatField(null=True)

    class Meta:
        ordering = ("step", "job")
        constraints = [models.UniqueConstraint(fields=["iteration", "job", "step"], name="metric_step_unique")]
        indexes = [models.Index(fields=["iteration", "step"])]

    def __str__(self) -> str:
        return f"step {self.step}: {self.loss}"


class BenchmarkScore(models.Model):
    """The score of one task after an iteration; task is empty for the macro average over the tasks."""

    iteration = models.ForeignKey(Iteration, on_delete=models.CASCADE, related_name="scores")
    benchmark = models.CharField(max_length=50)
    task = models.CharField(max_length=100, blank=True)
    value = models.FloatField()
    n = models.PositiveIntegerField()
    standard_error = models.FloatField()

    class Meta:
        ordering = ("benchmark", "task")
        constraints = [
            models.UniqueConstraint(fields=["iteration", "benchmark", "task"], name="score_unique"),
            models.CheckConstraint(condition=Q(value__gte=0, value__lte=1), name="score_range"),
        ]

    def __str__(self) -> str:
        return f"{self.benchmark} {self.task or 'macro'} {self.value:.3f}"


class BenchmarkAnswer(models.Model):
    """What a checkpoint answered to one benchmark item; `correct` is null when it could not be read."""

    iteration = models.ForeignKey(Iteration, on_delete=models.CASCADE, related_name="answers")
    benchmark = models.CharField(max_length=50)
    item = models.CharField(max_length=100)
    task = models.CharField(max_length=100)
    prompt = models.TextField()
    gold = models.TextField()
    reply = models.TextField(blank=True)
    correct = models.BooleanField(null=True)

    class Meta:
        ordering = ("task", "item")
        constraints = [models.UniqueConstraint(fields=["iteration", "benchmark", "item"], name="answer_item_unique")]
        indexes = [models.Index(fields=["iteration", "benchmark", "task"])]

    def __str__(self) -> str:
        return f"{self.item}: {self.reply}"
