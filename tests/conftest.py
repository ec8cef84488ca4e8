"""What every test can ask for: a real PostgreSQL, real workers, a real browser, and people with roles.

The settings read their environment when they are first imported, so that it is set here, before pytest-django does so.
With DATABASE_URL given, the tests make their database on that server; else on an embedded one of their own. Where several processes
share the tests (pytest-xdist), each has its own data folder and its own server, or its own database on the one given.
"""

import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import django
import pytest

from lionweb import embedded
from tests import stack
from trainer.text import storable

if TYPE_CHECKING:
    from django.contrib.auth.models import User
    from django.test import Client
    from playwright.sync_api import Browser, Page
    from pytest_django.live_server_helper import LiveServer

    from experiments.roles import Role
    from trainer.demo.process import OfflineTeacher

ASYNC_UNSAFE = "DJANGO_ALLOW_ASYNC_UNSAFE"
DATA = stack.make_data_folder()
PROCESS = os.environ.get("PYTEST_XDIST_WORKER", "")
# But for what the import of lionweb has set: pytest-django would read the settings by it before this file has its say.
GIVEN_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
OWN_POSTGRES = "DATABASE_URL" not in os.environ
os.environ.setdefault("DATABASE_URL", embedded.database_url(DATA / "postgres"))
if PROCESS and not OWN_POSTGRES:
    os.environ["DATABASE_URL"] = stack.database_url_of_process(os.environ["DATABASE_URL"], PROCESS)
TEST_DATABASE_URL = stack.test_database_url(os.environ["DATABASE_URL"])
os.environ.update(
    DJANGO_SETTINGS_MODULE="lionweb.settings",
    CELERY_BROKER_URL="sqla+postgresql+psycopg" + TEST_DATABASE_URL[TEST_DATABASE_URL.index("://") :],
    LIONWEB_DATA=str(DATA),
    LIONWEB_LEASE_S="3",
    LIONWEB_HEARTBEAT_S="0.5",
    LIONWEB_SWEEP_S="0.5",
    SECRET_KEY="for the tests",
)
django.setup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests last: from the first of them on, Playwright's event loop runs in this thread, and `asyncio.run` would be refused."""
    items.sort(key=lambda item: "browser" in getattr(item, "fixturenames", ()))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """The processes that are started now get the environment as it was given: each makes its own of it, as this one did."""
    os.environ.clear()
    os.environ.update(GIVEN_ENVIRONMENT)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports go from process to process as UTF-8: half a surrogate pair that a test logged would end the process."""
    report = yield
    report.sections = [(name, storable(text)) for name, text in report.sections]
    return report


def pytest_unconfigure() -> None:
    shutil.rmtree(DATA, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The server's URL. Nothing is started for tests that ask for no database."""
    if not OWN_POSTGRES:
        yield os.environ["DATABASE_URL"]
        return
    with embedded.running(DATA / "postgres", options=stack.FAST_POSTGRES) as url:
        yield url


@pytest.fixture(scope="session")
def django_db_modify_db_settings(postgres: str) -> None:
    """pytest-django asks for this before it makes the test database."""


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """As pytest-django's; at the end the broker's connections are closed first, or the database could not be dropped."""
    from lionweb import broker

    yield
    broker.close_connections()


# Jobs -------------------------------------------------------------------------------------------------------------------------------


def _workers(folder: Path, broker_url: str) -> stack.Workers:
    environment = {**os.environ, "DATABASE_URL": TEST_DATABASE_URL, "CELERY_BROKER_URL": broker_url, "PYTHONUNBUFFERED": "1"}
    environment.pop(ASYNC_UNSAFE, None)  # a worker that asks the database inside its event loop has to fail here too
    return stack.Workers(environment, folder)


@pytest.fixture
def celery_workers(transactional_db: None, tmp_path: Path) -> Iterator[stack.Workers]:
    """A teacher and a gpu worker on the test database, with the broker in it; `kill` and `start` are for the test to use."""
    from django.conf import settings
    from django.db import connection

    from lionweb import broker

    broker.create_tables()
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM kombu_message")
    workers = _workers(tmp_path, settings.CELERY_BROKER_URL)
    try:
        workers.start(*stack.QUEUES)
        yield workers
    finally:
        workers.stop()
        broker.close_connections()


@pytest.fixture
def redis_broker(tmp_path: Path) -> Iterator[str]:
    """The broker URL of a real Redis, and this process sends its messages there."""
    if not shutil.which("redis-server"):
        pytest.skip("needs redis-server (Debian's package of that name) on the PATH")
    from lionweb.celery import app

    with stack.redis_server(tmp_path) as url:
        before = app.conf.broker_url, app.conf.broker_write_url, app.conf.broker_read_url
        app.conf.broker_url = app.conf.broker_write_url = app.conf.broker_read_url = url
        _forget_connections()
        yield url
        app.conf.broker_url, app.conf.broker_write_url, app.conf.broker_read_url = before
        _forget_connections()


def _forget_connections() -> None:
    from kombu import pools

    from lionweb.celery import app

    app.set_default()
    app.amqp._producer_pool = None
    app._pool = None
    pools.reset()


@pytest.fixture
def redis_workers(transactional_db: None, redis_broker: str, tmp_path: Path) -> Iterator[stack.Workers]:
    workers = _workers(tmp_path, redis_broker)
    try:
        workers.start(*stack.QUEUES)
        yield workers
    finally:
        workers.stop()


@pytest.fixture
def offline_teacher() -> Iterator["OfflineTeacher"]:
    from trainer.demo.process import OfflineTeacher

    with OfflineTeacher() as teacher:
        yield teacher


# People and browsers ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def person(db: None) -> Callable[["Role"], "User"]:
    """Makes somebody of a role: `person("member")` is called member."""
    from experiments.management.commands.sign_in_link import ensure_user

    return lambda role: ensure_user(role, role=role)


@pytest.fixture
def client_of(person: Callable[["Role"], "User"]) -> Callable[["Role"], "Client"]:
    """A Django test client that is signed in as somebody of the role."""
    from django.test import Client

    def make(role: "Role") -> Client:
        client = Client()
        client.force_login(person(role), backend="django.contrib.auth.backends.ModelBackend")
        return client

    return make


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """One Chromium for the session. A missing one fails the tests: a suite that skips its browser tests would still look green."""
    from playwright.sync_api import sync_playwright

    from tests.find_browser import ARGUMENTS, MISSING, find_browser

    path = find_browser()
    if path is None:
        pytest.fail(MISSING, pytrace=False)
    with sync_playwright() as playwright, pytest.MonkeyPatch.context() as patch:
        # Playwright's own event loop runs in the thread of the tests from here on, and Django would take us for asynchronous code.
        patch.setenv(ASYNC_UNSAFE, "true")
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def browser_page(browser: "Browser", live_server: "LiveServer") -> Iterator["Page"]:
    """A fresh page of the live server, nobody signed in. Whatever its scripts throw fails the test."""
    context = browser.new_context(base_url=live_server.url)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []


@pytest.fixture
def page_of(browser_page: "Page", client_of: Callable[["Role"], "Client"], live_server: "LiveServer") -> Callable[["Role"], "Page"]:
    """The browser's page, signed in as somebody of the role."""

    def make(role: "Role") -> "Page":
        cookie = client_of(role).cookies["sessionid"].value
        browser_page.context.add_cookies([{"name": "sessionid", "value": cookie, "url": live_server.url}])
        return browser_page

    return make
