from django.conf import settings
from django.db import models
from django.db.models import Q

from experiments.models.verdict import EASY, HARD, Verdict


class Review(models.Model):
    """A person's ruling on a verdict that the referee gave: hard or easy. One of each person; to rule again changes it."""

    verdict = models.ForeignKey(Verdict, on_delete=models.CASCADE, related_name="reviews")
    reviewer = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="reviews")
    label = models.CharField(max_length=12, choices=[(HARD, HARD), (EASY, EASY)])
    comment = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("id",)
        constraints = [
            models.UniqueConstraint(fields=["verdict", "reviewer"], name="review_one_per_person"),
            models.CheckConstraint(condition=Q(label__in=[HARD, EASY]), name="review_hard_or_easy"),
        ]

    def __str__(self) -> str:
        return self.label
