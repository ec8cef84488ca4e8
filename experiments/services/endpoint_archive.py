"""Archiving an endpoint: it is no longer offered to new runs, and everything that knows it goes on."""

from __future__ import annotations

from django.db.models.functions import Now

from experiments.models import Endpoint


def archive(endpoint: Endpoint) -> bool:
    """Offer the endpoint to no new run; whether that changed anything."""
    return Endpoint.objects.filter(pk=endpoint.pk, archived_at=None).update(archived_at=Now()) > 0


def restore(endpoint: Endpoint) -> bool:
    """Offer the endpoint again; whether that changed anything."""
    return Endpoint.objects.filter(pk=endpoint.pk, archived_at__isnull=False).update(archived_at=None) > 0
