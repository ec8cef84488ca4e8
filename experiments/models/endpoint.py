from dataclasses import fields

from django.db import models

from trainer.config import EndpointConfig


class Endpoint(models.Model):
    """An OpenAI-compatible base URL and a model there; the key itself stays in the environment."""

    name = models.SlugField(max_length=100, unique=True)
    base_url = models.CharField(max_length=500)
    model = models.CharField(max_length=200)
    key_env = models.CharField("variable with the key", max_length=100, blank=True)
    price_input = models.FloatField("price of input", default=0.0, help_text="$ per million tokens")
    price_cached = models.FloatField("price of cached input", default=0.0, help_text="$ per million tokens; 0: as other input")
    price_output = models.FloatField("price of output", default=0.0, help_text="$ per million tokens")
    rpm = models.PositiveIntegerField("requests a minute", default=0)
    input_tpm = models.PositiveBigIntegerField("input tokens a minute", default=0)
    output_tpm = models.PositiveBigIntegerField("output tokens a minute", default=0)
    max_at_once = models.PositiveIntegerField("calls at once", default=16)
    timeout_s = models.FloatField("timeout in seconds", default=120.0)
    connect_timeout_s = models.FloatField("timeout to connect in seconds", default=10.0)
    retries = models.PositiveIntegerField(default=5)
    structured = models.CharField(
        "structured output", max_length=20, default="text", choices=[(c, c) for c in ("text", "json_schema", "json_object")]
    )
    length_parameter = models.CharField(
        "name of the length limit", max_length=30, default="max_tokens", choices=[(c, c) for c in ("max_tokens", "max_completion_tokens")]
    )
    send_seed = models.BooleanField("send the sample number as `seed`", default=False)
    extra = models.TextField("extra parameters", blank=True)
    batch_api = models.BooleanField("offers the Batch API", default=False)
    created_at = models.DateTimeField(auto_now_add=True)
    archived_at = models.DateTimeField(null=True, blank=True, editable=False, help_text="no longer offered to new runs; those on it go on")

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    def config(self) -> EndpointConfig:
        """The endpoint as a run's config freezes it."""
        return EndpointConfig(**{f.name: getattr(self, f.name) for f in fields(EndpointConfig)})
