"""A student that is served: asked over HTTP, each response kept as it comes, and every way a server fails said clearly."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.http_server import Answer, Asked, Server, refused, running, said
from trainer.addresses import AddressGuard
from trainer.checkpoints import Manifest, write_checkpoint
from trainer.config import RunConfig, config_from_dict
from trainer.errors import Cancelled, ChildDied, ConfigError, TeacherUnavailable
from trainer.records import BenchmarkItem, Instruction, Response
from trainer.served_student import REFUSED_ITEMS, ServedStudent, folder_beside, with_server
from trainer.vllm_server import free_port, serving, vllm_command

MODELS = Answer(body={"object": "list", "data": [{"id": "student", "object": "model", "created": 1, "owned_by": "us"}]})


def make_config(url: str, *, student: dict[str, Any] | None = None, **respond: Any) -> RunConfig:
    return config_from_dict(
        {
            "endpoints": {"teacher": {}},
            "student": {"template": "chat", **(student or {})},
            "respond": {"server": url, "max_new_tokens": 64, "at_once": 4, **respond},
        }
    )


def make_student(url: str, **values: Any) -> ServedStudent:
    options = {name: values.pop(name) for name in ("environ", "guard", "should_stop", "start", "iteration", "retries") if name in values}
    tuner: Any = None
    return ServedStudent(make_config(url, **values), tuner, **{"iteration": 2, "start": None, "retries": 2, **options})


def make_instructions(count: int) -> list[Instruction]:
    return [Instruction(key=f"i{n}", text=f"text {n}") for n in range(count)]


def respond(student: ServedStudent, instructions: Sequence[Instruction], done: frozenset[str] = frozenset()) -> dict[str, Response]:
    kept: list[Response] = []
    student.respond(instructions, done=done, keep=kept.extend)
    assert len({response.instruction for response in kept}) == len(kept)
    return {response.instruction: response for response in kept}


def answering(answer: Any) -> Any:
    """What a server does that lists its models and answers calls by `answer`."""
    return lambda asked: MODELS if asked.method == "GET" else answer(asked)


def echo(asked: Asked) -> Answer:
    return said("re: " + asked.data["messages"][0]["content"])


def calls(server: Server) -> list[Asked]:
    return [asked for asked in server.asked if asked.method == "POST"]


# Asking


def test_each_instruction_that_is_missing_is_asked_once_and_kept() -> None:
    with running(Server()) as server:
        server.answer = answering(echo)
        kept = respond(make_student(server.url), make_instructions(9), done=frozenset({"i3"}))

    assert {key: response.text for key, response in kept.items()} == {f"i{n}": f"re: text {n}" for n in range(9) if n != 3}
    assert {response.tokens for response in kept.values()} == {2}
    assert len(calls(server)) == 8


def test_a_call_carries_the_settings_and_a_seed_that_the_item_keeps() -> None:
    with running(Server()) as server:
        server.answer = answering(echo)
        for _ in range(2):
            respond(make_student(server.url), make_instructions(2))

    sent = [asked.data for asked in calls(server)]
    assert {(d["model"], d["temperature"], d["max_tokens"]) for d in sent} == {("student", 0.7, 64)}
    seeds = {(d["messages"][0]["content"], d["seed"]) for d in sent}
    assert len(seeds) == 2
    assert len({seed for _, seed in seeds}) == 2


def test_the_paper_s_form_goes_as_a_text_to_be_continued() -> None:
    def continue_it(asked: Asked) -> Answer:
        assert asked.path == "/v1/completions"
        return Answer(
            body={
                "id": "1",
                "object": "text_completion",
                "created": 1,
                "model": "m",
                "choices": [{"index": 0, "text": " yes\n", "finish_reason": "length", "logprobs": None}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 64, "total_tokens": 65},
            }
        )

    with running(Server()) as server:
        server.answer = answering(continue_it)
        kept = respond(make_student(server.url, student={"template": "paper"}), make_instructions(1))

    assert kept["i0"] == Response(instruction="i0", text="yes", tokens=64, cut=True)
    assert calls(server)[0].data["prompt"].endswith("### Response:\n")


def test_the_model_s_name_can_hold_the_iteration() -> None:
    with running(Server()) as server:
        respond(make_student(server.url, server_model="run-{iteration}"), make_instructions(1))

    assert [asked.data["model"] for asked in server.asked] == ["run-2"]


def test_benchmark_items_are_asked_greedily() -> None:
    items = [BenchmarkItem(key=f"b{n}", task="copy", prompt=f"p{n}", gold="") for n in range(3)]
    kept: list[tuple[BenchmarkItem, str]] = []
    with running(Server()) as server:
        server.answer = answering(echo)
        make_student(server.url).answer(items, done=frozenset({"b1"}), keep=kept.extend)

    assert sorted((item.key, reply) for item, reply in kept) == [("b0", "re: p0"), ("b2", "re: p2")]
    assert {asked.data["temperature"] for asked in calls(server)} == {0}


def test_the_key_is_taken_from_the_environment_by_name() -> None:
    with running(Server()) as server:
        server.answer = answering(echo)
        respond(make_student(server.url, server_key_env="GPU_KEY", environ={"GPU_KEY": "k1"}), make_instructions(1))
        with pytest.raises(ConfigError, match="GPU_KEY"):
            respond(make_student(server.url, server_key_env="GPU_KEY", environ={}), make_instructions(1))

    assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer k1"}


def test_nothing_is_asked_when_all_is_done() -> None:
    assert respond(make_student("http://127.0.0.1:1/v1"), make_instructions(2), done=frozenset({"i0", "i1"})) == {}


def test_without_a_server_the_student_stays_as_it_is() -> None:
    here: Any = object()

    assert with_server(make_config(""), here, iteration=0, start=None) is here
    assert isinstance(with_server(make_config("http://gpu1:8000/v1"), here, iteration=0, start=None), ServedStudent)


# Failing


def test_a_500_is_tried_again() -> None:
    failed: set[str] = set()

    def once_500(asked: Asked) -> Answer:
        content = asked.data["messages"][0]["content"]
        if content not in failed:
            failed.add(content)
            return refused(500)
        return echo(asked)

    with running(Server()) as server:
        server.answer = answering(once_500)
        kept = respond(make_student(server.url), make_instructions(3))

    assert {response.text for response in kept.values()} == {"re: text 0", "re: text 1", "re: text 2"}
    assert len(calls(server)) == 6


def test_a_server_that_breaks_stops_the_stage_with_what_was_kept() -> None:
    def until_three(asked: Asked) -> Answer:
        return echo(asked) if len(calls(server)) <= 3 else refused(503, "no workers")

    kept: list[Response] = []
    with running(Server()) as server:
        server.answer = answering(until_three)
        with pytest.raises(TeacherUnavailable, match="503"):
            make_student(server.url, at_once=1).respond(make_instructions(6), done=frozenset(), keep=kept.extend)

    assert [response.instruction for response in kept] == ["i0", "i1", "i2"]


def test_a_server_that_is_not_there_says_what_to_do() -> None:
    with pytest.raises(TeacherUnavailable, match="nobody listens there"):
        respond(make_student(f"http://127.0.0.1:{free_port()}/v1", retries=0), make_instructions(1))


def test_an_answer_that_breaks_off_is_asked_for_again() -> None:
    def broken_twice(asked: Asked) -> Answer:
        if len(calls(server)) == 1:
            raise ConnectionError("closed before a word is said")
        whole = echo(asked)
        return Answer(200, whole.content[:40], whole.headers) if len(calls(server)) == 2 else whole

    with running(Server()) as server:
        server.answer = answering(broken_twice)
        kept = respond(make_student(server.url), make_instructions(1))

    assert kept["i0"].text == "re: text 0"
    assert len(calls(server)) == 3


def test_a_server_that_always_answers_garbage_is_refused() -> None:
    with running(Server()) as server:
        server.answer = answering(lambda asked: Answer(200, b'{"id"'))
        with pytest.raises(ConfigError, match="not JSON"):
            respond(make_student(server.url, retries=1), make_instructions(1))


def test_a_prompt_that_is_too_long_is_asked_for_less_and_then_becomes_a_failure() -> None:
    def short_context(asked: Asked) -> Answer:
        content = asked.data["messages"][0]["content"]
        if content == "text 0" or (content == "text 1" and asked.data["max_tokens"] > 20):
            return refused(400, "This model's maximum context length is 100 tokens.")
        return echo(asked)

    with running(Server()) as server:
        server.answer = answering(short_context)
        kept = respond(make_student(server.url), make_instructions(3))

    assert "maximum context length" in kept["i0"].failure
    assert kept["i0"].text == ""
    assert (kept["i1"].text, kept["i1"].failure) == ("re: text 1", "")
    assert kept["i2"].text == "re: text 2"


def test_a_server_that_refuses_everything_stops_the_stage() -> None:
    with running(Server()) as server:
        server.answer = answering(lambda asked: refused(400, "no such template"))
        with pytest.raises(TeacherUnavailable, match="answered none"):
            respond(make_student(server.url, at_once=1), make_instructions(REFUSED_ITEMS + 2))


def test_a_server_of_another_kind_is_refused() -> None:
    with running(Server()) as server:
        server.answer = answering(lambda asked: Answer(body={"hello": 1}))
        with pytest.raises(ConfigError, match="/v1"):
            respond(make_student(server.url), make_instructions(1))


def test_a_server_that_lists_no_models_asks_for_the_name() -> None:
    with running(Server()) as server:
        server.answer = lambda asked: refused(500)
        with pytest.raises(ConfigError, match=r"respond\.server_model"):
            respond(make_student(server.url, retries=0), make_instructions(1))


def test_an_address_that_is_not_allowed_is_not_called() -> None:
    with running(Server()) as server, pytest.raises(ConfigError, match="private address"):
        respond(make_student(server.url, guard=AddressGuard(), retries=0), make_instructions(1))

    assert server.asked == []


@pytest.mark.parametrize("url", ["gpu1:8000", "ftp://gpu1/v1", "http://me:secret@gpu1/v1"])
def test_an_address_that_is_none_is_refused_before_anything_is_asked(url: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        respond(make_student(url), make_instructions(1))

    assert "respond.server" in refusal.value.fields
    assert "secret" not in str(refusal.value)


def test_a_stop_keeps_what_came_and_ends_the_calls() -> None:
    kept: list[Response] = []
    with running(Server()) as server:
        server.answer = answering(echo)
        student = make_student(server.url, at_once=1, should_stop=lambda: bool(kept))

        def keep(responses: list[Response]) -> None:
            kept.extend(responses)
            server.go.clear()  # what is asked from now on is never answered

        started = time.monotonic()
        with pytest.raises(Cancelled):
            student.respond(make_instructions(500), done=frozenset(), keep=keep)

    assert 0 < len(kept) < 500
    assert time.monotonic() - started < 8


# vLLM

FAKE_VLLM = """#!{python}
import json, os, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

