"""`python -m trainer run` as a person types it: stopped, started again, mistyped."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests import tiny
from tests.stack import free_port, wait_until
from trainer.__main__ import CtrlC, find_config, main
from trainer.demo.knobs import Knobs
from trainer.demo.process import OfflineTeacher
from trainer.errors import Cancelled, ConfigError
from trainer.jsonl import read_jsonl
from trainer.plan import Planned, Stage, Step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_keeps_every_answer_that_was_on_its_way(tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    config = tmp_path / "config.toml"
    config.write_text(tiny.as_toml(tiny.make_config(tiny.write_seeds(tmp_path / "seeds.json"), port=port)))
    completions = tmp_path / "run" / "completions.jsonl"
    command = [sys.executable, "-m", "trainer", "run", str(config), "--out", str(tmp_path / "run")]
    with OfflineTeacher(Knobs(latency_ms=200), port=port) as teacher:
        # As a shell starts what is in the background: with Ctrl-C ignored.
        ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
        process = subprocess.Popen(ignoring, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: len(read_jsonl(completions)) >= 8, timeout_s=60, what="the first answers")
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "The same command goes on from here." in errors
        assert len(read_jsonl(completions)) == teacher.stats()["answered"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["iterations"][0]["train_pool"] == tiny.SEEDS


def test_a_stop_while_the_student_is_tuned_saves_first_and_says_at_which_step(tmp_path: Path) -> None:
    port = free_port()
    seeds = tiny.write_seeds(tmp_path / "seeds.json")
    long = tiny.make_config(seeds, port=port)
    long = replace(long, loop=replace(long.loop, iterations=0), imitation=replace(long.imitation, first_steps=4000, save_steps=4000))
    config, out = tmp_path / "config.toml", tmp_path / "run"
    config.write_text(tiny.as_toml(long))
    command = [sys.executable, "-m", "trainer", "run", str(config), "--out", str(out)]
    with OfflineTeacher(port=port):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: (out / "iteration-0" / "metrics.jsonl").exists(), timeout_s=120, what="the first steps")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    told = re.search(r"Stopped at step (\d+) of 4,000\. .* The same command goes on from here\.", errors)
    assert told, errors
    [save] = (out / "checkpoints" / ".iteration-0.work").glob("checkpoint-*")
    assert save.name == f"checkpoint-{told[1]}"


def test_a_second_ctrl_c_ends_at_once_and_one_at_the_end_of_a_step_ends_before_the_next(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    tuning = Planned(0, Stage.IMITATION, Step.TUNING)
    try:
        ctrl_c = CtrlC()
        ctrl_c.begin(tuning)
        signal.raise_signal(signal.SIGINT)
        assert ctrl_c.asked()
        assert "Ctrl-C again ends at once" in capfd.readouterr().err
        with pytest.raises(Cancelled):
            ctrl_c.begin(tuning)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        CtrlC().begin(Planned(0, Stage.IMITATION, Step.TEACHER_RESPONSES))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # which asyncio takes over
    finally:
        signal.signal(signal.SIGINT, before)


def test_settings_can_be_given_on_the_command_line() -> None:
    config = find_config("demo", seed=7, settings=["loop.parents=uniform", "loop.tau=1.5", "student.model=models/mine"])
    assert (config.seed, config.loop.parents, config.loop.tau, config.student.model) == (7, "uniform", 1.5, "models/mine")


@pytest.mark.parametrize(
    "text", ["loop.tau.x.y=1", "loop", "loop.tau=inf", "loop.iterations=inf", "loop.tau=99", "loop.tow=1", "nothing.at.all=1"]
)
def test_a_setting_that_makes_no_sense_is_refused_in_words(text: str) -> None:
    with pytest.raises(ConfigError):
        find_config("demo", seed=None, settings=[text])


def test_a_missing_config_is_a_sentence_not_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nothing.toml"]) == 2
    assert "There is no config at nothing.toml" in capsys.readouterr().err
