from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.search import SearchVector, SearchVectorField
from django.db import models
from django.db.models import Q

from experiments.models.completion import Completion
from experiments.models.run import Iteration, Run
from trainer.records import Fate, Origin


class Instruction(models.Model):
    """A task text of one run, with its origin and parent. `key` is the trainer's name for it, unique in the run."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="instructions")
    iteration = models.ForeignKey(
        Iteration, on_delete=models.CASCADE, related_name="instructions", help_text="the iteration that made it; 0 for seeds"
    )
    key = models.CharField(max_length=60)
    position = models.PositiveIntegerField(help_text="its place in the run's cache pool")
    text = models.TextField()
    input = models.TextField(blank=True)
    origin = models.CharField(max_length=10, choices=[(o.value, o.value) for o in Origin])
    parent = models.ForeignKey("self", null=True, blank=True, on_delete=models.CASCADE, related_name="children")
    kind = models.CharField(max_length=100, blank=True)
    search = models.GeneratedField(
        expression=SearchVector("text", "input", config="simple"), output_field=SearchVectorField(), db_persist=True
    )

    class Meta:
        ordering = ("position",)
        constraints = [
            models.UniqueConstraint(fields=["run", "key"], name="instruction_key_unique"),
            models.UniqueConstraint(fields=["run", "position"], name="instruction_position_unique"),
            models.CheckConstraint(
                condition=Q(origin=Origin.SEED.value, parent__isnull=True) | (~Q(origin=Origin.SEED.value) & Q(parent__isnull=False)),
                name="instruction_parent_unless_seed",
            ),
        ]
        indexes = [
            GinIndex(fields=["search"], name="instruction_search"),
            models.Index(fields=["run", "kind"]),
            models.Index(fields=["run", "origin"]),
            models.Index(fields=["iteration", "position"]),
        ]

    def __str__(self) -> str:
        return self.text


class Candidate(models.Model):
    """One attempt at a new instruction, kept whatever became of it."""

    iteration = models.ForeignKey(Iteration, on_delete=models.CASCADE, related_name="candidates")
    key = models.CharField(max_length=60)
    origin = models.CharField(max_length=10, choices=[(o.value, o.value) for o in Origin])
    attempt = models.PositiveIntegerField()
    parent = models.ForeignKey(Instruction, on_delete=models.CASCADE, related_name="candidates")
    text = models.TextField(blank=True)
    fate = models.CharField(max_length=20, choices=[(f.value, f.value) for f in Fate])
    overlap = models.TextField(blank=True, help_text="the benchmark item it is too close to, and how")
    prompt = models.CharField(max_length=40, blank=True, help_text="which of our prompts, in which version")
    nearest = models.ForeignKey(Instruction, null=True, on_delete=models.SET_NULL, related_name="+")
    similarity = models.FloatField(null=True, help_text="ROUGE-L F1 to the nearest known instruction, 0..1")
    completion = models.ForeignKey(Completion, null=True, on_delete=models.SET_NULL, related_name="+")

    class Meta:
        ordering = ("attempt", "-origin")
        constraints = [
            models.UniqueConstraint(fields=["iteration", "origin", "attempt"], name="candidate_attempt_unique"),
            models.CheckConstraint(
                condition=Q(similarity__isnull=True) | Q(similarity__gte=0, similarity__lte=1), name="candidate_similarity_range"
            ),
        ]
        indexes = [models.Index(fields=["iteration", "fate"])]

    def __str__(self) -> str:
        return f"{self.key} {self.fate}"
