"""An imitation of two processes, started by the launcher as on a machine with two cards: here they are CPUs (gloo)."""

from __future__ import annotations

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
from tests.trainer.tuning_cases import STEPS, imitate, make_config, make_examples
from trainer import child_student, join
from trainer.accelerated import launcher_of
from trainer.checkpoints import read_checkpoint, verify_checkpoint
from trainer.child_student import ChildStudent
from trainer.config import RunConfig
from trainer.errors import Cancelled, ChildDied, ConfigError, DataWorkerDied, OutOfMemory
from trainer.records import Metric, Remark, Saved, TuningNews

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
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as other:
        try:
            assert other.stderr
            assert "Waiting for imitations" in other.stderr.readline()
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


def test_where_memory_runs_out_it_is_tried_once_more_with_half_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[int, int]] = []

    def run_out(task: dict[str, Any], **options: Any) -> None:
        settings = task["config"]["imitation"]
        tried.append((settings["device_batch_size"], settings["batch_size"]))
        raise OutOfMemory("There is not enough memory for tuning with 8 examples.")

    monkeypatch.setattr(child_student, "run_child", run_out)
    news: list[TuningNews] = []

    with pytest.raises(OutOfMemory):
        tune(make_config(), tmp_path, on_news=news.append)

    assert tried == [(8, 8), (4, 8)]
    assert [told.text for told in news if isinstance(told, Remark)] == [
        "There is not enough memory for tuning with 8 examples. Trying once more with 4 on the device and more accumulation."
    ]


# How they are started


def test_one_process_for_each_card_is_left_to_the_launcher() -> None:
    command = launcher_of(make_config())

    assert command[:2] == ["-m", "accelerate.commands.launch"]
    assert "--num_processes" not in command


def test_eight_cards_shard_as_the_config_says() -> None:
    command = launcher_of(make_config(processes=8, sharding="full", device_batch_size=1))

    assert command[command.index("--num_processes") + 1] == "8"
    assert "--use_fsdp" in command
    assert "--multi_gpu" not in command


def test_a_team_s_own_accelerate_config_decides_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIONWEB_ACCELERATE_CONFIG", "/etc/two-machines.yaml")

    assert launcher_of(make_config(processes=8)) == ["-m", "accelerate.commands.launch", "--config_file", "/etc/two-machines.yaml"]