if "broken" in sys.argv[2]:
    sys.exit("no such model")
told = "{told}"
open(told + "/argv", "w").write(json.dumps(sys.argv[1:]))
helper = subprocess.Popen(["sleep", "600"])
open(told + "/pids", "w").write(f"{{os.getpid()}} {{helper.pid}}")

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def send(self, data):
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.send({{"object": "list", "data": [{{"id": "student", "object": "model", "created": 1, "owned_by": "vllm"}}]}})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        message = {{"role": "assistant", "content": "vllm: " + asked["messages"][0]["content"]}}
        self.send({{"id": "1", "object": "chat.completion", "created": 1, "model": asked["model"],
            "choices": [{{"index": 0, "message": message, "finish_reason": "stop"}}],
            "usage": {{"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}}}})
    def log_message(self, *args):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def fake_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `vllm` on the PATH; gives a folder it can serve, where it also writes what it was told and its pids."""
    folder = tmp_path / "bin"
    folder.mkdir()
    model = tmp_path / "model"
    (model / "broken").mkdir(parents=True)
    for each in (model, model / "broken"):
        (each / "config.json").write_text("{}")
    (folder / "vllm").write_text(FAKE_VLLM.format(python=sys.executable, told=model))
    (folder / "vllm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return model


def test_a_vllm_of_our_own_is_started_asked_and_ended_with_what_it_started(fake_vllm: Path) -> None:
    kept = respond(make_student("vllm", student={"model": str(fake_vllm)}), make_instructions(3))

    assert {response.text for response in kept.values()} == {"vllm: text 0", "vllm: text 1", "vllm: text 2"}
    pids = [int(pid) for pid in (fake_vllm / "pids").read_text().split()]
    assert len(pids) == 2
    assert not any(_lives(pid) for pid in pids)


def test_a_vllm_that_ends_at_once_is_quoted(fake_vllm: Path) -> None:
    with pytest.raises(ChildDied, match="no such model"):
        respond(make_student("vllm", student={"model": str(fake_vllm / "broken")}), make_instructions(1))


def test_a_stop_while_vllm_starts_ends_it(fake_vllm: Path) -> None:
    port = free_port()
    command = vllm_command(fake_vllm, None, port)
    command[command.index("--port") + 1] = str(free_port())  # so that it never is where we look

    with pytest.raises(Cancelled), serving(command, port, should_stop=(fake_vllm / "pids").exists):
        raise AssertionError("it was never there")
    assert not any(_lives(int(pid)) for pid in (fake_vllm / "pids").read_text().split())


def test_where_vllm_is_not_installed_the_text_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ConfigError, match="no vllm on the PATH"):
        respond(make_student("vllm", student={"model": str(tmp_path)}), make_instructions(1))


def make_manifest(method: str) -> Manifest:
    return Manifest(
        config={"student": {"precision": "bf16", "lora_rank": 24}},
        method=method,
        base="org/base",
        revision="v2",
        iteration=1,
        step=3,
        first_loss=2.0,
        last_loss=1.0,
        seed=1,
    )


def test_a_whole_checkpoint_is_served_by_its_folder() -> None:
    command = vllm_command(Path("/data/run/iteration-1"), make_manifest("full"), 8000)

    assert command[:3] == ["vllm", "serve", "/data/run/iteration-1"]
    assert command[command.index("--served-model-name") + 1] == "student"
    assert command[command.index("--dtype") + 1] == "bfloat16"
    assert "--revision" not in command


def test_an_adapter_is_served_on_its_base() -> None:
    command = vllm_command(Path("/data/run/iteration-1"), make_manifest("lora"), 8000)

    assert command[:3] == ["vllm", "serve", "org/base"]
    assert command[command.index("--lora-modules") + 1] == "student=/data/run/iteration-1"
    assert command[command.index("--max-lora-rank") + 1] == "32"
    assert command[command.index("--revision") + 1] == "v2"


def test_an_adapter_whose_base_is_nowhere_is_not_served_as_one() -> None:
    manifest = replace(make_manifest("lora"), base="scratch-llama")

    with pytest.raises(ConfigError, match="Serve the merged weights"):
        vllm_command(Path("/data/run/iteration-1"), manifest, 8000)


def test_vllm_serves_no_student_that_is_not_allowed(fake_vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIONWEB_STUDENT_SOURCES", "/srv/models/*")

    with pytest.raises(ConfigError, match="not allowed on this worker"):
        respond(make_student("vllm", student={"model": str(fake_vllm)}), make_instructions(1))
    assert not (fake_vllm / "argv").exists()


def test_a_damaged_checkpoint_is_not_served(fake_vllm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    write_checkpoint(folder, make_manifest("full"), lambda f: (f / "model.safetensors").write_bytes(b"x") and None, weight_bytes=1)
    (folder / "model.safetensors").write_bytes(b"y")

    with pytest.raises(ConfigError, match=r"damaged: model\.safetensors"):
        respond(make_student("vllm", start=folder), make_instructions(1))
    assert not (fake_vllm / "argv").exists()


PARENT = """
import os, sys, time
from pathlib import Path
from trainer.vllm_server import serving

with serving(["vllm", "serve", sys.argv[1], "--port", sys.argv[2]], int(sys.argv[2])):
    print("serving", flush=True)
    time.sleep(600)
"""


def test_a_server_ends_with_a_worker_that_was_killed(fake_vllm: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(fake_vllm), str(free_port())], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "serving\n"
        pids = [int(pid) for pid in (fake_vllm / "pids").read_text().split()]
        assert all(_lives(pid) for pid in pids)
        parent.kill()
    until = time.monotonic() + 10
    while any(_lives(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(_lives(pid) for pid in pids)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] if Path(f"/proc/{pid}/stat").exists() else "X"
    return state not in "ZX"


# Merged for the time of a stage

KILLED_WITH_A_FOLDER = """
import os, sys
from pathlib import Path
from trainer.served_student import folder_beside
with folder_beside(Path(sys.argv[1])) as folder:
    (folder / "model.safetensors").touch()
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_stage_left_beside_its_checkpoint_goes_with_the_next_and_what_another_uses_stays(tmp_path: Path) -> None:
    (tmp_path / "iteration-0").mkdir()
    subprocess.run([sys.executable, "-c", KILLED_WITH_A_FOLDER, str(tmp_path / "iteration-0")], check=False)
    [left] = tmp_path.glob(".iteration-0.merged-*")

    with folder_beside(tmp_path / "iteration-0") as used, folder_beside(tmp_path / "iteration-1") as other:
        assert not left.exists()
        assert {path for path in tmp_path.iterdir() if path.name != "iteration-0"} == {used, other}
        (used / "model.safetensors").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["iteration-0"]
