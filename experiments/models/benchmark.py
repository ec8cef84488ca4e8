from django.db import models
from django.db.models import Q

from trainer.records import BenchmarkItem


class Benchmark(models.Model):
    """A published benchmark that was imported from its official files. Nothing new may overlap with its items."""

    name = models.CharField(max_length=40, unique=True)
    title = models.CharField(max_length=100)
    home = models.CharField(max_length=200)
    licence = models.CharField(max_length=200)
    digests = models.JSONField(help_text="file -> sha256")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.title


class HeldOutItem(models.Model):
    """An item of an imported benchmark."""

    benchmark = models.ForeignKey(Benchmark, on_delete=models.CASCADE, related_name="items")
    key = models.CharField(max_length=80)
    task = models.CharField(max_length=80)
    prompt = models.TextField()
    question = models.TextField(blank=True, help_text="what is asked, where the prompt has more than that")
    gold = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ("id",)
        constraints = [
            models.UniqueConstraint(fields=["benchmark", "key"], name="held_out_item_unique"),
            models.CheckConstraint(condition=~Q(prompt=""), name="held_out_item_has_a_prompt"),
        ]

    def __str__(self) -> str:
        return self.key

    @property
    def record(self) -> BenchmarkItem:
        return BenchmarkItem(key=self.key, task=self.task, prompt=self.prompt, gold=self.gold, question=self.question)
