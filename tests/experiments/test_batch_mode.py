"""Calls by the Batch API, from the rows in Postgres to the offline teacher's process and back: paid once, at half the price."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx2 as httpx
import openai
import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db.models import F, Sum
from django.db.models.functions import Now

from experiments.models import Batch, Budget, Completion, Endpoint, Job, LedgerLine, PendingCall
from experiments.services import batch_polls, jobs
from experiments.services.calls import PostgresCalls
from experiments.states import JobState
from tests import make
from tests.asking import CLIENT
from tests.stack import wait_until
from trainer import batch_api, prompts, records
from trainer.batch_api import line_of
from trainer.batch_mode import BatchDesk
from trainer.calls import Call
from trainer.config import EndpointConfig, RoleConfig
from trainer.demo.chat import MODEL
from trainer.demo.knobs import Knobs
from trainer.demo.process import OfflineTeacher
from trainer.errors import BudgetSpent, ConfigError, ResponseFormatError, TeacherUnavailable
from trainer.plan import Stage, Step
from trainer.prices import cost
from trainer.wire import call_of, completion_key, request_of

pytestmark = pytest.mark.django_db(transaction=True)  # turns close and open connections as workers do

Ends = list[records.Completion | BaseException]

LONGEST_S = 20.0
MANY = 24


class WatchedCalls(PostgresCalls):
    """Tells when a batch has arrived at the provider; `unheard` loses that news, as a worker that is killed just then does."""

    def __init__(self, job: Job, *, unheard: bool = False) -> None:
        super().__init__(job.stage.iteration.run.run_config(), job=job)
        self.arrived = threading.Event()
        self._unheard = unheard

    def update_batch(self, batch_id: str, *, remote_id: str = "", state: str = "", done: int | None = None, error: str = "") -> None:
        if not self._unheard:
            super().update_batch(batch_id, remote_id=remote_id, state=state, done=done, error=error)
        self.arrived.set()


class SnatchedCalls(WatchedCalls):
    """Another process asks after each batch in the moment between its writing down and its submission."""

    def open_batch(self, endpoint: str, batch_id: str, keys: Sequence[str]) -> None:
        super().open_batch(endpoint, batch_id, keys)
        if Batch.objects.count() == 1:
            assert self.poll_batch(batch_id, every_s=60.0)


class Tampering(httpx.AsyncBaseTransport):
    """The network, and a hand that changes the first file of answers, by its lines."""

    def __init__(self, change: Callable[[list[dict[str, Any]]], list[Any]]) -> None:
        self._network = httpx.AsyncHTTPTransport()
        self._change: Callable[[list[dict[str, Any]]], list[Any]] | None = change

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._network.handle_async_request(request)
        if not request.url.path.endswith("/content") or self._change is None:
            return response
        lines = self._change([json.loads(line) for line in (await response.aread()).splitlines()])
        self._change = None
        return httpx.Response(200, text="\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))


class Meddling(httpx.AsyncBaseTransport):
    """The network, and a hand that answers, or holds up, the requests it picks out; None lets one through."""

    def __init__(self, meddle: Callable[[httpx.Request], Awaitable[httpx.Response | None]]) -> None:
        self._network = httpx.AsyncHTTPTransport()
        self._meddle = meddle

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._meddle(request) or await self._network.handle_async_request(request)


def answers(status: int, *, to: Callable[[httpx.Request], bool], times: int = 1) -> Meddling:
    """Another server between, that gives this status to so many of the requests."""
    left = iter(range(times))

    async def meddle(request: httpx.Request) -> httpx.Response | None:
        if not to(request) or next(left, None) is None:
            return None
        return httpx.Response(status, json={"error": {"message": "The gateway says no."}}, request=request)

    return Meddling(meddle)


def asks_after_a_batch(request: httpx.Request) -> bool:
    return request.method == "GET" and "/batches/" in request.url.path


def fetches_answers(request: httpx.Request) -> bool:
    return request.url.path.endswith("/content")


def sends_requests(request: httpx.Request) -> bool:
    return request.method == "POST" and request.url.path.endswith("/files")


class Scene:
    """An offline teacher, and a run whose one endpoint it is."""

    def __init__(self, teacher: OfflineTeacher, owner: User, **endpoint: Any) -> None:
        self.teacher = teacher
        told = {"base_url": teacher.base_url, "timeout_s": 1.0, "retries": 5, "key_env": "", **endpoint}
        self.config = EndpointConfig(model=MODEL, price_input=1.0, price_output=2.0, send_seed=True, batch_api=True, **told)
        base = make.make_config()
        roles = {name: replace(getattr(base, name), endpoint="fake") for name in ("teacher", "referee", "generator")}
        self.run = make.make_run(owner, config=replace(base, endpoints={"fake": self.config}, **roles))
        self.job = make.make_job(self.run.iterations.get(), Stage.IMITATION, Step.TEACHER_RESPONSES)

    def another_job(self) -> Job:
        return make.make_job(self.run.iterations.get(), Stage.EVALUATION, Step.BENCHMARKS)

    def wanted(self, count: int = MANY) -> list[Call]:
        messages = prompts.teacher_messages(records.Instruction(key="one", text="reverse: badc"))
        role = RoleConfig(endpoint="fake", max_tokens=100)
        requests = [request_of("fake", self.config, role, messages, sample=number) for number in range(count)]
        return [call_of(completion_key(request), "teacher", request, self.config, batch=True) for request in requests]

    def charged(self) -> int:
        """Calls the offline teacher has charged for; each of them by a batch."""
        stats = self.teacher.stats()
        assert stats["charged"] == stats["batch_calls"]
        return int(stats["charged"])

    @asynccontextmanager
    async def desk(
        self, calls: PostgresCalls, *, network: httpx.AsyncBaseTransport | None = None, **options: Any
    ) -> AsyncIterator[BatchDesk]:
        thread = ThreadPoolExecutor(1)
        told = {"poll_s": 0.2, "quiet_s": 0.1, **options}
        http = httpx.AsyncClient(transport=network, timeout=5.0)
        async with openai.AsyncOpenAI(base_url=self.config.base_url, api_key="none", max_retries=0, http_client=http) as client:
            desk = BatchDesk("fake", lambda: self.config, calls, client, thread=thread, **told)
            desk.start()
            try:
                yield desk
            finally:
                await desk.stop()
                await asyncio.get_running_loop().run_in_executor(thread, calls.close)
                thread.shutdown()

    def ask(self, wanted: Sequence[Call], *, calls: PostgresCalls | None = None, **options: Any) -> Ends:
        """What comes of these calls, through a desk of their own."""

        async def work() -> Ends:
            async with self.desk(calls or WatchedCalls(self.job), **options) as desk, asyncio.timeout(LONGEST_S):
                return await asyncio.gather(*map(desk.answer, wanted), return_exceptions=True)

        return asyncio.run(work())

    def submit_and_die(self, wanted: Sequence[Call], *, unheard: bool = False) -> Ends:
        """A worker that ends as soon as its batch is at the provider; gives what became of those who waited."""

        async def work() -> Ends:
            calls = WatchedCalls(self.job, unheard=unheard)
            async with self.desk(calls, poll_s=60.0) as desk:
                waiting = [asyncio.create_task(desk.answer(call)) for call in wanted]
                assert await asyncio.to_thread(calls.arrived.wait, LONGEST_S)
            return await asyncio.gather(*waiting, return_exceptions=True)

        ends = asyncio.run(work())
        jobs.end(self.job, JobState.CRASHED)
        return ends


Setting = Callable[..., Scene]


@pytest.fixture(autouse=True)
def quick_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that makes a batch of a file within a second, or never."""
    monkeypatch.setattr(batch_api, "CREATE_S", 1.0)


