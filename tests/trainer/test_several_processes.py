"""An imitation of two processes, started by the launcher as on a machine with two cards: here they are CPUs (gloo)."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.stack import ROOT, free_port
from tests.trainer.tuning_cases import STEPS, Killed, imitate, kill_at, make_config, make_examples
from trainer import accelerated, child_student, join
from trainer.accelerated import launcher_of, processes_of
from trainer.checkpoints import read_checkpoint, verify_checkpoint
from trainer.child_student import ChildStudent
from trainer.config import RunConfig
from trainer.errors import Cancelled, ChildDied, ConfigError, DataWorkerDied, NoSpace, OutOfMemory
from trainer.records import Metric, Preflight, Remark, Saved, TuningNews, news_as_dict

torch = pytest.importorskip("torch")


def tune(
    config: RunConfig, folder: Path, *, should_stop: Callable[[], bool] = lambda: False, on_news: Callable[[TuningNews], None] | None = None
) -> tuple[Path, list[Metric]]:
    metrics: list[Metric] = []

    def keep(news: TuningNews) -> None:
        if isinstance(news, Metric):
            metrics.append(news)
        if on_news:
            on_news(news)

    student = ChildStudent(config, iteration=0, start=None, folder=folder, should_stop=should_stop)
    return student.imitate(make_examples(), iteration=0, tell=keep).path, metrics


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(folder, folder / "copy"))


def two(**settings: Any) -> RunConfig:
    return make_config(device_batch_size=2, processes=2, **settings)


def weights(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Metric]]:
    """The same tuning by one process."""
    return imitate(make_config(), tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_learn_what_one_does(tmp_path: Path, alone: tuple[Path, list[Metric]], sharding: str) -> None:
    path, metrics = tune(two(sharding=sharding), tmp_path)

    assert [m.step for m in metrics] == [m.step for m in alone[1]]
    assert [m.loss for m in metrics] == pytest.approx([m.loss for m in alone[1]], abs=1e-4)
    assert [m.grad_norm for m in metrics] == pytest.approx([m.grad_norm for m in alone[1]], rel=1e-3)
    assert verify_checkpoint(path) == []
    theirs, ours = weights(alone[0]), weights(path)
    assert theirs.keys() == ours.keys()
    # AdamW divides by the root of tiny second moments, so that rounding shows in the fourth digit of a weight.
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_both_stop_after_the_same_step_and_go_on_from_it(tmp_path: Path, alone: tuple[Path, list[Metric]], sharding: str) -> None:
    config, saved = two(sharding=sharding, first_steps=2000), list[Saved]()

    def note(news: TuningNews) -> None:
        if isinstance(news, Saved):
            saved.append(news)

    with pytest.raises(Cancelled, match=r"Stopped at step \d+ of 2,000"):
        tune(config, tmp_path, should_stop=lambda: bool(saved), on_news=note)
    stopped_at = saved[-1].step
    used = ChildStudent(config, iteration=0, start=None, folder=copied(tmp_path)).imitate(
        make_examples(), iteration=0, tell=lambda news: None, use_saved=True
    )
    assert used.step == stopped_at
    again: list[Metric] = []
    with pytest.raises(Cancelled):
        tune(config, tmp_path, should_stop=lambda: bool(again), on_news=lambda n: again.append(n) if isinstance(n, Metric) else None)

    assert again[0].step > stopped_at
    assert again[0].loss < alone[1][0].loss
    # One process goes on from what two saved, but not from shards; here, to save a launch, it is this one.
    told: list[TuningNews] = []
    with pytest.raises(Killed):
        imitate(two(first_steps=2000), tmp_path, news=told, on_metric=kill_at(1))
    [alone_at] = [news.step for news in told if isinstance(news, Metric)]
    begun_anew = [news.text for news in told if isinstance(news, Remark)]
    if sharding == "none":
        assert (alone_at > stopped_at, begun_anew) == (True, [])
    else:
        assert alone_at == 1
        assert [text.partition(" was written ")[2] for text in begun_anew] == [
            "by sharding and this tuning goes on without it, so it begins at the beginning. The save is kept: stopped and resumed by "
            "sharding, the tuning goes on from it."
        ]
        assert not list(tmp_path.glob(".iteration-0.work/checkpoint-*"))
        assert (tmp_path / ".iteration-0.work" / "sharded" / f"checkpoint-{again[-1].step}").is_dir()


def test_a_dead_process_ends_the_others_and_is_told(tmp_path: Path) -> None:
    ours: list[psutil.Process] = []

    def kill_one(news: TuningNews) -> None:
        if isinstance(news, Metric) and not ours:
            ours.extend(processes_of_task(tmp_path, "trainer.child"))
            next(p for p in ours if p.environ().get("RANK") == "1").kill()

    with pytest.raises(ChildDied, match="SIGKILL"):
        tune(two(first_steps=100_000), tmp_path, on_news=kill_one)

    assert not psutil.wait_procs(ours, timeout=20)[1]


def test_no_process_outlives_its_launcher(tmp_path: Path) -> None:
    ours: list[psutil.Process] = []

    def kill_launcher(news: TuningNews) -> None:
        if isinstance(news, Metric) and not ours:
            ours.extend(processes_of_task(tmp_path, "trainer.child"))
            next(p for p in ours if "accelerate.commands.launch" in p.cmdline()).kill()

    with pytest.raises(ChildDied):
        tune(two(first_steps=100_000), tmp_path, on_news=kill_launcher)

    assert len(ours) == 3
    assert not psutil.wait_procs(ours, timeout=20)[1]


def test_a_dead_data_worker_is_named_with_what_to_do(tmp_path: Path) -> None:
    killed: list[psutil.Process] = []

    def kill_worker(news: TuningNews) -> None:
        if isinstance(news, Metric) and not killed:
            students = [p for p in processes_of_task(tmp_path, "trainer.child") if "accelerate.commands.launch" not in p.cmdline()]
            killed.extend(p for p in students if p.ppid() in {student.pid for student in students})
            for worker in killed:
                worker.kill()

    with pytest.raises(DataWorkerDied, match=r"imitation\.data_workers to 0"):
        tune(make_config(processes=1, data_workers=1, first_steps=100_000), tmp_path, on_news=kill_worker)
    assert killed


def processes_of_task(folder: Path, module: str) -> list[psutil.Process]:
    """The launcher and the processes it started for the task in this folder."""
    found = psutil.process_iter(["cmdline"])
    return [p for p in found if module in (p.info["cmdline"] or []) and any(str(folder) in part for part in p.info["cmdline"])]


def test_an_error_of_any_process_comes_back_typed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no student '/nowhere'"):
        tune(make_config(student={"model": "/nowhere"}, processes=2, device_batch_size=2), tmp_path)


def test_the_manifest_says_how_many_steps_and_from_which_config(tmp_path: Path) -> None:
    path, _ = tune(make_config(processes=1), tmp_path)

    assert read_checkpoint(path).step == STEPS
    assert read_checkpoint(path).config["imitation"]["processes"] == 1


# Two machines


def accelerate_config(folder: Path, *, rank: int, port: int) -> Path:
    """What `accelerate config` writes for one of two machines of one process each."""
    path = folder / f"machine-{rank}.yaml"
    settings = {
        "compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "use_cpu": False, "mixed_precision": "no",
        "num_machines": 2, "machine_rank": rank, "num_processes": 2, "main_process_ip": "127.0.0.1", "main_process_port": port,
        "rdzv_backend": "static",
        "same_network": True, "main_training_function": "main", "dynamo_config": {},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_second_machine_tunes_along(tmp_path: Path, alone: tuple[Path, list[Metric]], monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("LIONWEB_ACCELERATE_CONFIG", str(accelerate_config(tmp_path, rank=0, port=port)))
    data = tmp_path / "data"
    data.mkdir()
    theirs = accelerate_config(tmp_path, rank=1, port=port)
    command = [sys.executable, "-m", "trainer.join", str(data), "--once", "--config-file", str(theirs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    stale = data / "runs" / "0" / "checkpoints" / ".task-x" / "task.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as other:  # it may find the task waiting: either is fine
        try:
            path, metrics = tune(make_config(device_batch_size=2), data / "runs" / "1" / "checkpoints")
            assert other.wait(timeout=30) == 0
        finally:
            other.kill()

    assert [m.loss for m in metrics] == pytest.approx([m.loss for m in alone[1]], abs=1e-4)
    assert [p.name for p in path.parent.iterdir()] == ["iteration-0"]


def test_joining_a_folder_that_is_not_there_says_what_to_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert join.main([str(tmp_path / "nowhere"), "--config-file", str(tmp_path)]) == 2
    assert "Name the shared data folder" in capsys.readouterr().err


# Memory


def preflight_of(config: RunConfig, processes: int) -> dict[str, Any]:
    found = Preflight(model="m", method="full", precision="fp32", parameters=1, trainable=1, device="CPU", processes=processes)
    return {"event": "news", **news_as_dict(found)}


@pytest.mark.parametrize(
    ("settings", "processes", "tried"),
    [
        ({}, 1, [(8, 8), (4, 8)]),
        ({"batch_size": 16, "device_batch_size": 16}, 4, [(16, 16), (2, 16)]),  # four devices hold but four each: half of that is two
        ({"device_batch_size": 1}, 1, [(1, 8)]),
        ({}, 0, [(8, 8)]),  # before the preflight was told: it has nothing to do with the batch
    ],
)
def test_where_memory_runs_out_it_is_tried_once_more_with_half_of_what_a_device_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], processes: int, tried: list[tuple[int, int]]
) -> None:
    seen: list[tuple[int, int]] = []

    def run_out(task: dict[str, Any], *, on_event: Callable[[dict[str, Any]], None], **options: Any) -> None:
        chosen = task["config"]["imitation"]
        seen.append((chosen["device_batch_size"], chosen["batch_size"]))
        if processes:
            on_event(preflight_of(config, processes))
        raise OutOfMemory("There is not enough memory.")

    monkeypatch.setattr(child_student, "run_child", run_out)
    news: list[TuningNews] = []
    config = make_config(**settings)

    with pytest.raises(OutOfMemory):
        tune(config, tmp_path, on_news=news.append)

    assert seen == tried
    assert [told.text for told in news if isinstance(told, Remark)] == [
        f"There is not enough memory. Trying once more with {size} on the device and more accumulation." for size, _ in tried[1:]
    ]


# A disk that fills in a process that is not the first


def test_a_disk_that_fills_for_a_later_process_is_named_too(tmp_path: Path) -> None:
    tuning = pytest.importorskip("trainer.tuning")
    with pytest.raises(NoSpace, match="is full"), tuning.writing_together(tmp_path / "checkpoint-4", needed=1, first=False):
        raise OSError(errno.ENOSPC, "No space left on device")


# How they are started


def test_nothing_of_a_home_directory_takes_part_and_processes_are_always_named() -> None:
    command = launcher_of(make_config())
    own = yaml.safe_load(Path(command[command.index("--config_file") + 1]).read_text())

    assert command[:2] == ["-m", "accelerate.commands.launch"]
    assert own == {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO"}
    assert command[command.index("--num_processes") + 1] == "1"


def test_one_process_for_each_card_that_a_child_would_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerated, "_count_cards", lambda: 4)
    command = launcher_of(make_config())

    assert command[command.index("--num_processes") + 1] == "4"
    assert "--multi_gpu" in command


def test_cards_are_counted_as_torch_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerated, "CARDS", ("/dev/null",))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    assert accelerated._count_cards() == 0


def test_eight_cards_shard_as_the_config_says() -> None:
    command = launcher_of(make_config(processes=8, sharding="full", device_batch_size=1))

    assert command[command.index("--num_processes") + 1] == "8"
    assert "--use_fsdp" in command
    assert "--multi_gpu" not in command


def test_a_team_s_own_accelerate_config_decides_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = accelerate_config(tmp_path, rank=0, port=1)
    monkeypatch.setenv("LIONWEB_ACCELERATE_CONFIG", str(file))

    assert launcher_of(make_config(processes=8)) == ["-m", "accelerate.commands.launch", "--config_file", str(file)]


@pytest.mark.parametrize(
    ("content", "student", "words"),
    [
        (None, {}, r"names .*, which cannot be read \(No such file or directory\).*unset the variable"),
        ("a: [", {}, "it is no YAML"),
        ("", {}, "holds no settings"),
        ("distributed_type: FSDP", {"method": "lora"}, r"with lora each process holds the base whole.*student\.method"),
    ],
)
def test_a_team_s_config_that_cannot_be_used_is_refused_with_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, student: dict[str, Any], words: str
) -> None:
    file = tmp_path / "accelerate.yaml"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("LIONWEB_ACCELERATE_CONFIG", str(file))
    for asked in (launcher_of, processes_of):
        with pytest.raises(ConfigError, match=words):
            asked(make_config(student=student))


# Joining


def test_a_task_is_joined_where_somebody_is_at_it_and_a_stale_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [tmp_path / "runs" / name / "checkpoints" / ".task-x" / "task.json" for name in ("1", "2")]
    for task in tasks:
        task.parent.mkdir(parents=True)
        task.write_text("{}")
    looks: list[float] = []

    def look(seconds: float) -> None:
        looks.append(seconds)
        os.utime(tasks[1], ns=(len(looks), len(looks)))
        assert len(looks) < 10, "the task that somebody is at was not found"

    monkeypatch.setattr(join.time, "sleep", look)
    waiting = join.new_tasks(tmp_path)

    assert next(waiting) == tasks[1]
    with pytest.raises(AssertionError, match="not found"):
        next(waiting)
    assert join.find_tasks(tmp_path / "runs" / "1") == [tasks[0]]
