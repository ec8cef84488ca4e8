from django.conf import settings
from django.db import models


class SeedPool(models.Model):
    """Imported instructions that runs start from; a run copies them, so that a pool may go without harming its runs."""

    name = models.CharField(max_length=200, unique=True)
    source = models.CharField(max_length=500, help_text="file it was imported from, or how it was made")
    licence = models.CharField(max_length=200, blank=True)
    duplicates = models.PositiveIntegerField(default=0, help_text="exact repeats that were dropped on import")
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="seed_pools")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-created_at", "-id")

    def __str__(self) -> str:
        return self.name


class SeedInstruction(models.Model):
    """One instruction of a seed pool, in its place."""

    pool = models.ForeignKey(SeedPool, on_delete=models.CASCADE, related_name="instructions")
    position = models.PositiveIntegerField()
    text = models.TextField()
    input = models.TextField(blank=True)
    kind = models.CharField(max_length=100, blank=True)

    class Meta:
        ordering = ("position",)
        constraints = [models.UniqueConstraint(fields=["pool", "position"], name="seed_position_unique")]

    def __str__(self) -> str:
        return self.text