@pytest.fixture
def setting(person: Callable[[Any], User]) -> Iterator[Setting]:
    """Makes a scene with a teacher under these knobs, on an endpoint with these settings."""
    running: list[OfflineTeacher] = []

    def make_scene(knobs: Knobs | None = None, **endpoint: Any) -> Scene:
        running.append(OfflineTeacher(knobs or Knobs(batch_s=0.5)).__enter__())
        return Scene(running[-1], person("member"), **endpoint)

    yield make_scene
    for teacher in running:
        teacher.stop()


@contextmanager
def each_paid_once(scene: Scene, wanted: Sequence[Call]) -> Iterator[None]:
    """After the block every call is stored, charged once by the server and counted once by us, and none is on its way."""
    yield
    assert set(Completion.objects.values_list("key", flat=True)) == {call.key for call in wanted}
    assert scene.charged() == LedgerLine.objects.aggregate(calls=Sum("calls"))["calls"] == len(wanted)
    assert not PendingCall.objects.exists()
    assert not Batch.objects.filter(ended_at=None).exists()


def all_answered(ends: Ends, wanted: Sequence[Call]) -> bool:
    return [end.key if isinstance(end, records.Completion) else end for end in ends] == [call.key for call in wanted]


def test_a_batch_answers_all_its_calls_at_half_the_price(setting: Setting) -> None:
    scene = setting()
    wanted = scene.wanted()
    with each_paid_once(scene, wanted):
        ends = scene.ask(wanted)
    assert all_answered(ends, wanted)
    line, batch = LedgerLine.objects.get(), Batch.objects.get()
    alone = cost(scene.config, prompt_tokens=line.prompt_tokens, completion_tokens=line.completion_tokens)
    assert line.nanodollars == alone / 2 > 0
    assert (line.saved, line.unanswered, line.failed) == (0, 0, 0)
    assert (batch.state, batch.calls, batch.done, batch.error) == ("completed", MANY, MANY, "")


