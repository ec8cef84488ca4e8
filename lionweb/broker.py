"""Celery's messages in Postgres, the broker when no other is set (lionweb/broker_transport.py has the transport)."""

from functools import cache

from django.conf import settings
from kombu.exceptions import OperationalError
from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError

PREFIX = "sqla+"

BROKER_ERRORS = (OperationalError, OSError, SQLAlchemyError)
"""What a broker that is away raises, whichever it is."""


def create_tables() -> None:
    """Makes the broker's tables before the first worker looks for them: several workers making them at once get in each other's way."""
    from lionweb.celery import app

    if settings.CELERY_BROKER_URL.startswith(PREFIX):
        with app.connection_for_write() as connection:
            connection.default_channel.queue_declare(queue=settings.CELERY_TASK_DEFAULT_QUEUE)


def delete_delivered_messages() -> int:
    """Deletes what the transport leaves behind, and says how many: it marks a delivered message as invisible and keeps it for ever.

    Does nothing where another broker is set.
    """
    url = settings.CELERY_BROKER_URL
    if not url.startswith(PREFIX):
        return 0
    engine = _engine(url.removeprefix(PREFIX))
    if not inspect(engine).has_table("kombu_message"):
        return 0
    with engine.begin() as connection:
        return connection.execute(text("DELETE FROM kombu_message WHERE NOT visible")).rowcount


def close_connections() -> None:
    """Lets go of the broker's database, so that it can be dropped: for the tests."""
    from lionweb.broker_transport import Channel

    for engine, _ in Channel._engines.values():
        engine.dispose()
    if settings.CELERY_BROKER_URL.startswith(PREFIX):
        _engine(settings.CELERY_BROKER_URL.removeprefix(PREFIX)).dispose()


@cache
def _engine(url: str) -> Engine:
    return create_engine(url, pool_pre_ping=True, pool_size=1)
