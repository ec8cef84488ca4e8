"""The Celery application. Workers: `celery -A lionweb worker -Q teacher` and `-Q gpu`; the Procfile has the whole command lines."""

import os

from celery import Celery
from celery.signals import setup_logging
from kombu.transport import TRANSPORT_ALIASES

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lionweb.settings")

# The name alone: SQLAlchemy is imported by those who open a `sqla+...` broker.
TRANSPORT_ALIASES["sqla"] = "lionweb.broker_transport:Transport"
app = Celery("lionweb")
app.set_default()  # for every thread: "current" alone holds in the thread that made it, and the web server has many
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@setup_logging.connect
def keep_djangos_logging(**_: object) -> None:
    """That somebody listens to this signal keeps Celery from setting up logging of its own."""