def test_what_is_stored_already_goes_into_no_batch(setting: Setting) -> None:
    scene = setting()
    scene.ask(scene.wanted(4))
    with each_paid_once(scene, scene.wanted(6)):
        assert all_answered(scene.ask(scene.wanted(6)), scene.wanted(6))
    assert sorted(Batch.objects.values_list("calls", flat=True)) == [2, 4]


def test_more_calls_than_a_batch_may_have_make_several(setting: Setting) -> None:
    scene = setting()
    with each_paid_once(scene, scene.wanted(10)):
        assert all_answered(scene.ask(scene.wanted(10), largest=4), scene.wanted(10))
    assert sorted(Batch.objects.values_list("calls", flat=True)) == [2, 4, 4]


def test_lines_that_failed_are_submitted_again_and_the_others_are_not(setting: Setting) -> None:
    scene = setting(Knobs(batch_s=0.5, batch_failed=0.5))
    wanted = scene.wanted()
    with each_paid_once(scene, wanted):
        assert all_answered(scene.ask(wanted), wanted)
    again, first = Batch.objects.all()
    assert (first.calls, again.calls) == (MANY, LedgerLine.objects.get().failed)
    assert 0 < again.calls < MANY


def test_a_line_that_was_refused_is_not_submitted_again(setting: Setting) -> None:
    def refuse_first(lines: list[dict[str, Any]]) -> list[Any]:
        lines[0]["response"] |= {"status_code": 400, "body": {"error": {"message": "This prompt is not allowed."}}}
        return lines

    scene = setting()
    refused, *others = scene.ask(scene.wanted(4), network=Tampering(refuse_first))
    assert isinstance(refused, ResponseFormatError)
    assert str(refused) == "HTTP 400 in a batch: This prompt is not allowed."
    assert all_answered(others, scene.wanted(4)[1:])
    assert Batch.objects.count() == 1


def test_lines_that_make_no_sense_are_passed_over_and_what_they_hide_is_asked_for_again(setting: Setting) -> None:
    def garble(lines: list[dict[str, Any]]) -> list[Any]:
        lines[0]["response"]["body"] = "<b>hello</b>"
        lines[1]["response"] = [200]
        stranger = lines[3] | {"custom_id": "f" * 64}
        return ["not JSON", "[]", "{}", stranger, *lines[:2], *lines[3:], *lines[3:]]

    scene = setting()
    assert all_answered(scene.ask(scene.wanted(6), network=Tampering(garble)), scene.wanted(6))
    line = LedgerLine.objects.get()
    assert (line.calls, line.unanswered, line.failed) == (Completion.objects.count(), 3, 0)
    assert line.calls + line.unanswered == scene.charged()
    assert list(Batch.objects.values_list("calls", flat=True)) == [3, 6]
    assert not PendingCall.objects.exists()


