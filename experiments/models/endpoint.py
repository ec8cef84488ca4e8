from django.db import models

from trainer.config import EndpointConfig


class Endpoint(models.Model):
    """An OpenAI-compatible base URL and a model there; the key itself stays in the environment."""

    name = models.SlugField(max_length=100, unique=True)
    base_url = models.CharField(max_length=500)
    model = models.CharField(max_length=200)
    key_env = models.CharField("variable with the key", max_length=100, blank=True)
    max_at_once = models.PositiveIntegerField("calls at once", default=16)
    timeout_s = models.FloatField("timeout in seconds", default=120.0)
    retries = models.PositiveIntegerField(default=5)
    send_seed = models.BooleanField("send the sample number as `seed`", default=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    def config(self) -> EndpointConfig:
        """The endpoint as a run's config freezes it."""
        return EndpointConfig(
            base_url=self.base_url,
            model=self.model,
            key_env=self.key_env,
            max_at_once=self.max_at_once,
            timeout_s=self.timeout_s,
            retries=self.retries,
            send_seed=self.send_seed,
        )
