"""The process that holds the student: what it tells, how it ends, and that it never outlives its parent."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import trainer
from tests.trainer.child_that_saves_forever import HALF
from trainer.checkpoints import file_digest
from trainer.child import public_name, read_lines
from trainer.config import RunConfig, config_from_dict
from trainer.errors import Cancelled, ChildDied, ConfigError
from trainer.launch import Event, _last_words, own_lines, run_child
from trainer.records import BenchmarkItem, Example, Instruction

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def make_config(*, steps: int = 6, save_steps: int = 2, model: str = "scratch-llama") -> RunConfig:
    student = {"model": model, "precision": "fp32", "template": "chat", "scratch_width": 32, "scratch_layers": 2, "scratch_heads": 2}
    tuning = {
        "first_steps": steps,
        "batch_size": 4,
        "device_batch_size": 4,
        "learning_rate": 1e-3,
        "save_steps": save_steps,
        "log_steps": 1,
    }
    respond = {"batch_size": 4, "max_new_tokens": 4}
    return config_from_dict({"endpoints": {"teacher": {}}, "student": student, "imitation": tuning, "respond": respond})


def make_instructions(count: int = 8) -> list[Instruction]:
    return [Instruction(key=f"i{n}", text="".join(random.Random(n).choices("abcdef", k=5))) for n in range(count)]


def make_examples() -> list[Example]:
    return [Example(instruction=instruction, response=instruction.text.upper()) for instruction in make_instructions()]


def make_task(name: str, folder: Path, rows: Sequence[Any], **changes: Any) -> dict[str, Any]:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row.as_dict()) + "\n" for row in rows))
    config = changes.pop("config", None) or make_config()
    task: dict[str, Any] = {
        "task": name,
        "config": config.as_dict(),
        "iteration": 0,
        "start": None,
        "folder": str(folder),
        "input": str(path),
        "done": [],
    }
    return {**task, **changes}


class Watcher:
    """Collects events, and acts on the first of a kind."""

    def __init__(self, *, kill_at: str = "", stop_at: str = "") -> None:
        self.events: list[Event] = []
        self.kill_at = kill_at
        self.stop_at = stop_at

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if self.kill_at in (event["event"], event.get("kind")):
            os.kill(self.pid, signal.SIGKILL)

    def should_stop(self) -> bool:
        return bool(self.stop_at and self.of(self.stop_at))

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if kind in (event["event"], event.get("kind"))]

    @property
    def pid(self) -> int:
        return int(self.of("started")[0]["pid"])


def run(task: dict[str, Any], watcher: Watcher | None = None) -> Watcher:
    watcher = watcher or Watcher()
    run_child(task, on_event=watcher, should_stop=watcher.should_stop, environment=ENVIRONMENT)
    return watcher


def is_running(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def has_ended(pid: int, *, timeout_s: float = 20) -> bool:
    """Whether a process that is not our child ends in time."""
    descriptor = os.pidfd_open(pid) if hasattr(os, "pidfd_open") and is_running(pid) else None
    if descriptor is None:
        return not is_running(pid)
    try:
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)


def test_a_student_is_tuned_answers_and_is_examined_in_children_of_its_own(tmp_path: Path) -> None:
    tuned = run(make_task("imitate", tmp_path, make_examples()))
    [checkpoint] = tuned.of("checkpoint")
    answered = run(make_task("respond", tmp_path, make_instructions(), start=checkpoint["path"], done=["i0", "i5"]))
    items = [BenchmarkItem(key=f"b{n}", task="t", prompt="ab", gold="") for n in range(3)]
    examined = run(make_task("answer", tmp_path, items, start=checkpoint["path"], done=["b1"]))

    assert tuned.events[0]["event"] == "started"
    assert [event["step"] for event in tuned.of("metric")] == [1, 2, 3, 4, 5, 6]
    assert (checkpoint["step"], Path(checkpoint["path"]).name) == (6, "iteration-0")
    told = {response["instruction"] for event in answered.of("responses") for response in event["responses"]}
    assert told == {"i1", "i2", "i3", "i4", "i6", "i7"}
    assert sorted(key for event in examined.of("answers") for key, _ in event["answers"]) == ["b0", "b2"]
    assert not is_running(tuned.pid)


def test_a_child_killed_in_a_save_and_again_in_a_step_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    for folder in ("killed", "whole"):
        (tmp_path / folder).mkdir()
    config = make_config(steps=12, save_steps=2)
    task = make_task("imitate", tmp_path / "killed", make_examples(), config=config)
    killing = Watcher()

    def kill_in_the_save() -> bool:
        if (tmp_path / "killed" / HALF).exists():
            os.kill(killing.pid, signal.SIGKILL)
        return False

    def kill_at_step_9(event: Event) -> None:
        killing(event)
        if event.get("step") == 9:
            os.kill(killing.pid, signal.SIGKILL)

    slow = "tests.trainer.child_that_saves_forever"
    with pytest.raises(ChildDied, match="SIGKILL"):
        run_child(task, on_event=killing, should_stop=kill_in_the_save, environment=ENVIRONMENT, module=slow)
    killing.events.clear()
    with pytest.raises(ChildDied, match=r"was killed by SIGKILL\. If nobody did that, .* lower imitation\.device_batch_size[^\n]*$"):
        run_child(task, on_event=kill_at_step_9, should_stop=lambda: False, environment=ENVIRONMENT)
    last = run(task)
    whole = run(make_task("imitate", tmp_path / "whole", make_examples(), config=config))

    assert killing.of("metric")[0]["step"] == 3, "it did not go on from the save of step 2"
    assert last.of("metric")[0]["step"] > 8
    sha256 = [file_digest(Path(watcher.of("checkpoint")[0]["path"], "model.safetensors")) for watcher in (last, whole)]
    assert sha256[0] == sha256[1]


OURS = ["[rank1]: Traceback (most recent call last):", '[rank1]:   File "trainer/child.py", line 3, in main', "[rank1]: KeyError: 'folder'"]
THEIRS = [
    "W1124 20:15:08.449000 15 .venv/lib/torch/distributed/elastic/multiprocessing/api.py:1028] Sending process 15 closing signal SIGTERM",
    "E1124 20:15:08.482000 15 .venv/lib/torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: -11) local_rank: 1",
    "Traceback (most recent call last):",
    '  File "/venv/accelerate/commands/launch.py", line 1423, in <module>',
    "    main()",
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:",
    "=====",
    "trainer.child FAILED",
]


def test_of_a_crash_is_told_what_the_process_said_and_not_what_its_launcher_did() -> None:
    own = ["Traceback (most recent call last):", '  File "trainer/child.py", line 3, in main', "KeyError: 'folder'"]
    warned = ["The following values were not passed to `accelerate launch` and had defaults used instead:", "\t`--num_processes` was set"]

    assert own_lines([*warned, "INFO a line of ours", *own, *THEIRS[2:6]]) == ["INFO a line of ours", *own]
    assert own_lines([*OURS, *THEIRS]) == OURS
    told = _last_words(1, [*OURS, *THEIRS])
    assert told == "The process that held the student was killed by SIGSEGV. Its last lines:\n" + "\n".join(OURS)


def test_a_stop_ends_the_child_in_order_with_the_state_saved(tmp_path: Path) -> None:
    task = make_task("imitate", tmp_path, make_examples(), config=make_config(steps=100_000, save_steps=100_000))
    watcher = Watcher(stop_at="metric")

    with pytest.raises(Cancelled, match=r"Stopped at step \d+ of 100,000"):
        run(task, watcher)

    assert len(list((tmp_path / ".iteration-0.work").glob("checkpoint-*"))) == 1
    assert not is_running(watcher.pid)


def test_an_error_of_the_run_s_config_comes_back_typed_with_its_fields(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no student '/nowhere'") as refusal:
        run(make_task("respond", tmp_path, make_instructions(), config=make_config(model="/nowhere")))

    assert set(refusal.value.fields) == {"student.model"}


def test_a_crash_raises_child_died_with_its_last_lines(tmp_path: Path) -> None:
    task = make_task("respond", tmp_path, make_instructions())
    del task["folder"]

    with pytest.raises(ChildDied, match=r"status 1(.|\n)*KeyError: 'folder'"):
        run(task)


def test_a_caller_that_gives_up_leaves_no_child_behind(tmp_path: Path) -> None:
    watcher = Watcher()

    def refuse(event: Event) -> None:
        watcher(event)
        raise RuntimeError("the database is away")

    with pytest.raises(RuntimeError, match="the database is away"):
        run_child(make_task("respond", tmp_path, make_instructions()), on_event=refuse, should_stop=lambda: False, environment=ENVIRONMENT)
    assert not is_running(watcher.pid)


def test_the_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    task = make_task("imitate", tmp_path, make_examples(), config=make_config(steps=100_000, save_steps=100_000))
    script = "import json, sys; from trainer.launch import run_child; "
    script += "run_child(json.loads(sys.argv[1]), on_event=lambda e: print(json.dumps(e), flush=True), should_stop=lambda: False)"
    environment = {**ENVIRONMENT, "PYTHONPATH": str(Path(trainer.__file__).parent.parent)}
    parent = subprocess.Popen([sys.executable, "-c", script, json.dumps(task)], stdout=subprocess.PIPE, env=environment)
    try:
        assert parent.stdout
        child = json.loads(parent.stdout.readline())["pid"]
        assert json.loads(parent.stdout.readline())["kind"] == "preflight"
        assert is_running(child)
    finally:
        parent.kill()
        parent.wait()
    assert parent.stdout
    parent.stdout.close()
    assert has_ended(child)


def test_launching_imports_no_torch() -> None:
    code = "import sys, trainer.launch, trainer.child, trainer.student, trainer.checkpoints; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_child_that_only_answers_imports_neither_trainer_nor_peft(tmp_path: Path) -> None:
    code = (
        "import sys, json; from trainer.child import do_task; do_task(json.loads(sys.argv[1]), print, should_stop=bool); "
        "sys.exit(any(name in sys.modules for name in ('transformers.trainer', 'peft')))"
    )
    task = make_task("respond", tmp_path, make_instructions())
    assert subprocess.run([sys.executable, "-c", code, json.dumps(task)], check=False, env=ENVIRONMENT, capture_output=True).returncode == 0


def test_errors_of_the_student_s_own_are_told_by_the_name_the_parent_knows() -> None:
    class Diverged(ConfigError):
        pass

    assert public_name(Diverged("x")) == "ConfigError"


def test_lines_come_whole_from_whatever_pieces_arrive() -> None:
    reading, writing = os.pipe()
    for piece in (b'{"a": "\xc3', b'\xa4"}\nst', b"op\n", b"rest"):
        os.write(writing, piece)
    os.close(writing)

    assert list(read_lines(reading)) == ['{"a": "ä"}', "stop"]
    os.close(reading)
