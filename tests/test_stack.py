"""The servers and workers that the other tests lean on: real messages through each broker, and a worker that survives its database."""

import pytest
from celery import current_app
from django.conf import settings
from django.db import connection

from lionweb import broker
from tests import stack
from tests.stack import Workers, wait_until

CUT_ALL_OTHERS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid()
"""


def count_messages(*, visible: bool) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM kombu_message WHERE visible = %s", [visible])
        return int(cursor.fetchone()[0])


def send_unknown_job(queue: str) -> None:
    """A message about a job that is not there: the worker looks, finds nothing, and goes on."""
    current_app.send_task("experiments.tasks.run_job", args=[10**9], queue=queue)


@pytest.mark.parametrize("queue", ["teacher", "gpu"])
def test_a_message_in_the_database_reaches_the_worker_of_its_queue(celery_workers: Workers, queue: str) -> None:
    send_unknown_job(queue)

    wait_until(lambda: "succeeded" in celery_workers.log(queue), timeout_s=20, what="the task")
    assert "received" not in celery_workers.log("gpu" if queue == "teacher" else "teacher")


def test_delivered_messages_are_deleted_and_waiting_ones_kept(celery_workers: Workers) -> None:
    send_unknown_job("teacher")
    wait_until(lambda: count_messages(visible=False) == 1, timeout_s=20, what="the delivery")
    send_unknown_job("nobody-listens")

    assert broker.delete_delivered_messages() == 1
    assert (count_messages(visible=False), count_messages(visible=True)) == (0, 1)


def test_a_worker_whose_connections_were_cut_takes_messages_again(celery_workers: Workers) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    send_unknown_job("teacher")

    wait_until(lambda: "succeeded" in celery_workers.log("teacher"), timeout_s=30, what="the task after the cut")


def test_the_same_task_runs_through_a_real_redis(redis_workers: Workers) -> None:
    send_unknown_job("teacher")

    wait_until(lambda: "succeeded" in redis_workers.log("teacher"), timeout_s=20, what="the task")


def test_another_broker_is_not_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "CELERY_BROKER_URL", "redis://127.0.0.1:1/0")

    assert broker.delete_delivered_messages() == 0


def test_each_of_several_test_processes_has_a_database_of_its_own_on_a_server_that_was_given() -> None:
    url = stack.database_url_of_process("postgresql://me@db:5432/lionweb?sslmode=require", "gw1")
    assert url == "postgresql://me@db:5432/lionweb_gw1?sslmode=require"
    assert stack.test_database_url(url) == "postgresql://me@db:5432/test_lionweb_gw1?sslmode=require"
