from django.db import models
from django.db.models import Q

from experiments.models.calls import LedgerLine
from trainer.records import WHOLE


class Completion(models.Model):
    """One paid API call under the content address of its request; shared by all runs. Never a failure."""

    key = models.CharField(max_length=64, primary_key=True)
    endpoint = models.CharField(max_length=100)
    model = models.CharField(max_length=200)
    role = models.CharField(max_length=20, blank=True)
    request = models.JSONField()
    text = models.TextField(blank=True)
    finish_reason = models.CharField(max_length=30)
    prompt_tokens = models.PositiveIntegerField()
    cached_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField()
    nanodollars = models.PositiveBigIntegerField(default=0)
    estimated = models.BooleanField(default=False, help_text="the server told no usage: tokens are counted by us")
    batch = models.BooleanField(default=False)
    latency_s = models.FloatField()
    line = models.ForeignKey(
        LedgerLine,
        null=True,
        on_delete=models.SET_NULL,
        related_name="completions",
        db_index=False,  # the index below begins with it
        help_text="the run, stage and role that paid for it",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(key__regex="^[0-9a-f]{64}$"), name="completion_key_is_sha256")]
        indexes = [
            models.Index(fields=["line", "created_at", "key"], name="completion_newest"),
            models.Index(fields=["line"], condition=Q(estimated=True), name="completion_estimated"),
            models.Index(fields=["line"], condition=Q(batch=False), name="completion_not_in_batch"),
        ]

    def __str__(self) -> str:
        return self.key[:12]

    @property
    def good(self) -> bool:
        """Whether the reply is whole (see `trainer.records.Completion`)."""
        return self.finish_reason in WHOLE