def test_what_a_batch_that_expired_left_undone_is_submitted_again(setting: Setting) -> None:
    scene = setting(Knobs(batch_s=0.3, batch_expires=0.3))
    wanted = scene.wanted()
    with each_paid_once(scene, wanted):
        assert all_answered(scene.ask(wanted), wanted)
    assert Batch.objects.filter(state="expired").exists()
    assert Batch.objects.first().state == "completed"  # type: ignore[union-attr]  # the newest


def test_a_batch_outlives_its_worker_and_is_fetched_by_the_next(setting: Setting) -> None:
    scene = setting()
    wanted = scene.wanted()
    with each_paid_once(scene, wanted):
        ends = scene.submit_and_die(wanted)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        assert all_answered(scene.ask(wanted, calls=WatchedCalls(scene.another_job())), wanted)
    assert Batch.objects.get().state == "completed"
    assert LedgerLine.objects.get(calls=MANY).stage == "imitation"  # counted where it was asked for


def test_a_batch_whose_id_was_lost_is_known_by_ours(setting: Setting) -> None:
    scene = setting()
    wanted = scene.wanted()
    with each_paid_once(scene, wanted):
        scene.submit_and_die(wanted, unheard=True)
        assert Batch.objects.get().remote_id == ""
        assert all_answered(scene.ask(wanted, calls=WatchedCalls(scene.another_job())), wanted)
    assert Batch.objects.get().remote_id != ""


def test_a_batch_that_was_never_sent_is_given_up_and_its_calls_are_made(setting: Setting) -> None:
    scene = setting()
    wanted = scene.wanted()
    dying = WatchedCalls(scene.job)
    dying.turn("fake", [], wanted)
    dying.open_batch("fake", "0" * 32, [call.key for call in wanted])
    jobs.end(scene.job, JobState.CRASHED)
    with each_paid_once(scene, wanted):
        assert all_answered(scene.ask(wanted, calls=WatchedCalls(scene.another_job())), wanted)
    lost = Batch.objects.get(pk="0" * 32)
    assert (lost.state, lost.error) == ("failed", "It did not arrive at the provider.")


def test_a_batch_that_another_process_takes_for_lost_is_not_sent(setting: Setting) -> None:
    scene = setting()
    wanted = scene.wanted()
    with each_paid_once(scene, wanted):
        assert all_answered(scene.ask(wanted, calls=SnatchedCalls(scene.job)), wanted)
    assert list(Batch.objects.values_list("state", flat=True)) == ["completed", "failed"]


def test_two_workers_that_want_the_same_calls_pay_once(setting: Setting) -> None:
    scene = setting()
    wanted = scene.wanted()
    one, other = WatchedCalls(scene.job), WatchedCalls(scene.another_job())

    async def work() -> list[Ends]:
        async with scene.desk(one) as first, scene.desk(other) as second, asyncio.timeout(LONGEST_S):
            asked = [asyncio.gather(*map(desk.answer, wanted), return_exceptions=True) for desk in (first, second)]
            return await asyncio.gather(*asked)

    with each_paid_once(scene, wanted):
        assert all(all_answered(ends, wanted) for ends in asyncio.run(work()))


def test_a_server_that_is_out_of_order_is_waited_for(setting: Setting) -> None:
    scene = setting()
    wanted = scene.wanted()

    async def work() -> Ends:
        scene.teacher.begin_outage(60)
        calls = WatchedCalls(scene.job)
        async with scene.desk(calls) as desk, asyncio.timeout(LONGEST_S):
            waiting = asyncio.gather(*map(desk.answer, wanted), return_exceptions=True)
            while not await asyncio.to_thread(lambda: scene.teacher.stats()["unavailable"]):
                assert not waiting.done()
            scene.teacher.begin_outage(0)
            return await waiting

    with each_paid_once(scene, wanted):
        assert all_answered(asyncio.run(work()), wanted)
    assert list(Batch.objects.values_list("state", flat=True)) == ["completed", "failed"]


def test_the_budget_holds(setting: Setting) -> None:
    scene = setting()
    Budget.objects.create(run=scene.run, most_calls=10)
    ends = scene.ask(scene.wanted())
    refusals = [end for end in ends if isinstance(end, BudgetSpent)]
    assert len(refusals) == MANY - 10
    assert "10 of 10 calls" in str(refusals[0])
    assert scene.charged() == LedgerLine.objects.get().calls == Completion.objects.count() == 10


