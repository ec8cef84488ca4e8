from django.conf import settings
from django.db import models
from django.db.models import Q

from experiments.models.checkpoint import Checkpoint
from experiments.states import LIVE, JobState, Queue


class ErrandKind(models.TextChoices):
    """What can be asked of a checkpoint."""

    MERGED = "merged", "merged weights"
    ADAPTER = "adapter", "adapter alone"
    GGUF = "gguf", "GGUF"
    PUSH = "push", "push to the Hub"
    STORE = "store", "copy to the team's storage"
    RESTORE = "restore", "bring back from the team's storage"
    VERIFY = "verify", "check the files"
    ANSWER = "answer", "answer in the playground"


class Errand(models.Model):
    """Something a person asked of a checkpoint beside its run. Claimed, leased and swept as a job is, but tried once.

    options: what was asked, as the kind reads it; result: what came of it.
    """

    kind = models.CharField(max_length=10, choices=ErrandKind.choices)
    checkpoint = models.ForeignKey(Checkpoint, on_delete=models.CASCADE, related_name="errands")
    requested_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="errands")
    queue = models.CharField(max_length=10, choices=Queue.choices, default=Queue.GPU)
    state = models.CharField(max_length=10, choices=JobState.choices, default=JobState.QUEUED)
    options = models.JSONField(default=dict)
    result = models.JSONField(default=dict)
    note = models.TextField(blank=True, help_text="how far it is, in words")
    reason = models.TextField(blank=True, help_text="why it ended as it did, in words for a person")
    worker = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    sent_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    lease_expires_at = models.DateTimeField(null=True)
    stop_requested_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ("-id",)
        constraints = [
            models.CheckConstraint(
                condition=~Q(state=JobState.RUNNING) | (Q(lease_expires_at__isnull=False) & ~Q(worker="")), name="errand_running_has_lease"
            ),
        ]
        indexes = [models.Index(fields=["state"], condition=Q(state__in=sorted(LIVE)), name="errand_live")]

    def __str__(self) -> str:
        return f"errand {self.pk}: {self.kind} of {self.checkpoint}"
