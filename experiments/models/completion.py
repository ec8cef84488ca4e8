from django.db import models
from django.db.models import Q

from experiments.models.run import Run


class Completion(models.Model):
    """One paid API call under the content address of its request; shared by all runs. Never a failure."""

    key = models.CharField(max_length=64, primary_key=True)
    endpoint = models.CharField(max_length=100)
    model = models.CharField(max_length=200)
    request = models.JSONField()
    text = models.TextField(blank=True)
    finish_reason = models.CharField(max_length=30)
    prompt_tokens = models.PositiveIntegerField()
    completion_tokens = models.PositiveIntegerField()
    latency_s = models.FloatField()
    run = models.ForeignKey(Run, null=True, on_delete=models.SET_NULL, related_name="completions", help_text="the run that paid for it")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(key__regex="^[0-9a-f]{64}$"), name="completion_key_is_sha256")]

    def __str__(self) -> str:
        return self.key[:12]