def test_a_provider_that_refuses_every_batch_stops_the_stage_in_the_end_and_is_quoted(setting: Setting) -> None:
    scene = setting(Knobs(batch_s=0.1, batch_refused=True), retries=0)
    told: list[str] = []
    ends = scene.ask(scene.wanted(3), patience_s=1.0, on_pause=told.append)
    assert all(isinstance(end, TeacherUnavailable) for end in ends)  # which quarantines nothing
    assert "refuses each batch on purpose" in str(ends[0])
    assert "refuses each batch on purpose" in told[0]
    sizes = [batch.calls for batch in Batch.objects.order_by("created_at")]
    assert sizes[:2] == [3, 1]
    assert len(sizes) <= 5  # the waits grow
    assert set(Batch.objects.values_list("state", flat=True)) == {"failed"}
    assert "refuses each batch on purpose" in Batch.objects.all()[0].error
    assert not PendingCall.objects.exists()


def test_more_tokens_than_the_provider_queues_go_in_smaller_batches_and_are_all_answered(setting: Setting) -> None:
    scene = setting(Knobs(batch_s=0.3, batch_tokens=200), retries=0)
    wanted = scene.wanted(12)
    told: list[str] = []
    with each_paid_once(scene, wanted):
        assert all_answered(scene.ask(wanted, on_pause=told.append), wanted)
    failed = Batch.objects.filter(state="failed")
    assert "Enqueued token limit reached" in failed.order_by("created_at")[0].error
    assert max(Batch.objects.filter(state="completed").values_list("calls", flat=True)) < 12
    assert "calls wait for its Batch API. Enqueued token limit reached" in told[0]
    assert told[-1] == ""


def test_calls_are_split_by_the_bytes_of_their_file(setting: Setting) -> None:
    scene = setting()
    wanted = scene.wanted(7)
    room = 3 * len(line_of(wanted[0], scene.config)) + 10
    with each_paid_once(scene, wanted):
        assert all_answered(scene.ask(wanted, most_bytes=room), wanted)
    assert sorted(Batch.objects.values_list("calls", flat=True)) == [1, 3, 3]


def test_a_call_that_is_larger_than_a_file_may_be_goes_alone(setting: Setting) -> None:
    scene = setting()
    with each_paid_once(scene, scene.wanted(2)):
        assert all_answered(scene.ask(scene.wanted(2), most_bytes=1), scene.wanted(2))
    assert list(Batch.objects.values_list("calls", flat=True)) == [1, 1]


def test_a_batch_that_cannot_be_asked_after_once_is_asked_after_again(setting: Setting) -> None:
    scene = setting(retries=0)
    wanted = scene.wanted(5)
    told: list[str] = []
    with each_paid_once(scene, wanted):
        assert all_answered(scene.ask(wanted, network=answers(400, to=asks_after_a_batch), on_pause=told.append), wanted)
    assert Batch.objects.count() == 1
    assert "The gateway says no" in told[0]
    assert told[-1] == ""


def test_a_batch_that_can_never_be_read_stops_those_who_wait_for_it_and_no_others(setting: Setting) -> None:
    scene = setting()
    lost, *others = scene.wanted(5)
    unreadable: list[str] = []

    async def meddle(request: httpx.Request) -> httpx.Response | None:
        if not asks_after_a_batch(request):
            return None
        unreadable[:] = unreadable or [request.url.path]
        return httpx.Response(400, json={"error": {"message": "Not this one."}}) if request.url.path in unreadable else None

    ends = scene.ask([lost, *others], network=Meddling(meddle), largest=1, patience_s=1.5)
    stopped = [end for end in ends if isinstance(end, TeacherUnavailable)]
    assert len(stopped) == 1
    assert "Not this one." in str(stopped[0])
    assert len(set(Completion.objects.values_list("key", flat=True))) == 4
    assert PendingCall.objects.get().batch == Batch.objects.get(ended_at=None)  # it may still be answered, and is not paid again


