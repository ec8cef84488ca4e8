from django.db import models

from experiments.models.run import Iteration


class Imitation(models.Model):
    """What is known of an iteration's tuning beside its metrics: the preflight, the first batch as it is read, and the last save.

    preflight, first_batch: `trainer.records.Preflight` and `FirstBatch` as JSON, empty until they are told.
    """

    iteration = models.OneToOneField(Iteration, on_delete=models.CASCADE, related_name="imitation")
    preflight = models.JSONField(default=dict)
    first_batch = models.JSONField(default=dict)
    saved_step = models.PositiveIntegerField(null=True, help_text="the last resumable save, after this step")
    steps = models.PositiveIntegerField(default=0)
    saved_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.iteration} imitation"
