"""The Django project. The Celery application is made here, so that whoever sends a task has the right broker."""

from lionweb.celery import app as celery_app

__all__ = ["celery_app"]
