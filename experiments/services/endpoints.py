"""The endpoints of a run: frozen when it was launched, but for what changes no answer, and for those that never gave one."""

from __future__ import annotations

from dataclasses import replace

from experiments.models import Endpoint, LedgerLine, Run
from trainer.config import EndpointConfig, RunConfig, batch_roles_without_api

OPERATIONAL = (
    *("price_input", "price_cached", "price_output"),
    *("rpm", "input_tpm", "output_tpm", "max_at_once"),
    *("timeout_s", "connect_timeout_s", "retries"),
)
"""Settings of an endpoint that change no answer: they are taken as they are now, not as the run froze them."""


def live_endpoints(config: RunConfig) -> dict[str, EndpointConfig]:
    """The run's endpoints with today's limits, prices and timeouts, where the row still is the same server and model."""
    rows = {row.name: row for row in Endpoint.objects.filter(name__in=list(config.endpoints))}
    live = dict(config.endpoints)
    for name, frozen in config.endpoints.items():
        row = rows.get(name)
        if row is not None and (row.base_url, row.model) == (frozen.base_url, frozen.model):
            live[name] = replace(frozen, **{setting: getattr(row, setting) for setting in OPERATIONAL})
    return live


def take_up_corrections(run: Run) -> list[str]:
    """Freeze anew, as they are now, the endpoints that never gave the run an answer; the roles that leave batch mode by it.

    So a wrong address or model is corrected on the endpoint's page, and a role calls at once where its endpoint turned out to offer no
    Batch API. Where there are answers, other ones would be mixed with them.
    """
    config = run.run_config()
    lines = LedgerLine.objects.filter(run=run)
    answered = set((lines.filter(calls__gt=0) | lines.filter(saved__gt=0)).values_list("endpoint", flat=True))
    rows = Endpoint.objects.filter(name__in=set(config.endpoints) - answered)
    now = {row.name: row.config() for row in rows}
    corrected = replace(config, endpoints={**config.endpoints, **now})
    out_of_batch = batch_roles_without_api(corrected)
    corrected = replace(corrected, **{role: replace(getattr(corrected, role), batch=False) for role in out_of_batch})
    if corrected != config:
        run.config = corrected.as_dict()
        run.save(update_fields=["config"])
    return out_of_batch
