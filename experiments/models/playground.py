from django.conf import settings
from django.db import models

from experiments.models.checkpoint import Checkpoint
from experiments.models.completion import Completion
from experiments.models.errand import Errand
from experiments.models.instruction import Instruction


class Speaker(models.TextChoices):
    """Who answers in the playground."""

    CHECKPOINT = "checkpoint"
    EARLIER = "earlier", "earlier checkpoint"
    BASE = "base", "base student"
    TEACHER = "teacher"


class Question(models.Model):
    """What a person asked a checkpoint in the playground."""

    checkpoint = models.ForeignKey(Checkpoint, on_delete=models.CASCADE, related_name="questions")
    asked_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="questions")
    text = models.TextField()
    temperature = models.FloatField(default=0.7)
    max_new_tokens = models.PositiveIntegerField(default=256)
    seed = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return self.text[:80]


class Answer(models.Model):
    """What one speaker says to a question; `text` grows while it speaks. Its errand says how far it is.

    A teacher's answer has the completion it was paid by, and the instruction where the run had asked it the same before.
    """

    question = models.ForeignKey(Question, on_delete=models.CASCADE, related_name="answers")
    speaker = models.CharField(max_length=10, choices=Speaker.choices)
    checkpoint = models.ForeignKey(
        Checkpoint, null=True, on_delete=models.SET_NULL, related_name="answers", help_text="whose weights speak"
    )
    errand = models.ForeignKey(Errand, null=True, on_delete=models.SET_NULL, related_name="answers")
    completion = models.ForeignKey(Completion, null=True, on_delete=models.SET_NULL, related_name="+")
    instruction = models.ForeignKey(Instruction, null=True, on_delete=models.SET_NULL, related_name="+")
    text = models.TextField(blank=True)
    tokens = models.PositiveIntegerField(default=0)
    seconds = models.FloatField(null=True)
    finished = models.BooleanField(default=False)
    failure = models.TextField(blank=True)

    class Meta:
        ordering = ("id",)
        constraints = [models.UniqueConstraint(fields=["question", "speaker"], name="answer_speaker_unique")]

    def __str__(self) -> str:
        return f"{self.speaker}: {self.text[:80]}"
