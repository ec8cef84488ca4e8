from django.db import models

from experiments.models.instruction import Instruction
from experiments.models.run import Iteration
from trainer import diversity


class Traits(models.Model):
    """What kind of text an instruction is, found out once it was made."""

    instruction = models.OneToOneField(Instruction, primary_key=True, on_delete=models.CASCADE, related_name="traits")
    words = models.PositiveIntegerField(help_text="tokens of trainer.similarity")
    language = models.CharField(max_length=8, blank=True, help_text="ISO 639-1; empty where it cannot be told")
    verb = models.CharField(max_length=60, blank=True, help_text="the root verb, as a lemma")
    noun = models.CharField(max_length=60, blank=True, help_text="the head of its direct object")

    class Meta:
        indexes = [models.Index(fields=["verb", "noun"])]

    def __str__(self) -> str:
        return f"{self.verb} {self.noun}".strip()


class Diversity(models.Model):
    """How varied the instructions of an iteration are, beside the seeds: a record of the trainer's as JSON."""

    iteration = models.OneToOneField(Iteration, primary_key=True, on_delete=models.CASCADE, related_name="diversity")
    values = models.JSONField()

    def __str__(self) -> str:
        return f"iteration {self.iteration_id}"

    @property
    def record(self) -> diversity.Diversity:
        return diversity.diversity_from_dict(self.values)