def test_answers_that_the_provider_has_deleted_count_as_unanswered_and_are_asked_for_again(setting: Setting) -> None:
    scene = setting()
    wanted = scene.wanted(5)
    not_there = answers(404, to=fetches_answers, times=5)
    ends = scene.ask(wanted, network=not_there, patience_s=0.5)
    assert {type(end) for end in ends} == {TeacherUnavailable}
    assert all_answered(scene.ask(wanted), wanted)
    line = LedgerLine.objects.get()
    assert (line.calls, line.unanswered) == (5, 5)
    assert line.unanswered_nanodollars == sum(call.most_nanodollars for call in wanted)
    again, gone = Batch.objects.all()
    assert (again.state, gone.state) == ("completed", "failed")
    assert "does not have file" in gone.error


def test_answers_that_are_read_are_kept_though_the_file_of_errors_is_missed_for_a_while(setting: Setting) -> None:
    scene = setting(Knobs(batch_s=0.3, batch_failed=0.3))
    files: list[str] = []

    async def miss_the_second(request: httpx.Request) -> httpx.Response | None:
        if not fetches_answers(request):
            return None
        files.append(request.url.path)
        return httpx.Response(404, json={"error": {"message": "No such file."}}, request=request) if len(files) == 2 else None

    wanted = scene.wanted(10)
    with each_paid_once(scene, wanted):
        assert all_answered(scene.ask(wanted, network=Meddling(miss_the_second)), wanted)
    assert files[1] != files[0]
    assert LedgerLine.objects.get().unanswered == 0


def test_a_file_of_answers_that_is_missed_once_is_asked_for_again(setting: Setting) -> None:
    scene = setting()
    wanted = scene.wanted(5)
    with each_paid_once(scene, wanted):
        assert all_answered(scene.ask(wanted, network=answers(404, to=fetches_answers)), wanted)
    assert Batch.objects.count() == 1


def test_lines_that_cannot_be_read_count_against_the_budget(setting: Setting) -> None:
    scene = setting()
    Budget.objects.create(run=scene.run, most_calls=6)
    ends = scene.ask(scene.wanted(6), network=Tampering(lambda lines: ['{"cut'] * len(lines)))
    assert all(isinstance(end, BudgetSpent) for end in ends)
    assert scene.charged() == LedgerLine.objects.get().unanswered == 6


def test_a_batch_that_seems_unknown_is_looked_for_before_it_is_given_up(setting: Setting) -> None:
    scene = setting()
    wanted = scene.wanted(5)
    with each_paid_once(scene, wanted):
        assert all_answered(scene.ask(wanted, network=answers(404, to=asks_after_a_batch)), wanted)
    assert Batch.objects.count() == 1


def test_a_file_that_does_not_get_through_in_its_time_is_made_smaller(setting: Setting) -> None:
    scene = setting()
    wanted = scene.wanted(8)

    async def stall_large_files(request: httpx.Request) -> httpx.Response | None:
        if sends_requests(request) and (await request.aread()).count(b"custom_id") > 4:
            await asyncio.Event().wait()
        return None

    told: list[str] = []
    with each_paid_once(scene, wanted):
        assert all_answered(scene.ask(wanted, network=Meddling(stall_large_files), on_pause=told.append), wanted)
    assert list(Batch.objects.values_list("calls", flat=True)) == [4, 4, 8]
    assert "did not take a file of 0.0 MB within 1 s" in told[0]
    assert told[-1] == ""


def test_a_large_file_has_time_and_nobody_takes_its_batch_for_lost_meanwhile(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_api, "SLOWEST", 100)
    scene = setting()
    wanted = scene.wanted(8)
    other = PostgresCalls(scene.run.run_config(), job=scene.another_job())

    def lost_s_is_over_and_it_is_not_lost() -> bool:
        batch = Batch.objects.annotate(age=Now() - F("created_at")).get()
        assert not other.poll_batch(batch.pk, every_s=2 * batch_api.CREATE_S)
        return batch.age > timedelta(seconds=2.5 * batch_api.CREATE_S)  # type: ignore[no-any-return]

    async def hold_up(request: httpx.Request) -> httpx.Response | None:
        if sends_requests(request):
            await asyncio.to_thread(wait_until, lost_s_is_over_and_it_is_not_lost, timeout_s=LONGEST_S, what="time to pass")
        return None

    with each_paid_once(scene, wanted):
        assert all_answered(scene.ask(wanted, network=Meddling(hold_up)), wanted)
    assert Batch.objects.count() == 1


