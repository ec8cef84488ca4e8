"""`python -m trainer run` as a person types it: stopped, started again, mistyped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.stack import free_port, wait_until
from trainer.__main__ import find_config, main
from trainer.demo.knobs import Knobs
from trainer.demo.process import OfflineTeacher
from trainer.errors import ConfigError
from trainer.jsonl import read_jsonl


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