def stopped_while(scene: Scene, wanted: Sequence[Call], under_way: Callable[[httpx.Request], bool]) -> Ends:
    """What comes of calls whose job is stopped while a file is held up."""
    seen = asyncio.Event()

    async def hold_up(request: httpx.Request) -> httpx.Response | None:
        if under_way(request):
            seen.set()
            await asyncio.Event().wait()
        return None

    async def work() -> Ends:
        async with asyncio.timeout(LONGEST_S), scene.desk(WatchedCalls(scene.job), network=Meddling(hold_up)) as desk:
            waiting = [asyncio.create_task(desk.answer(call)) for call in wanted]
            await seen.wait()
        return await asyncio.gather(*waiting, return_exceptions=True)

    return asyncio.run(work())


def test_a_stop_does_not_wait_for_a_file_of_requests_and_gives_its_calls_back(setting: Setting) -> None:
    scene = setting(timeout_s=600.0)
    ends = stopped_while(scene, scene.wanted(3), sends_requests)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    assert Batch.objects.get().error == "The job stopped before this batch was sent."
    assert not PendingCall.objects.exists()
    assert LedgerLine.objects.get().unanswered == 0


def test_a_stop_does_not_wait_for_a_file_of_answers_and_the_next_job_fetches_it(setting: Setting) -> None:
    scene = setting(timeout_s=600.0)
    wanted = scene.wanted(3)
    with each_paid_once(scene, wanted):
        ends = stopped_while(scene, wanted, fetches_answers)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        assert Batch.objects.get().ended_at is None
        assert all_answered(scene.ask(wanted), wanted)
    assert Batch.objects.count() == 1


def test_an_endpoint_that_refuses_all_lines_quarantines_none_of_them(setting: Setting) -> None:
    scene = setting()

    async def refuse_all(request: httpx.Request) -> httpx.Response | None:
        if not fetches_answers(request):
            return None
        response = {"status_code": 400, "body": {"error": {"message": "max_tokens is not supported."}}}
        return httpx.Response(200, text="\n".join(json.dumps({"custom_id": call.key, "response": response}) for call in scene.wanted()))

    ends = scene.ask(scene.wanted(), network=Meddling(refuse_all), patience_s=1.0)
    assert all(isinstance(end, TeacherUnavailable) for end in ends)
    assert "max_tokens is not supported" in str(ends[0])
    assert not PendingCall.objects.exists()


def test_lines_that_fail_more_often_than_the_retries_are_given_up_alone(setting: Setting) -> None:
    scene = setting(Knobs(batch_s=0.3, batch_failed=0.5), retries=0)
    ends = scene.ask(scene.wanted())
    failed = [end for end in ends if isinstance(end, ResponseFormatError)]
    assert 0 < len(failed) < MANY
    assert "No answer after 1 batches. The last one: HTTP 500 in a batch" in str(failed[0])
    assert Completion.objects.count() == scene.charged() == MANY - len(failed)
    assert not PendingCall.objects.exists()


def test_an_expiry_speaks_against_no_call(setting: Setting) -> None:
    scene = setting(Knobs(batch_s=0.3, batch_expires=0.5), retries=0)
    wanted = scene.wanted(8)
    with each_paid_once(scene, wanted):
        assert all_answered(scene.ask(wanted), wanted)
    assert LedgerLine.objects.get().failed == 0


def test_a_server_without_a_batch_api_is_a_setting_to_change(setting: Setting) -> None:
    scene = setting()
    scene.config = replace(scene.config, base_url=f"{scene.teacher.url}/v0")
    ends = scene.ask(scene.wanted(3))
    assert all(isinstance(end, ConfigError) for end in ends)
    assert Batch.objects.get().state == "failed"
    assert not PendingCall.objects.exists()


# Batches that no job asks after -----------------------------------------------------------------------------------------------------


def nobody_asked_for_a_while() -> None:
    Batch.objects.update(polled_at=Now() - timedelta(seconds=batch_polls.UNHEARD_S + 1))


def abandoned(setting: Setting, *, key_env: str = "") -> tuple[Scene, list[Call]]:
    """A scene whose job ended after it had submitted a batch, that is answered by now."""
    scene = setting(Knobs(batch_s=0.3), key_env=key_env)
    wanted = scene.wanted(5)
    scene.submit_and_die(wanted)
    wait_until(lambda: _is_completed(scene), timeout_s=LONGEST_S, what="the batch")
    nobody_asked_for_a_while()
    return scene, wanted


def _is_completed(scene: Scene) -> bool:
    return bool(CLIENT.get(f"{scene.teacher.base_url}/batches").json()["data"][0]["status"] == "completed")


def test_the_sweep_fetches_a_batch_that_no_job_asks_after(setting: Setting) -> None:
    scene, wanted = abandoned(setting)
    with each_paid_once(scene, wanted):
        assert batch_polls.fetch_due() == 1
    assert LedgerLine.objects.get().stage == "imitation"  # counted where it was asked for
    assert batch_polls.fetch_due() == 0


def test_the_sweep_fetches_again_and_again_until_it_is_told_to_stop(setting: Setting) -> None:
    scene, wanted = abandoned(setting)
    stop = threading.Event()
    sweep = threading.Thread(target=batch_polls.fetch_until, args=(stop,), daemon=True)
    with each_paid_once(scene, wanted):
        sweep.start()
        wait_until(lambda: Batch.objects.filter(state="completed").exists(), timeout_s=LONGEST_S, what="the sweep")
        stop.set()
        sweep.join(LONGEST_S)
    assert not sweep.is_alive()


def test_the_sweep_leaves_a_batch_to_the_job_that_asks_after_it(setting: Setting) -> None:
    scene = setting(Knobs(batch_s=0.1))
    scene.submit_and_die(scene.wanted(2))
    wait_until(lambda: _is_completed(scene), timeout_s=LONGEST_S, what="the batch")
    assert batch_polls.fetch_due() == 0
    assert Batch.objects.get().ended_at is None


def test_the_sweep_fetches_what_a_run_that_was_deleted_has_paid(setting: Setting) -> None:
    scene, wanted = abandoned(setting)
    Endpoint.objects.create(name="fake", base_url=scene.config.base_url, model=MODEL, price_input=1.0, price_output=2.0)
    scene.run.delete()
    call_command("sweep", "--once")
    assert set(Completion.objects.values_list("key", flat=True)) == {call.key for call in wanted}


def test_the_sweep_asks_the_server_that_has_the_batch_though_the_run_goes_on_with_another(setting: Setting) -> None:
    scene, wanted = abandoned(setting)
    corrected = replace(scene.config, base_url="http://127.0.0.1:9/v1")
    scene.run.config = replace(scene.run.run_config(), endpoints={"fake": corrected}).as_dict()
    scene.run.save()
    with each_paid_once(scene, wanted):
        assert batch_polls.fetch_due() == 1


def test_a_key_that_the_sweep_lacks_is_told_once_and_the_batch_left(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    abandoned(setting, key_env="KEY_OF_THE_WORKERS")
    monkeypatch.delenv("KEY_OF_THE_WORKERS", raising=False)
    asked_at = Batch.objects.get().polled_at
    assert (batch_polls.fetch_due(), batch_polls.fetch_due()) == (0, 0)
    assert [record.message for record in caplog.records if "KEY_OF_THE_WORKERS" in record.message] == [
        "Batches of endpoint fake wait for the next job: KEY_OF_THE_WORKERS is not set where the sweep runs."
    ]
    assert Batch.objects.get().polled_at == asked_at  # a process that has the key may ask at any time
    monkeypatch.setenv("KEY_OF_THE_WORKERS", "sk-1")
    assert batch_polls.fetch_due() == 1


def test_the_sweep_calls_no_address_that_a_job_may_not(setting: Setting, settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    abandoned(setting)
    settings.LIONWEB_PRIVATE_HOSTS = ["none"]
    assert batch_polls.fetch_due() == 0
    assert "LIONWEB_PRIVATE_HOSTS" in caplog.text
    assert Batch.objects.get().ended_at is None
